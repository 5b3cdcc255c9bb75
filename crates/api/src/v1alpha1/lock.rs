//! Lock: mutual exclusion with fencing tokens.

use holdfast_core::{
    ClassName, Fence, Key, Substrate,
    lock::{self, Keys, LockConfig},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validate::{FieldError, Resolved, Validate, check_access};

/// A lock that pods take by name through their sidecar, with fencing tokens that only grow.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "holdfast.dev",
    version = "v1alpha1",
    kind = "Lock",
    plural = "locks",
    shortname = "lck",
    category = "holdfast",
    namespaced,
    status = "LockStatus",
    derive = "PartialEq",
    doc = "A lock that pods take by name through their sidecar. Each grant carries a fencing token that only grows; a resource that checks it accepts no stale holder.",
    printcolumn(json_path = r#".status.conditions[?(@.type=="Ready")].status"#, name = "Ready", type_ = "string"),
    printcolumn(json_path = ".status.holders[0].pod", name = "Holder", type_ = "string"),
    printcolumn(json_path = ".status.holders[0].fence", name = "Fence", type_ = "string"),
    printcolumn(json_path = ".status.waiting", name = "Waiting", type_ = "integer"),
    printcolumn(json_path = ".spec.backend", name = "Backend", type_ = "string"),
    printcolumn(json_path = ".status.guarantee", name = "Guarantee", type_ = "string"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$')")
        .message("metadata.name must have at most 52 characters of a-z, 0-9 and '-'")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.maxHoldSeconds) || self.maxHoldSeconds >= self.ttlSeconds")
        .message("maxHoldSeconds must not be less than ttlSeconds"),
    validation = Rule::new("!has(self.maxHoldSeconds) || self.minHoldSeconds <= self.maxHoldSeconds")
        .message("minHoldSeconds must not be greater than maxHoldSeconds"),
    validation = Rule::new("self.backend != 'lease' || !has(self.fairness) || self.fairness != 'Fifo'")
        .message("the lease backend cannot promise an order: leave fairness out, set it to None, or choose a Redis backend"),
    validation = Rule::new("self.backend != 'lease' || self.consistency == 'Strict'")
        .message("the lease backend is always Strict: leave consistency out, or choose a Redis backend"),
    validation = Rule::new("self.backend != 'memory'")
        .message("the memory backend exists in `holdfast dev` only: use lease, or the name of a Backend")
)]
pub struct LockSpec {
    /// Where the lock lives: `lease` (the API server's etcd; the default), or the name of a Backend.
    /// Cannot be changed, because fences of two stores are not comparable.
    #[serde(default = "default_backend")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("backend cannot be changed: fences of two stores are not comparable; create a new Lock"))]
    #[schemars(length(min = 1, max = 63))]
    pub backend: String,
    /// Seconds a hold lasts without a renewal. A crashed holder blocks the lock for at most so long.
    #[serde(default = "default_ttl")]
    #[schemars(range(min = 1, max = 86400))]
    pub ttl_seconds: u32,
    /// Seconds a hold may last at the most, renewals included. No bound when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604800))]
    pub max_hold_seconds: Option<u32>,
    /// A hold released earlier than this keeps the lock until then: a job that must not run twice in
    /// a minute on pods whose clocks differ sets 60.
    #[serde(default)]
    #[schemars(range(min = 0, max = 86400))]
    pub min_hold_seconds: u32,
    /// Seconds nobody is granted the lock after a hold expired; never after a release. Time for what
    /// a lost holder still has under way to come to an end.
    #[serde(default)]
    #[schemars(range(min = 0, max = 86400))]
    pub lock_delay_seconds: u32,
    /// The keys of the lock. On `lease` a fixed list (each key is a Lease object), by default the one
    /// key `default`. On Redis any key may be used when the list is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub keys: Vec<String>,
    /// Limits on those who wait.
    #[serde(default)]
    pub queue: QueueSpec,
    /// In what order waiters are served: `Fifo` (the default on Redis) or `None` (all that `lease`
    /// can do: the first conditional write wins).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fairness: Option<Fairness>,
    /// What happens while a Redis may have lost data: `Strict` grants nothing until the operator has
    /// opened a new epoch, `BestEffort` goes on and may overlap.
    #[serde(default)]
    pub consistency: Consistency,
    /// Who may do what. Empty: every ServiceAccount of the namespace may use the lock.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub access: Vec<AccessSpec>,
}

/// Limits on those who wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueSpec {
    /// How many may wait on one key; more are refused at once.
    #[serde(default = "default_max_waiters")]
    #[schemars(range(min = 0, max = 10000))]
    pub max_waiters: u32,
}

impl Default for QueueSpec {
    fn default() -> Self {
        QueueSpec { max_waiters: default_max_waiters() }
    }
}

/// The order of waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Fairness {
    /// First come, first served.
    Fifo,
    /// No promise.
    None,
}

/// What happens while an epoch is in doubt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Consistency {
    /// No grants.
    #[default]
    Strict,
    /// Grants that may overlap.
    BestEffort,
}

