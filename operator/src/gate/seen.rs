//! A pod as far as its hold is concerned, and what is to be done about it. Pure.
//!
//! What is known of a pod's end decides whether its hold may be released: only a pod that has ended,
//! or never ran, gives it back at once. See [`Stage`].

use std::collections::BTreeMap;

use holdfast_api::{
    hold::PodHold,
    names::{
        ANNOTATION_HOLD, ANNOTATION_HOLD_FENCE, ANNOTATION_HOLD_KEY, ANNOTATION_HOLD_PERMITS,
        ANNOTATION_HOLD_STATE, GATE_HOLD,
    },
};
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::ResourceExt;

use super::tell::State;

/// Of a pod's annotations, those that are read here.
const OURS: [&str; 5] = [
    ANNOTATION_HOLD,
    ANNOTATION_HOLD_KEY,
    ANNOTATION_HOLD_PERMITS,
    ANNOTATION_HOLD_FENCE,
    ANNOTATION_HOLD_STATE,
];

/// What a watch last said about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is there.
    There,
    /// It was deleted, and this is how it was then.
    Deleted,
    /// It was missing when the list was read anew: how it was at its end is not known.
    Vanished,
}

/// A pod, small enough to keep thousands of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which incarnation of the name.
    pub uid: String,
    /// What a write is conditional on.
    pub version: String,
    /// When it was created: the order of the pods of a list.
    pub created: Option<Time>,
    /// Its ServiceAccount.
    pub account: String,
    /// All of its scheduling gates.
    pub gates: Vec<String>,
    /// Its annotations about holds.
    pub annotations: BTreeMap<String, String>,
    /// Whether it has been asked to end.
    pub deleting: bool,
    /// Whether it was given a node.
    pub bound: bool,
    /// Whether it is certain that none of its containers runs or will run.
    pub ended: bool,
    /// What the watch last said.
    pub presence: Presence,
}

/// What is to be done about a pod's hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Held back: a hold is to be acquired for it.
    Gated,
    /// It will not run: its request is to be withdrawn, and with it a hold that nobody used.
    NeverRan,
    /// It may run: its hold is to be renewed.
    Holds,
    /// It has ended: its hold is to be released.
    Ended,
    /// It may still run where nobody sees it. Nothing is renewed and nothing released.
    Unknown,
    /// Nothing is to be done, or no more.
    Done,
}

impl Seen {
    /// A pod that is there.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let gates = spec.and_then(|spec| spec.scheduling_gates.as_ref()).into_iter().flatten();
        let annotations = pod.annotations().iter();
        let ours = annotations.filter(|(name, _)| OURS.contains(&name.as_str()));
        let account = spec.and_then(|spec| spec.service_account_name.clone());
        let node = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        Seen {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            version: pod.resource_version().unwrap_or_default(),
            created: pod.metadata.creation_timestamp.clone(),
            account: account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into()),
            gates: gates.map(|gate| gate.name.clone()).collect(),
            annotations: ours.map(|(name, value)| (name.clone(), value.clone())).collect(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            bound: !node.is_empty(),
            ended: has_ended(pod),
            presence: Presence::There,
        }
    }

    /// What it is to hold, if its annotation can be understood.
    pub fn hold(&self) -> Option<PodHold> {
        PodHold::of(&self.annotations)?.ok()
    }

    /// Whether our gate keeps it.
    pub fn is_gated(&self) -> bool {
        self.gates.iter().any(|gate| gate == GATE_HOLD)
    }

    /// How its hold was last said to be.
    pub fn state(&self) -> Option<&str> {
        self.annotations.get(ANNOTATION_HOLD_STATE).map(String::as_str)
    }

    /// The fence that it was let go with.
    pub fn fence(&self) -> Option<&str> {
        self.annotations.get(ANNOTATION_HOLD_FENCE).map(String::as_str)
    }

    /// What is to be done about its hold.
    pub fn stage(&self) -> Stage {
        let is_over = self.state().is_some_and(State::is_over);
        if self.hold().is_none() || is_over || (!self.is_gated() && self.fence().is_none()) {
            return Stage::Done;
        }
        let gone = self.presence != Presence::There;
        match self.presence {
            // It may have been let go, have been scheduled, and run, all since it was seen last.
            Presence::Vanished if !self.ended => Stage::Unknown,
            _ if self.is_gated() && (gone || self.deleting || self.ended) => Stage::NeverRan,
            _ if self.is_gated() => Stage::Gated,
            _ if self.ended => Stage::Ended,
            Presence::Deleted if !self.bound => Stage::NeverRan,
            Presence::Deleted | Presence::Vanished => Stage::Unknown,
            Presence::There => Stage::Holds,
        }
    }

    /// As much of a Pod as an Event needs.
    pub fn reference(&self) -> Pod {
        Pod {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.clone()),
                name: Some(self.name.clone()),
                uid: Some(self.uid.clone()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        }
    }
}

