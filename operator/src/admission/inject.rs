//! Whether and how a pod gets its sidecar: a pure function from (pod, settings) to a JSON patch.
//!
//! - What is injected comes from the operator's settings alone. A pod can ask for the sidecar (label)
//!   and for the socket (annotation); it cannot choose the image, the arguments or the rights.
//! - The patch never raises a pod's privileges, and keeps a pod valid that satisfies the `restricted`
//!   Pod Security Standard.
//! - It only adds, or puts its own parts right. Applied to its own result it is empty, so that the
//!   API server may call again after other webhooks, and a pod copied from `kubectl get -o yaml` gets
//!   today's sidecar.
//!
//! The shape of the sidecar is in [`sidecar`]; serving is in [`super::server`].

use std::{collections::BTreeMap, fmt};

use holdfast_api::{compat::Compat, names::ANNOTATION_PRIORITY};
use holdfast_core::ClassName;
use json_patch::Patch;
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec, VolumeMount};
use serde::Serialize;
use serde_json::{Value, json};

pub use holdfast_api::names::{
    ANNOTATION_CANDIDATE as CANDIDATE_ANNOTATION, LABEL_INJECT as INJECT_LABEL,
};
pub use sidecar::InjectSettings;

pub mod sidecar;
#[cfg(test)]
mod tests;

/// The label that says what became of it: `"true"`, or `"false"` for a pod that was skipped.
pub const INJECTED_LABEL: &str = "holdfast.dev/injected";
/// On a skipped pod: why, as a [`SkipReason`]'s word.
pub const SKIPPED_ANNOTATION: &str = "holdfast.dev/injection-skipped";
/// `"true"` mounts the sidecar's Unix socket into the containers of the pod.
pub const SOCKET_ANNOTATION: &str = "holdfast.dev/socket";
/// The other projects' APIs that the pod's sidecar is to serve as well.
pub const COMPAT_ANNOTATION: &str = "holdfast.dev/compat";
/// The name of the injected container.
pub const SIDECAR: &str = "holdfast";
/// Where apps find the sidecar.
pub const URL_ENV: &str = "HOLDFAST_URL";
/// Where apps find its socket, when they asked for it.
pub const SOCKET_ENV: &str = "HOLDFAST_SOCKET";

/// What to do with a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Change it so. The warnings are for whoever created it.
    Inject {
        /// The changes; empty for a pod that has its sidecar already.
        patch: Patch,
        /// What will probably not work as meant.
        warnings: Vec<String>,
    },
    /// Let it in without a sidecar, and say why.
    Skip(SkipReason),
    /// It did not ask.
    NotAsked,
    /// Refuse it: it asked in a way that cannot be understood.
    Deny(String),
}

/// Why a pod that asked gets no sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// In the host's network, 127.0.0.1 is the node's: everybody there could use the pod's locks.
    HostNetwork,
    /// The operator's own pods must start when there is no webhook.
    OwnNamespace,
    /// The cluster's own pods must start when there is no webhook.
    SystemNamespace,
    /// The sidecar is a Linux program.
    NotLinux,
    /// A static pod runs whatever the API server says.
    StaticPod,
    /// The webhook was not asked when the pod was created.
    NotSeen,
}

impl SkipReason {
    /// One word, for annotations, Events and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            SkipReason::HostNetwork => "HostNetwork",
            SkipReason::OwnNamespace => "OwnNamespace",
            SkipReason::SystemNamespace => "SystemNamespace",
            SkipReason::NotLinux => "NotLinux",
            SkipReason::StaticPod => "StaticPod",
            SkipReason::NotSeen => "NotSeen",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SkipReason::HostNetwork => {
                "the pod uses the host's network, where other pods could reach its sidecar; set \
                 hostNetwork: false"
            }
            SkipReason::OwnNamespace => {
                "the pod is in the namespace of the Holdfast operator, which is never injected; \
                 run it in another namespace"
            }
            SkipReason::SystemNamespace => {
                "the pod is in a namespace of the cluster's own, which is never injected; run it in \
                 another namespace"
            }
            SkipReason::NotLinux => "the pod is not for Linux, and the sidecar is",
            SkipReason::StaticPod => "the pod is a static pod, which the API server cannot change",
            SkipReason::NotSeen => {
                "the pod was created while no injection webhook was installed; create it again"
            }
        })
    }
}

