//! The shape of the sidecar: its container, its volumes and what an operator may set about them.
//!
//! Fields that the API server would fill in by default are written out, so that a pod that went
//! through once compares equal.

use std::collections::BTreeMap;

use holdfast_api::names::REDIS_SECRET;
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapProjection, Container, ContainerPort, DownwardAPIProjection,
        DownwardAPIVolumeFile, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
        KeyToPath, ObjectFieldSelector, PodSpec, Probe, ProjectedVolumeSource,
        ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
        ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

use super::{CANDIDATE_ANNOTATION, SIDECAR};

/// Where kube clients look for the pod's token, by convention.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where the sidecar keeps its journal.
pub const RUN_PATH: &str = "/run/holdfast";
/// Where the sidecar finds its Redis credentials, if its namespace has any.
pub const REDIS_PATH: &str = "/etc/holdfast/redis";
/// The directory that is shared with apps that asked for the socket.
const SOCKET_DIR: &str = "/run/holdfast-socket";
/// The socket in it.
pub const SOCKET_PATH: &str = "/run/holdfast-socket/api.sock";
/// A token is replaced after so long (the API server's shortest is ten minutes).
const TOKEN_SECONDS: i64 = 3600;

const TOKEN_VOLUME: &str = "holdfast-token";
const RUN_VOLUME: &str = "holdfast-run";
const REDIS_VOLUME: &str = "holdfast-redis";
const SOCKET_VOLUME: &str = "holdfast-socket";

/// What an operator sets about the sidecars it injects.
#[derive(Clone, Debug, PartialEq)]
pub struct InjectSettings {
    /// The image with the sidecar in it.
    pub image: String,
    /// When to pull it: `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// The program and its first arguments.
    pub command: Vec<String>,
    /// Its other arguments.
    pub args: Vec<String>,
    /// The user it runs as, 10000 or more.
    pub run_as_user: i64,
    /// The port on 127.0.0.1 where it serves apps.
    pub api_port: u16,
    /// The port where it answers probes and shows metrics.
    pub admin_port: u16,
    /// What it logs, in tracing's filter syntax.
    pub log: String,
    /// How it logs: `text` or `json`.
    pub log_format: String,
    /// What it asks the scheduler for, and where it is stopped.
    pub resources: Resources,
    /// The namespace of the operator, which is never injected.
    pub own_namespace: String,
    /// Other namespaces that are never injected.
    pub system_namespaces: Vec<String>,
}

/// Requests and limits of the sidecar, as quantities.
#[derive(Clone, Debug, PartialEq)]
pub struct Resources {
    /// Requested CPU.
    pub cpu_request: String,
    /// Requested memory.
    pub memory_request: String,
    /// The CPU limit; empty for none. In a pod of class Guaranteed it is the request, too.
    pub cpu_limit: String,
    /// The memory limit.
    pub memory_limit: String,
}

impl Default for InjectSettings {
    fn default() -> Self {
        InjectSettings {
            image: "ghcr.io/holdfast/holdfast:latest".into(),
            image_pull_policy: "IfNotPresent".into(),
            command: vec!["/holdfast-sidecar".into()],
            args: Vec::new(),
            run_as_user: 65_532,
            api_port: 4140,
            admin_port: 4141,
            log: "info".into(),
            log_format: "json".into(),
            resources: Resources {
                cpu_request: "10m".into(),
                memory_request: "16Mi".into(),
                cpu_limit: "500m".into(),
                memory_limit: "64Mi".into(),
            },
            own_namespace: "holdfast-system".into(),
            system_namespaces: ["kube-system", "kube-public", "kube-node-lease"]
                .map(String::from)
                .into(),
        }
    }
}

impl InjectSettings {
    /// Where an app reaches its sidecar.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }
}