/// One rule of access.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessSpec {
    /// Names of ServiceAccounts of this namespace.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))
    )]
    pub service_accounts: Vec<String>,
    /// What they may do: `Acquire` (and renew and release), `Read`, `ForceRelease`. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<Verb>,
    /// Only on keys that start with this. Empty: all keys.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub key_prefix: String,
}

/// What can be permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verb {
    /// Acquire, renew and release.
    Acquire,
    /// Query.
    Read,
    /// Take from another by force.
    ForceRelease,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LockStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the lock can be used. Whether it is held does not matter to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// The first ten holders, by key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<HolderStatus>,
    /// How many keys are held.
    #[serde(default)]
    pub held: u32,
    /// How many wait, on all keys. Absent on Leases: each sidecar alone knows who waits in its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
    /// What a grant promises; see docs/guarantees.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<String>,
}

/// One holder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HolderStatus {
    /// Which key.
    pub key: String,
    /// Whose pod.
    pub pod: String,
    /// The fencing token.
    pub fence: String,
    /// Since when, by the operator's clock.
    pub since: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
}

fn default_backend() -> String {
    crate::bundle::LEASE_BACKEND.into()
}

fn default_ttl() -> u32 {
    15
}

fn default_max_waiters() -> u32 {
    1_000
}

impl Validate for Lock {
    type Config = LockConfig;

    fn backend(&self) -> &str {
        &self.spec.backend
    }

    fn access(&self) -> &[AccessSpec] {
        &self.spec.access
    }

    fn validate(&self, on: &Resolved) -> Result<LockConfig, Vec<FieldError>> {
        let spec = &self.spec;
        let mut errors = check_access(&spec.access);
        let mut refuse = |field: &str, why: &str| errors.push(FieldError::new(field, why));
        if let Err(why) = ClassName::new(self.name_any()) {
            refuse("metadata.name", &why.to_string());
        }
        if !(1..=86_400).contains(&spec.ttl_seconds) {
            refuse("spec.ttlSeconds", "must be 1 to 86400");
        }
        if spec.max_hold_seconds.is_some_and(|max| max < spec.ttl_seconds) {
            refuse("spec.maxHoldSeconds", "must not be less than ttlSeconds");
        }
        if spec.max_hold_seconds.is_some_and(|max| max < spec.min_hold_seconds) {
            refuse("spec.minHoldSeconds", "must not be greater than maxHoldSeconds");
        }
        if spec.min_hold_seconds > 86_400 {
            refuse("spec.minHoldSeconds", "must be 0 to 86400");
        }
        if spec.lock_delay_seconds > 86_400 {
            refuse("spec.lockDelaySeconds", "must be 0 to 86400");
        }
        if spec.queue.max_waiters > 10_000 {
            refuse("spec.queue.maxWaiters", "must be 0 to 10000");
        }
        if spec.keys.len() > 64 {
            refuse("spec.keys", "must be at most 64");
        }
        let on_lease = spec.backend == crate::bundle::LEASE_BACKEND;
        if on_lease && spec.fairness == Some(Fairness::Fifo) {
            refuse(
                "spec.fairness",
                "the lease backend cannot promise an order: leave fairness out, set it to None, \
                 or choose a Redis backend",
            );
        }
        if on_lease && spec.consistency == Consistency::BestEffort {
            refuse(
                "spec.consistency",
                "the lease backend is always Strict: leave consistency out, or choose a Redis \
                 backend",
            );
        }
        if spec.backend == crate::bundle::MEMORY_BACKEND {
            refuse(
                "spec.backend",
                "the memory backend exists in `holdfast dev` only: use lease, or the name of a \
                 Backend",
            );
        }
        let mut keys = Vec::new();
        for (i, key) in spec.keys.iter().enumerate() {
            match Key::new(key) {
                Ok(key) if keys.contains(&key) => {
                    refuse(&format!("spec.keys[{i}]"), "is there twice");
                }
                Ok(key) => keys.push(key),
                Err(why) => refuse(&format!("spec.keys[{i}]"), &why.to_string()),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let keys = match (keys.is_empty(), on_lease) {
            (false, _) => Keys::Fixed(keys),
            (true, true) => Keys::Fixed(vec![Key::default_key()]),
            (true, false) => Keys::Any,
        };
        Ok(LockConfig {
            generation: self.metadata.generation.unwrap_or(1),
            ttl_ms: u64::from(spec.ttl_seconds) * 1_000,
            max_hold_ms: u64::from(spec.max_hold_seconds.unwrap_or(0)) * 1_000,
            min_hold_ms: u64::from(spec.min_hold_seconds) * 1_000,
            lock_delay_ms: u64::from(spec.lock_delay_seconds) * 1_000,
            permits: 1,
            max_per_holder: 0,
            keys,
            max_waiters: spec.queue.max_waiters,
            fairness: match (spec.fairness, on.substrate) {
                (Some(Fairness::None), _) | (None, Substrate::Lease) => lock::Fairness::None,
                (Some(Fairness::Fifo), _) | (None, Substrate::Memory | Substrate::Redis) => {
                    lock::Fairness::Fifo
                }
            },
            consistency: match spec.consistency {
                Consistency::Strict => lock::Consistency::Strict,
                Consistency::BestEffort => lock::Consistency::BestEffort,
            },
            fence_floor: Fence::new(on.fence_floor),
        })
    }
}
