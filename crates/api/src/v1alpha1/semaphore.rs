//! Semaphore: so many permits at the same time.

use holdfast_core::{
    ClassName, Fence, Key, Substrate,
    lock::{self, Keys},
    semaphore::{
        MAX_PERMITS, SemaphoreConfig,
        slots::{MAX_LEASES, MAX_SLOTS},
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lock::{AccessSpec, Consistency, Fairness, QueueSpec};
use crate::{
    bundle::{LEASE_BACKEND, MEMORY_BACKEND},
    validate::{FieldError, Resolved, Validate, check_access},
};

/// So many permits that pods take by name through their sidecar, each hold with a fencing token.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "holdfast.dev",
    version = "v1alpha1",
    kind = "Semaphore",
    plural = "semaphores",
    shortname = "sem",
    category = "holdfast",
    namespaced,
    status = "SemaphoreStatus",
    derive = "PartialEq",
    doc = "So many permits that pods take by name through their sidecar. Each hold has its own expiry and a fencing token that only grows; permits of a dead pod come back by themselves.",
    printcolumn(json_path = r#".status.conditions[?(@.type=="Ready")].status"#, name = "Ready", type_ = "string"),
    printcolumn(json_path = ".status.used", name = "Used", type_ = "integer"),
    printcolumn(json_path = ".spec.permits", name = "Permits", type_ = "integer"),
    printcolumn(json_path = ".status.waiting", name = "Waiting", type_ = "integer"),
    printcolumn(json_path = ".spec.backend", name = "Backend", type_ = "string"),
    printcolumn(json_path = ".status.guarantee", name = "Guarantee", type_ = "string"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$')")
        .message("metadata.name must have at most 52 characters of a-z, 0-9 and '-'")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.maxPerHolder) || self.maxPerHolder <= self.permits")
        .message("maxPerHolder must not be greater than permits"),
    validation = Rule::new("!has(self.maxHoldSeconds) || self.maxHoldSeconds >= self.ttlSeconds")
        .message("maxHoldSeconds must not be less than ttlSeconds"),
    validation = Rule::new("self.backend != 'lease' || self.permits <= 64")
        .message("on the lease backend a semaphore has at most 64 permits, each is a Lease object: lower permits, or set backend to the name of a Redis Backend"),
    validation = Rule::new("self.backend != 'lease' || !has(self.keys) || self.permits * size(self.keys) <= 256")
        .message("on the lease backend permits times keys is at most 256, each is a Lease object: lower one of them, or set backend to the name of a Redis Backend"),
    validation = Rule::new("self.backend != 'lease' || !has(self.fairness) || self.fairness != 'Fifo'")
        .message("the lease backend cannot promise an order: leave fairness out, set it to None, or choose a Redis backend"),
    validation = Rule::new("self.backend != 'lease' || self.consistency == 'Strict'")
        .message("the lease backend is always Strict: leave consistency out, or choose a Redis backend"),
    validation = Rule::new("self.backend != 'memory'")
        .message("the memory backend exists in `holdfast dev` only: use lease, or the name of a Backend")
)]
pub struct SemaphoreSpec {
    /// Where the semaphore lives: the name of a Backend, or `lease` (the API server's etcd: up to 64
    /// permits, each hold has one). Cannot be changed, because fences of two stores are not comparable.
    #[x_kube(validation = Rule::new("self == oldSelf").message("backend cannot be changed: fences of two stores are not comparable; create a new Semaphore"))]
    #[schemars(length(min = 1, max = 63))]
    pub backend: String,
    /// How many permits of one key may be held at the same time; at most 64 on `lease`, where each is a
    /// Lease object. May be changed at any time: fewer take nothing away, they only stop grants until
    /// enough holds have ended.
    #[schemars(range(min = 1, max = 10000))]
    pub permits: u32,
    /// How many of them one pod may hold at the same time. No bound of its own when absent. Who has
    /// its share waits without holding up others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_per_holder: Option<u32>,
    /// Seconds a hold lasts without a renewal. The permits of a crashed pod are back after so long at
    /// the latest.
    #[serde(default = "default_ttl")]
    #[schemars(range(min = 1, max = 86400))]
    pub ttl_seconds: u32,
    /// Seconds a hold may last at the most, renewals included. No bound when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604800))]
    pub max_hold_seconds: Option<u32>,
    /// The keys of the semaphore, each with permits of its own. When the list is empty: any key may be
    /// used on Redis, and on `lease` there is the one key `default`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub keys: Vec<String>,
    /// Limits on those who wait.
    #[serde(default)]
    pub queue: QueueSpec,
    /// In what order waiters are served: `Fifo` (the default on Redis; a heavy request is not overtaken
    /// by light ones) or `None` (whoever fits goes first; all that `lease` can do between pods).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fairness: Option<Fairness>,
    /// What happens while a Redis may have lost data: `Strict` grants nothing until the operator has
    /// opened a new epoch, `BestEffort` goes on, and more permits may be out than there are.
    #[serde(default)]
    pub consistency: Consistency,
    /// Who may do what. Empty: every ServiceAccount of the namespace may use the semaphore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub access: Vec<AccessSpec>,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SemaphoreStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the semaphore can be used. Whether permits are left does not matter to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// The first ten holders, by key and age.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<PermitHolderStatus>,
    /// How many holds there are, on all keys.
    #[serde(default)]
    pub held: u32,
    /// How many permits they have.
    #[serde(default)]
    pub used: u32,
    /// How many wait, on all keys.
    #[serde(default)]
    pub waiting: u32,
    /// What a grant promises; see docs/guarantees.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<String>,
}

/// One holder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PermitHolderStatus {
    /// Which key.
    pub key: String,
    /// Whose pod.
    pub pod: String,
    /// How many permits.
    pub permits: u32,
    /// The fencing token; it also names the hold to be taken by force.
    pub fence: String,
    /// Since when, by the operator's clock.
    pub since: Time,
}