/// The sidecar's container: an init container that never ends, so it starts before the app and stops
/// after it, and a Job completes in spite of it.
pub fn container(settings: &InjectSettings, pod: &PodSpec, wants_socket: bool) -> Container {
    let mut mounts = vec![
        mount(TOKEN_VOLUME, TOKEN_PATH, true),
        mount(RUN_VOLUME, RUN_PATH, false),
        mount(REDIS_VOLUME, REDIS_PATH, true),
    ];
    let mut env = vec![
        field_env("POD_NAME", "metadata.name"),
        field_env("POD_NAMESPACE", "metadata.namespace"),
        field_env("POD_UID", "metadata.uid"),
        field_env("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field_env("HOLDFAST_CANDIDATE", &format!("metadata.annotations['{CANDIDATE_ANNOTATION}']")),
    ];
    let mut listen = format!("127.0.0.1:{}", settings.api_port);
    if wants_socket {
        listen.push_str(&format!(",unix:{SOCKET_PATH}"));
    }
    env.extend([
        value_env("HOLDFAST_LISTEN", listen),
        // The kubelet's probes and Prometheus come from outside the pod.
        value_env("HOLDFAST_ADMIN", format!("0.0.0.0:{}", settings.admin_port)),
        value_env("HOLDFAST_STATE_DIR", RUN_PATH.into()),
        value_env("HOLDFAST_REDIS_CREDENTIALS", REDIS_PATH.into()),
        value_env("HOLDFAST_LOG", settings.log.clone()),
        value_env("HOLDFAST_LOG_FORMAT", settings.log_format.clone()),
    ]);
    if wants_socket {
        mounts.push(socket_mount(false));
    }
    Container {
        name: SIDECAR.into(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        command: Some(settings.command.clone()),
        args: Some(settings.args.clone()).filter(|args| !args.is_empty()),
        restart_policy: Some("Always".into()),
        env: Some(env),
        ports: Some(vec![ContainerPort {
            name: Some("holdfast-admin".into()),
            container_port: settings.admin_port.into(),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        // The app starts once the sidecar answers, and not only when it has a bundle: an API server
        // that is away must not keep apps from starting.
        startup_probe: Some(probe("/livez", settings.admin_port, 1, 60)),
        readiness_probe: Some(probe("/readyz", settings.admin_port, 5, 3)),
        liveness_probe: Some(probe("/livez", settings.admin_port, 10, 6)),
        resources: Some(resources(&settings.resources, is_guaranteed(pod))),
        security_context: Some(restricted(settings.run_as_user)),
        volume_mounts: Some(mounts),
        termination_message_path: Some("/dev/termination-log".into()),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

/// The volumes of the sidecar.
pub fn volumes(_settings: &InjectSettings, wants_socket: bool) -> Vec<Volume> {
    let mut volumes = vec![
        Volume { name: TOKEN_VOLUME.into(), projected: Some(token()), ..Volume::default() },
        memory_volume(RUN_VOLUME),
        Volume {
            name: REDIS_VOLUME.into(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(REDIS_SECRET.into()),
                optional: Some(true),
                default_mode: Some(0o444),
                items: None,
            }),
            ..Volume::default()
        },
    ];
    if wants_socket {
        volumes.push(memory_volume(SOCKET_VOLUME));
    }
    volumes
}

/// How the socket's directory is mounted.
pub fn socket_mount(read_only: bool) -> VolumeMount {
    mount(SOCKET_VOLUME, SOCKET_DIR, read_only)
}

/// A token of the pod's ServiceAccount as the kubelet mounts it by default, but our own: it is there
/// when the pod turned automounting off, and it lives for an hour.
fn token() -> ProjectedVolumeSource {
    ProjectedVolumeSource {
        default_mode: Some(0o444),
        sources: Some(vec![
            VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: None,
                    expiration_seconds: Some(TOKEN_SECONDS),
                    path: "token".into(),
                }),
                ..VolumeProjection::default()
            },
            VolumeProjection {
                config_map: Some(ConfigMapProjection {
                    name: "kube-root-ca.crt".into(),
                    items: Some(vec![KeyToPath {
                        key: "ca.crt".into(),
                        path: "ca.crt".into(),
                        mode: None,
                    }]),
                    optional: None,
                }),
                ..VolumeProjection::default()
            },
            VolumeProjection {
                downward_api: Some(DownwardAPIProjection {
                    items: Some(vec![DownwardAPIVolumeFile {
                        path: "namespace".into(),
                        field_ref: Some(field("metadata.namespace")),
                        ..DownwardAPIVolumeFile::default()
                    }]),
                }),
                ..VolumeProjection::default()
            },
        ]),
    }
}

fn memory_volume(name: &str) -> Volume {
    Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: Some(Quantity("8Mi".into())),
        }),
        ..Volume::default()
    }
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn field(path: &str) -> ObjectFieldSelector {
    ObjectFieldSelector { api_version: Some("v1".into()), field_path: path.into() }
}

fn field_env(name: &str, path: &str) -> EnvVar {
    let source = EnvVarSource { field_ref: Some(field(path)), ..EnvVarSource::default() };
    EnvVar { name: name.into(), value: None, value_from: Some(source) }
}

fn value_env(name: &str, value: String) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value), value_from: None }
}

fn probe(path: &str, port: u16, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::Int(port.into()),
            scheme: Some("HTTP".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(1),
        success_threshold: Some(1),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// What the `restricted` Pod Security Standard asks of a container, and a read-only root.
fn restricted(user: i64) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(user),
        run_as_group: Some(user),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".into(),
            localhost_profile: None,
        }),
        ..SecurityContext::default()
    }
}

fn resources(wanted: &Resources, guaranteed: bool) -> ResourceRequirements {
    let map = |cpu: &str, memory: &str| {
        let entries = [("cpu", cpu), ("memory", memory)];
        let set = entries.into_iter().filter(|(_, quantity)| !quantity.is_empty());
        Some(set.map(|(name, q)| (name.to_owned(), Quantity(q.to_owned()))).collect())
    };
    let limits: Option<BTreeMap<_, _>> = map(&wanted.cpu_limit, &wanted.memory_limit);
    let requests = match guaranteed && !wanted.cpu_limit.is_empty() {
        true => limits.clone(),
        false => map(&wanted.cpu_request, &wanted.memory_request),
    };
    ResourceRequirements { requests, limits, claims: None }
}

/// Whether the pod is of the quality-of-service class Guaranteed. A sidecar that asks for less than
/// its limit would move it to Burstable, and the kernel would kill it earlier.
fn is_guaranteed(pod: &PodSpec) -> bool {
    let init = pod.init_containers.iter().flatten().filter(|c| c.name != SIDECAR);
    pod.containers.iter().chain(init).all(|container| {
        let Some(resources) = &container.resources else { return false };
        ["cpu", "memory"].into_iter().all(|name| {
            let limit = resources.limits.as_ref().and_then(|limits| limits.get(name));
            let request = resources.requests.as_ref().and_then(|requests| requests.get(name));
            // A request that is not given is the limit.
            limit.is_some() && (request.is_none() || request == limit)
        })
    })
}