/// Decides about a pod that is created in `namespace`.
///
/// `asked_by_namespace` says whether the namespace carries the label; the pod's own label wins.
pub fn decide(
    pod: &Pod,
    namespace: &str,
    asked_by_namespace: bool,
    settings: &InjectSettings,
) -> Decision {
    match label(pod, INJECT_LABEL) {
        Some("true") => {}
        Some("false") => return Decision::NotAsked,
        Some(other) => {
            return Decision::Deny(format!(
                "the label \"{INJECT_LABEL}\" must be \"true\" or \"false\", not \"{other}\""
            ));
        }
        None if asked_by_namespace => {}
        None => return Decision::NotAsked,
    }
    if let Some(reason) = skip_reason(pod, namespace, settings) {
        return Decision::Skip(reason);
    }
    let wants_socket = match annotation(pod, SOCKET_ANNOTATION) {
        Some("true") => true,
        Some("false") | None => false,
        Some(other) => {
            return Decision::Deny(format!(
                "the annotation \"{SOCKET_ANNOTATION}\" must be \"true\" or \"false\", not \
                 \"{other}\""
            ));
        }
    };
    let candidate = annotation(pod, CANDIDATE_ANNOTATION).unwrap_or_default();
    for name in candidate.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if let Err(why) = ClassName::new(name) {
            return Decision::Deny(format!(
                "the annotation \"{CANDIDATE_ANNOTATION}\" names LeaderElections, separated by \
                 commas; \"{name}\" cannot be one: {why}"
            ));
        }
    }
    if let Some(priority) = annotation(pod, ANNOTATION_PRIORITY)
        && priority.trim().parse::<i64>().is_err()
    {
        return Decision::Deny(format!(
            "the annotation \"{ANNOTATION_PRIORITY}\" is a whole number, not \"{priority}\""
        ));
    }
    let compat = annotation(pod, COMPAT_ANNOTATION).unwrap_or_default();
    if let Err(why) = compat.parse().and_then(|compat: Compat| compat.check(false)) {
        return Decision::Deny(format!("the annotation \"{COMPAT_ANNOTATION}\": {why}"));
    }
    match pod.spec.as_ref() {
        Some(spec) if spec.containers.iter().any(|c| c.name == SIDECAR) => Decision::Deny(format!(
            "a container of the pod is named \"{SIDECAR}\", which is the injected sidecar's name; \
             rename it"
        )),
        Some(spec) => inject(pod, spec, wants_socket, settings),
        None => Decision::Deny("the pod has no spec".into()),
    }
}

/// Why this pod cannot have a sidecar, if it cannot.
pub fn skip_reason(pod: &Pod, namespace: &str, settings: &InjectSettings) -> Option<SkipReason> {
    if let Some(reason) = never_changed(pod, namespace, settings) {
        return Some(reason);
    }
    let spec = pod.spec.as_ref()?;
    if spec.host_network == Some(true) {
        return Some(SkipReason::HostNetwork);
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Some(SkipReason::NotLinux);
    }
    None
}

/// Why this pod is never changed at admission, whatever it asks for.
pub(super) fn never_changed(
    pod: &Pod,
    namespace: &str,
    settings: &InjectSettings,
) -> Option<SkipReason> {
    if namespace == settings.own_namespace {
        return Some(SkipReason::OwnNamespace);
    }
    if settings.system_namespaces.iter().any(|system| system == namespace) {
        return Some(SkipReason::SystemNamespace);
    }
    annotation(pod, "kubernetes.io/config.mirror").map(|_| SkipReason::StaticPod)
}

/// The changes that mark a skipped pod, so that the Event can be written when it has a UID.
pub fn mark_skipped(pod: &Pod, reason: SkipReason) -> Patch {
    let mut ops = Operations::default();
    ops.set_in_map("/metadata/labels", pod.metadata.labels.as_ref(), INJECTED_LABEL, "false");
    let annotations = pod.metadata.annotations.as_ref();
    ops.set_in_map("/metadata/annotations", annotations, SKIPPED_ANNOTATION, reason.word());
    ops.into_patch()
}

