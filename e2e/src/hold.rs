//! Scenes of pods that hold by annotation: what they are made of, and how they are watched.

use std::time::Duration;

use serde_json::Value;

use crate::{Namespace, app_image, eventually, get, kubectl};

/// The gate, the label and the annotation of a pod that holds.
pub const HOLD: &str = "holdfast.dev/hold";
/// The annotation with its fence.
pub const FENCE: &str = "holdfast.dev/hold-fence";
/// The annotation that says how it stands.
pub const STATE: &str = "holdfast.dev/hold-state";

/// The template of a pod that holds, with its fence in its environment.
pub fn mk_template(hold: &str, command: &str) -> String {
    format!(
        "{{metadata: {{annotations: {{holdfast.dev/hold: '{hold}'}}}}, spec: {{restartPolicy: Never, \
         terminationGracePeriodSeconds: 5, containers: [{{name: app, image: '{}', imagePullPolicy: \
         IfNotPresent, env: [{{name: FENCE, valueFrom: {{fieldRef: {{fieldPath: \
         'metadata.annotations[''{FENCE}'']'}}}}}}], command: [/bin/sh, -ec, '{command}']}}]}}}}",
        app_image()
    )
}

/// The pods of a namespace that hold or want to.
pub fn pods(namespace: &Namespace) -> Vec<Value> {
    let all = get(&namespace.name, "pods");
    let items = all["items"].as_array().cloned().unwrap_or_default();
    // Not the Redis of a scene.
    items.into_iter().filter(|pod| pod["metadata"]["annotations"][HOLD].is_string()).collect()
}

/// Whether a pod has ended.
pub fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// The pods that may run: let go, and not ended.
pub fn let_go(pods: &[Value]) -> Vec<&Value> {
    let gated = |pod: &Value| {
        pod["spec"]["schedulingGates"]
            .as_array()
            .is_some_and(|gates| gates.iter().any(|gate| gate["name"] == HOLD))
    };
    pods.iter().filter(|pod| !gated(pod) && !is_over(pod)).collect()
}

/// Watches until a condition holds that never more pods may run than `most`.
pub fn watch(
    namespace: &Namespace,
    most: usize,
    within: u64,
    mut done: impl FnMut(&[Value]) -> bool,
) {
    eventually("the pods to come so far", Duration::from_secs(within), || {
        let all = pods(namespace);
        let now = let_go(&all);
        assert!(now.len() <= most, "{} run where {most} may: {now:?}", now.len());
        done(&all)
    });
}

impl Namespace {
    /// Declares a Job whose pods hold; `more` goes into its spec.
    pub fn held_job(&self, name: &str, hold: &str, more: &str, command: &str) {
        self.apply(&format!(
            "{{apiVersion: batch/v1, kind: Job, metadata: {{name: {name}}}, spec: {{{more}, template: \
             {}}}}}",
            mk_template(hold, command)
        ));
    }

    /// Creates a pod that holds, and runs until it is told to end.
    pub fn held_pod(&self, name: &str, hold: &str) {
        let template = mk_template(hold, "trap exit TERM; while :; do sleep 0.2; done");
        let head = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, ");
        self.apply(&template.replacen("{metadata: {", &head, 1));
    }

    /// Declares a semaphore and waits until it can be used.
    pub fn semaphore(&self, name: &str, spec: &str) {
        self.apply(&format!(
            "{{apiVersion: holdfast.dev/v1alpha1, kind: Semaphore, metadata: {{name: {name}}}, \
             spec: {spec}}}"
        ));
        let semaphore = format!("sem/{name}");
        kubectl(&["wait", "-n", &self.name, "--for=condition=Ready", &semaphore, "--timeout=60s"]);
    }
}