/// Whether it is certain that no container of a pod runs, or will. The phase alone is not enough: the
/// control plane says Failed of pods on nodes that it does not hear, where containers may go on. Only
/// the kubelet says of a container that it has terminated.
fn has_ended(pod: &Pod) -> bool {
    let Some(status) = pod.status.as_ref() else { return false };
    let all = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let runs = |container: &ContainerStatus| {
        container.state.as_ref().is_some_and(|state| state.running.is_some())
    };
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
        && !all.into_iter().flatten().flatten().any(runs)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const GATED: &[&str] = &["other", GATE_HOLD];

    fn mk_pod(gates: &[&str], fence: Option<&str>, state: &str, more: &Value) -> Seen {
        let gates: Vec<Value> = gates.iter().map(|name| json!({ "name": name })).collect();
        let mut annotations = json!({ "holdfast.dev/hold": "lock/a", "kept": "out" });
        if let Some(fence) = fence {
            annotations["holdfast.dev/hold-fence"] = fence.into();
        }
        if !state.is_empty() {
            annotations["holdfast.dev/hold-state"] = state.into();
        }
        Seen::of(
            &serde_json::from_value(json!({
                "metadata": {"namespace": "shop", "name": "p", "uid": "u", "annotations": annotations,
                             "deletionTimestamp": more["deleting"]},
                "spec": {"containers": [], "schedulingGates": gates, "nodeName": more["node"]},
                "status": {"phase": more["phase"], "containerStatuses": more["containers"]},
            }))
            .unwrap(),
        )
    }

    fn gone(seen: Seen, presence: Presence) -> Stage {
        Seen { presence, ..seen }.stage()
    }

    #[test]
    fn a_pod_that_is_there_waits_then_holds_then_has_ended() {
        let none = json!({});
        assert_eq!(mk_pod(GATED, None, "", &none).stage(), Stage::Gated);
        assert_eq!(mk_pod(GATED, None, "Waiting: at place 2", &none).stage(), Stage::Gated);
        assert_eq!(mk_pod(&["other"], Some("7"), "Granted", &none).stage(), Stage::Holds);
        // Somebody else took the gate off, or it was never there: not ours.
        assert_eq!(mk_pod(&[], None, "", &none).stage(), Stage::Done);
        let deleting = json!({"deleting": "2026-01-01T00:00:00Z", "node": "n", "phase": "Running"});
        assert_eq!(mk_pod(&[], Some("7"), "Granted", &deleting).stage(), Stage::Holds);
        assert_eq!(mk_pod(GATED, None, "", &deleting).stage(), Stage::NeverRan);
        for phase in ["Succeeded", "Failed"] {
            let ended = json!({"phase": phase, "node": "n"});
            assert_eq!(mk_pod(&[], Some("7"), "Granted", &ended).stage(), Stage::Ended);
            assert_eq!(mk_pod(&[], Some("7"), "Released", &ended).stage(), Stage::Done);
            assert_eq!(
                mk_pod(&[], Some("7"), "Lost: its hold is gone", &ended).stage(),
                Stage::Done
            );
            assert_eq!(mk_pod(GATED, None, "", &ended).stage(), Stage::NeverRan);
        }
    }

    #[test]
    fn failed_is_not_ended_while_a_container_is_known_to_run() {
        let container = |state: &str| {
            json!([{"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {state: {"exitCode": 0}}}])
        };
        let unheard = json!({"phase": "Failed", "node": "n", "containers": container("running")});
        assert_eq!(mk_pod(&[], Some("7"), "Granted", &unheard).stage(), Stage::Holds);
        let gone_with = mk_pod(&[], Some("7"), "Granted", &unheard);
        assert_eq!(gone(gone_with, Presence::Deleted), Stage::Unknown);
        let ended = json!({"phase": "Failed", "node": "n", "containers": container("terminated")});
        assert_eq!(mk_pod(&[], Some("7"), "Granted", &ended).stage(), Stage::Ended);
    }

    #[test]
    fn absence_alone_releases_nothing() {
        let running =
            || mk_pod(&[], Some("7"), "Granted", &json!({"node": "n", "phase": "Running"}));
        assert_eq!(gone(running(), Presence::Deleted), Stage::Unknown);
        assert_eq!(gone(running(), Presence::Vanished), Stage::Unknown);
        let gated = || mk_pod(GATED, None, "", &json!({}));
        assert_eq!(gone(gated(), Presence::Deleted), Stage::NeverRan);
        // It may have been let go since.
        assert_eq!(gone(gated(), Presence::Vanished), Stage::Unknown);
        let unbound = || mk_pod(&[], Some("7"), "Granted", &json!({}));
        assert_eq!(gone(unbound(), Presence::Deleted), Stage::NeverRan);
        assert_eq!(gone(unbound(), Presence::Vanished), Stage::Unknown);
        let ended = || mk_pod(&[], Some("7"), "Granted", &json!({"node": "n", "phase": "Failed"}));
        assert_eq!(gone(ended(), Presence::Deleted), Stage::Ended);
        assert_eq!(gone(ended(), Presence::Vanished), Stage::Ended);
    }
}