fn inject(pod: &Pod, spec: &PodSpec, wants_socket: bool, settings: &InjectSettings) -> Decision {
    let mut ops = Operations::default();
    ops.set_in_map("/metadata/labels", pod.metadata.labels.as_ref(), INJECTED_LABEL, "true");

    let ours = sidecar::container(settings, spec, wants_socket);
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let present = init.iter().position(|container| container.name == SIDECAR);
    let apps = [("/spec/initContainers", init), ("/spec/containers", &spec.containers)];
    // Paths of the app's init containers as they are *before* ours is put in front of them: so
    // those operations go first.
    for (list, containers) in apps {
        for (index, container) in containers.iter().enumerate() {
            if container.name != SIDECAR {
                connect(&mut ops, &format!("{list}/{index}"), container, wants_socket, settings);
            }
        }
    }
    match present {
        Some(index) if init[index] == ours => {}
        Some(index) => ops.replace(format!("/spec/initContainers/{index}"), &ours),
        None => ops.insert_first("/spec/initContainers", spec.init_containers.is_some(), &ours),
    }

    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let mut have_list = spec.volumes.is_some();
    for volume in sidecar::volumes(settings, wants_socket) {
        match volumes.iter().position(|v| v.name == volume.name) {
            Some(index) if volumes[index] == volume => {}
            Some(index) => ops.replace(format!("/spec/volumes/{index}"), &volume),
            None => {
                ops.append("/spec/volumes", have_list, &volume);
                have_list = true;
            }
        }
    }
    Decision::Inject { patch: ops.into_patch(), warnings: warnings(spec, settings) }
}

/// Tells a container of the app where its sidecar is, unless it says so itself.
fn connect(
    ops: &mut Operations,
    path: &str,
    container: &Container,
    wants_socket: bool,
    settings: &InjectSettings,
) {
    let mut wanted = vec![(URL_ENV, settings.url())];
    if wants_socket {
        wanted.push((SOCKET_ENV, sidecar::SOCKET_PATH.to_owned()));
    }
    let mut have_list = container.env.is_some();
    for (name, value) in wanted {
        if container.env.iter().flatten().all(|env| env.name != name) {
            let env = EnvVar { name: name.into(), value: Some(value), value_from: None };
            ops.append(&format!("{path}/env"), have_list, &env);
            have_list = true;
        }
    }
    let mount: VolumeMount = sidecar::socket_mount(true);
    let mounted = |m: &VolumeMount| m.mount_path == mount.mount_path;
    if wants_socket && !container.volume_mounts.iter().flatten().any(mounted) {
        ops.append(&format!("{path}/volumeMounts"), container.volume_mounts.is_some(), &mount);
    }
}

/// What is legal but will not work as meant.
fn warnings(spec: &PodSpec, settings: &InjectSettings) -> Vec<String> {
    let ours = [settings.api_port, settings.admin_port];
    let ports =
        |c: &Container| c.ports.iter().flatten().map(|p| p.container_port).collect::<Vec<_>>();
    let clash = |c: &&Container| ports(c).iter().any(|port| ours.map(i32::from).contains(port));
    spec.containers
        .iter()
        .filter(clash)
        .map(|c| {
            format!(
                "container \"{}\" declares a port of the holdfast sidecar ({} and {}); one of the \
                 two will not be able to listen",
                c.name, settings.api_port, settings.admin_port
            )
        })
        .collect()
}

fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// JSON patch operations in the order in which they apply.
#[derive(Default)]
pub(super) struct Operations(Vec<Value>);

impl Operations {
    fn push(&mut self, op: &str, path: String, value: impl Serialize) {
        self.0.push(json!({ "op": op, "path": path, "value": value }));
    }

    fn replace(&mut self, path: String, value: impl Serialize) {
        self.push("replace", path, value);
    }

    fn insert_first(&mut self, list: &str, exists: bool, value: impl Serialize) {
        match exists {
            true => self.push("add", format!("{list}/0"), value),
            false => self.push("add", list.to_owned(), [value]),
        }
    }

    pub(super) fn append(&mut self, list: &str, exists: bool, value: impl Serialize) {
        match exists {
            true => self.push("add", format!("{list}/-"), value),
            false => self.push("add", list.to_owned(), [value]),
        }
    }

    pub(super) fn set_in_map(
        &mut self,
        map: &str,
        current: Option<&BTreeMap<String, String>>,
        key: &str,
        value: &str,
    ) {
        match current {
            Some(there) if there.get(key).is_some_and(|v| v == value) => {}
            // RFC 6901: the only escape our keys need.
            Some(_) => self.push("add", format!("{map}/{}", key.replace('/', "~1")), value),
            None => self.push("add", map.to_owned(), json!({ key: value })),
        }
    }

    /// Takes an entry out of a map, if it is there.
    pub(super) fn remove_from_map(
        &mut self,
        map: &str,
        current: Option<&BTreeMap<String, String>>,
        key: &str,
    ) {
        if current.is_some_and(|there| there.contains_key(key)) {
            let path = format!("{map}/{}", key.replace('/', "~1"));
            self.0.push(json!({ "op": "remove", "path": path }));
        }
    }

    pub(super) fn into_patch(self) -> Patch {
        // Every operation above has the fields that the type wants.
        serde_json::from_value(Value::Array(self.0)).unwrap_or_else(|_| Patch(Vec::new()))
    }
}