fn default_ttl() -> u32 {
    15
}

impl SemaphoreSpec {
    fn check(&self, refuse: &mut impl FnMut(&str, &str)) {
        if !(1..=MAX_PERMITS).contains(&self.permits) {
            refuse("spec.permits", "must be 1 to 10000");
        }
        match self.max_per_holder {
            Some(0) => refuse("spec.maxPerHolder", "must be at least 1; leave it out for no bound"),
            Some(max) if max > self.permits => {
                refuse("spec.maxPerHolder", "must not be greater than permits");
            }
            Some(_) | None => {}
        }
        if !(1..=86_400).contains(&self.ttl_seconds) {
            refuse("spec.ttlSeconds", "must be 1 to 86400");
        }
        if self.max_hold_seconds.is_some_and(|max| max < self.ttl_seconds) {
            refuse("spec.maxHoldSeconds", "must not be less than ttlSeconds");
        }
        if self.queue.max_waiters > 10_000 {
            refuse("spec.queue.maxWaiters", "must be 0 to 10000");
        }
        if self.keys.len() > 64 {
            refuse("spec.keys", "must be at most 64");
        }
        if self.backend == LEASE_BACKEND {
            self.check_lease(refuse);
        }
        if self.backend == MEMORY_BACKEND {
            refuse(
                "spec.backend",
                "the memory backend exists in `holdfast dev` only: use lease, or the name of a \
                 Backend",
            );
        }
    }

    /// What Leases cannot do.
    fn check_lease(&self, refuse: &mut impl FnMut(&str, &str)) {
        if self.permits > MAX_SLOTS {
            refuse(
                "spec.permits",
                "must be at most 64 on the lease backend, where each is a Lease object: lower it, or \
                 set backend to the name of a Redis Backend",
            );
        }
        if u64::from(self.permits) * self.keys.len() as u64 > u64::from(MAX_LEASES) {
            refuse(
                "spec.keys",
                "permits times keys must be at most 256 on the lease backend, where each is a Lease \
                 object: lower one of them, or set backend to the name of a Redis Backend",
            );
        }
        if self.fairness == Some(Fairness::Fifo) {
            refuse(
                "spec.fairness",
                "the lease backend cannot promise an order: leave fairness out, set it to None, or \
                 choose a Redis backend",
            );
        }
        if self.consistency == Consistency::BestEffort {
            refuse(
                "spec.consistency",
                "the lease backend is always Strict: leave consistency out, or choose a Redis \
                 backend",
            );
        }
    }
}

impl Validate for Semaphore {
    type Config = SemaphoreConfig;

    fn backend(&self) -> &str {
        &self.spec.backend
    }

    fn access(&self) -> &[AccessSpec] {
        &self.spec.access
    }

    fn validate(&self, on: &Resolved) -> Result<SemaphoreConfig, Vec<FieldError>> {
        let spec = &self.spec;
        let mut errors = check_access(&spec.access);
        let mut refuse = |field: &str, why: &str| errors.push(FieldError::new(field, why));
        if let Err(why) = ClassName::new(self.name_any()) {
            refuse("metadata.name", &why.to_string());
        }
        spec.check(&mut refuse);
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
        Ok(SemaphoreConfig {
            generation: self.metadata.generation.unwrap_or(1),
            permits: spec.permits,
            max_per_holder: spec.max_per_holder.unwrap_or(0),
            ttl_ms: u64::from(spec.ttl_seconds) * 1_000,
            max_hold_ms: u64::from(spec.max_hold_seconds.unwrap_or(0)) * 1_000,
            keys: match (keys.is_empty(), spec.backend == LEASE_BACKEND) {
                (false, _) => Keys::Fixed(keys),
                (true, true) => Keys::Fixed(vec![Key::default_key()]),
                (true, false) => Keys::Any,
            },
            max_waiters: spec.queue.max_waiters,
            fairness: match (spec.fairness, on.substrate) {
                (Some(Fairness::None), _) | (None, Substrate::Lease) => lock::Fairness::None,
                (Some(Fairness::Fifo), _)
                | (None, Substrate::Memory | Substrate::Redis | Substrate::Redlock) => {
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
