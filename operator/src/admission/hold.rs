//! Whether and how a pod is held at the scheduling gate: a pure function from (pod, settings) to a
//! JSON patch.
//!
//! - The gate keeps the pod from being scheduled until the operator's leader has acquired what its
//!   annotation names (see [`crate::gate`]). Nothing else of the pod's spec is touched.
//! - What only the operator may say (the fence, the state) is taken off: a pod may be a copy of one
//!   that has run.
//! - Applied to its own result the patch is empty.

use holdfast_api::{
    hold::PodHold,
    names::{ANNOTATION_HOLD, ANNOTATION_HOLD_FENCE, ANNOTATION_HOLD_STATE, GATE_HOLD, LABEL_HOLD},
};
use json_patch::Patch;
use k8s_openapi::api::core::v1::{Pod, PodSchedulingGate};

use super::inject::{InjectSettings, Operations, never_changed};

/// What to do with a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Change it so; empty for a pod that is gated already.
    Gate(Patch),
    /// Let it in as it is, with this warning.
    Skip(String),
    /// It did not ask.
    NotAsked,
    /// Refuse it: it asked in a way that cannot be understood, or cannot be done.
    Deny(String),
}

/// Decides about a pod that is created in `namespace`.
pub fn decide(pod: &Pod, namespace: &str, settings: &InjectSettings) -> Decision {
    let (labels, annotations) = (pod.metadata.labels.as_ref(), pod.metadata.annotations.as_ref());
    let hold = match annotations.and_then(PodHold::of) {
        None => return Decision::NotAsked,
        Some(Err(why)) => return Decision::Deny(why),
        Some(Ok(hold)) => hold,
    };
    if let Some(reason) = never_changed(pod, namespace, settings) {
        return Decision::Skip(format!("the pod is not held: {}", reason.word()));
    }
    let Some(spec) = pod.spec.as_ref() else { return Decision::Deny("the pod has no spec".into()) };
    if let Some(node) = spec.node_name.as_ref().filter(|node| !node.is_empty()) {
        return Decision::Deny(format!(
            "the pod is bound to node \"{node}\" already, so it cannot be held at a scheduling gate; \
             leave spec.nodeName to the scheduler, or take the annotation \"{ANNOTATION_HOLD}\" off"
        ));
    }
    let mut ops = Operations::default();
    ops.set_in_map("/metadata/labels", labels, LABEL_HOLD, &hold.label());
    for ours in [ANNOTATION_HOLD_FENCE, ANNOTATION_HOLD_STATE] {
        ops.remove_from_map("/metadata/annotations", annotations, ours);
    }
    let gates = spec.scheduling_gates.as_deref().unwrap_or_default();
    if !gates.iter().any(|gate| gate.name == GATE_HOLD) {
        let gate = PodSchedulingGate { name: GATE_HOLD.into() };
        ops.append("/spec/schedulingGates", spec.scheduling_gates.is_some(), gate);
    }
    Decision::Gate(ops.into_patch())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mk_pod(metadata: &Value, spec: &Value) -> Pod {
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    fn decide_in(namespace: &str, pod: &Pod) -> Decision {
        let settings =
            InjectSettings { own_namespace: "holdfast-system".into(), ..InjectSettings::default() };
        decide(pod, namespace, &settings)
    }

    fn patched(pod: &Pod) -> Pod {
        let Decision::Gate(patch) = decide_in("shop", pod) else { panic!("not gated") };
        let mut value = serde_json::to_value(pod).unwrap();
        json_patch::patch(&mut value, &patch).unwrap();
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_is_gated_and_labelled_once() {
        let asked = json!({"annotations": {"holdfast.dev/hold": "semaphore/nightly"}});
        for spec in [
            json!({"containers": []}),
            json!({"containers": [], "schedulingGates": [{"name": "other"}]}),
        ] {
            let once = patched(&mk_pod(&asked, &spec));
            let gates = once.spec.clone().unwrap().scheduling_gates.unwrap();
            assert_eq!(gates.iter().filter(|gate| gate.name == GATE_HOLD).count(), 1);
            assert_eq!(once.metadata.labels.clone().unwrap()[LABEL_HOLD], "semaphore.nightly");
            assert_eq!(decide_in("shop", &once), Decision::Gate(Patch(Vec::new())));
        }
    }

    #[test]
    fn a_copy_of_a_pod_that_ran_does_not_keep_its_fence() {
        let copied = json!({
            "labels": {"app": "x", "holdfast.dev/hold": "lock.other"},
            "annotations": {"holdfast.dev/hold": "lock/a", "holdfast.dev/hold-fence": "7",
                            "holdfast.dev/hold-state": "Released"},
        });
        let pod = patched(&mk_pod(&copied, &json!({"containers": []})));
        let annotations = pod.metadata.annotations.unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["holdfast.dev/hold"]);
        assert_eq!(pod.metadata.labels.unwrap()[LABEL_HOLD], "lock.a");
    }

    #[test]
    fn who_does_not_ask_is_left_alone_and_who_asks_wrongly_is_told() {
        let spec = json!({"containers": []});
        let plain = mk_pod(&json!({"annotations": {"a": "b"}}), &spec);
        assert_eq!(decide_in("shop", &plain), Decision::NotAsked);
        let wrong = mk_pod(&json!({"annotations": {"holdfast.dev/hold": "nightly"}}), &spec);
        let Decision::Deny(why) = decide_in("shop", &wrong) else { panic!() };
        assert!(why.contains("\"lock/NAME\" or \"semaphore/NAME\""), "{why}");
        let asked = json!({"annotations": {"holdfast.dev/hold": "lock/a"}});
        let bound = mk_pod(&asked, &json!({"containers": [], "nodeName": "n1"}));
        let Decision::Deny(why) = decide_in("shop", &bound) else { panic!() };
        assert!(why.contains("spec.nodeName"), "{why}");
        for namespace in ["holdfast-system", "kube-system"] {
            let decision = decide_in(namespace, &mk_pod(&asked, &spec));
            assert!(matches!(decision, Decision::Skip(_)), "{namespace}: {decision:?}");
        }
        let mirror = json!({"annotations": {"holdfast.dev/hold": "lock/a",
                                            "kubernetes.io/config.mirror": "x"}});
        let decision = decide_in("shop", &mk_pod(&mirror, &spec));
        assert!(matches!(decision, Decision::Skip(_)), "{decision:?}");
    }
}
