//! RateLimit: how much may be done in how long.

use std::collections::BTreeSet;

use holdfast_core::{
    ClassName,
    ratelimit::{
        self, MAX_BURST_FACTOR, MAX_LIMIT, MAX_LIMITS, MAX_PERMITS, MAX_WINDOW_SECONDS,
        RateLimitConfig,
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lock::AccessSpec;
use crate::validate::{FieldError, Resolved, Validate};

/// Limits on how much pods may do in how long, checked by name through their sidecar.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "holdfast.dev",
    version = "v1alpha1",
    kind = "RateLimit",
    plural = "ratelimits",
    shortname = "rl",
    category = "holdfast",
    namespaced,
    status = "RateLimitStatus",
    derive = "PartialEq",
    doc = "Limits on how much pods may do in how long, checked by name through their sidecar. All limits of a RateLimit are charged together, or none.",
    printcolumn(json_path = r#".status.conditions[?(@.type=="Ready")].status"#, name = "Ready", type_ = "string"),
    printcolumn(json_path = ".spec.limits[0].limit", name = "Limit", type_ = "integer"),
    printcolumn(json_path = ".spec.limits[0].windowSeconds", name = "Window", type_ = "integer"),
    printcolumn(json_path = ".spec.limits[0].algorithm", name = "Algorithm", type_ = "string"),
    printcolumn(json_path = ".status.limited", name = "Limited", type_ = "integer"),
    printcolumn(json_path = ".spec.backend", name = "Backend", type_ = "string"),
    printcolumn(json_path = ".status.guarantee", name = "Guarantee", type_ = "string"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$')")
        .message("metadata.name must have at most 52 characters of a-z, 0-9 and '-'")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.backend != 'lease'")
        .message("a rate limit cannot live on Leases, each check would be a write to etcd: set backend to the name of a Redis Backend"),
    validation = Rule::new("self.backend != 'memory'")
        .message("the memory backend exists in `holdfast dev` only: set backend to the name of a Redis Backend"),
    validation = Rule::new("!has(self.localSharePercent) || self.onBackendFailure == 'Local'")
        .message("localSharePercent goes with onBackendFailure: Local only: leave it out"),
    validation = Rule::new("!has(self.leased) || self.accuracy == 'Leased'")
        .message("leased goes with accuracy: Leased only: leave it out"),
    validation = Rule::new("self.accuracy != 'Leased' || self.limits.all(l, l.algorithm != 'Concurrency')")
        .message("a Concurrency limit cannot be Leased, its permits have names: use accuracy Exact")
)]
pub struct RateLimitSpec {
    /// The name of a Redis Backend. Cannot be changed, because what was spent would be forgotten.
    #[x_kube(validation = Rule::new("self == oldSelf").message("backend cannot be changed: what was spent would be forgotten; create a new RateLimit"))]
    #[schemars(length(min = 1, max = 63))]
    pub backend: String,
    /// The limits. A check passes when all of them allow it, and is then charged to all of them.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_string()]))]
    #[schemars(length(min = 1, max = 8))]
    pub limits: Vec<LimitSpec>,
    /// What a sidecar does while the store does not answer: `Closed` answers 503, `Open` lets
    /// everything pass, `Local` enforces `localSharePercent` of each limit in each pod.
    #[serde(default)]
    pub on_backend_failure: OnBackendFailure,
    /// With `Local`: how much of each limit a pod admits by itself, at least 1; 20 when absent. For
    /// no more than the limit together, set it to 100 divided by the number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub local_share_percent: Option<u32>,
    /// `Exact` asks the store for each check. `Leased` takes tokens in batches and serves checks from
    /// memory; status.overAdmission says how much more may pass.
    #[serde(default)]
    pub accuracy: Accuracy,
    /// The terms of `Leased`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leased: Option<LeasedSpec>,
    /// Count and show, but let everything pass: to try a limit out.
    #[serde(default)]
    pub shadow: bool,
    /// Who may do what. Empty: every ServiceAccount of the namespace may check.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub access: Vec<AccessSpec>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.burst) || self.algorithm == 'TokenBucket'")
        .message("burst goes with TokenBucket only: leave it out"),
    validation = Rule::new("!has(self.burst) || self.burst <= 100 * self.limit")
        .message("burst must be at most 100 times the limit: use a longer window with a higher limit"),
    validation = Rule::new("self.algorithm != 'Concurrency' || self.limit <= 1000")
        .message("a Concurrency limit is at most 1000, because each permit is kept by name")
)]
pub struct LimitSpec {
    /// Its name in headers and problems.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// How it counts: `TokenBucket` (even refill, bursts up to `burst`), `SlidingWindow`,
    /// `FixedWindow` (twice the limit may pass around an edge), `Concurrency` (at the same time).
    #[serde(default)]
    pub algorithm: Algorithm,
    /// How much per window; with Concurrency how much at the same time.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub limit: u32,
    /// Seconds; with Concurrency how long a permit lasts that is not released.
    #[schemars(range(min = 1, max = 2_678_400))]
    pub window_seconds: u32,
    /// How much at once, for TokenBucket; the limit when absent. More than this in one check is
    /// refused for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: Option<u32>,
}

/// How a limit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// Up to `burst` at once, refilled evenly.
    #[default]
    TokenBucket,
    /// A window that slides, estimated from two aligned ones.
    SlidingWindow,
    /// Windows aligned to the epoch.
    FixedWindow,
    /// So many at the same time.
    Concurrency,
}

/// What happens when the store does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnBackendFailure {
    /// Everything passes.
    Open,
    /// 503.
    #[default]
    Closed,
    /// A share of each limit, enforced by each pod.
    Local,
}

/// Whether each check asks the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Accuracy {
    /// It does.
    #[default]
    Exact,
    /// Checks are served from tokens that were taken in batches.
    Leased,
}

/// How tokens are taken in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeasedSpec {
    /// The most tokens that a sidecar has in hand for a key. It takes fewer where fewer are used.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 100_000))]
    pub batch: u32,
    /// For how many seconds a sidecar uses what it took, at most the shortest window.
    #[serde(default = "default_staleness")]
    #[schemars(range(min = 1, max = 60))]
    pub max_staleness_seconds: u32,
}

const fn default_batch() -> u32 {
    20
}

const fn default_staleness() -> u32 {
    1
}

impl Default for LeasedSpec {
    fn default() -> Self {
        LeasedSpec { batch: default_batch(), max_staleness_seconds: default_staleness() }
    }
}

/// The share of a pod that is not told its own.
const DEFAULT_SHARE: u32 = 20;

/// What the operator observed.
#[derive(Clone, Debug, Default, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the limits can be checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// How many keys are at a limit, as far as the operator looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited: Option<u32>,
    /// What a decision promises; see docs/guarantees.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<String>,
    /// With accuracy `Leased`: how much more than the limits say may pass in any window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_admission: Option<String>,
}

impl RateLimitSpec {
    fn check_modes(&self, errors: &mut Vec<FieldError>) {
        let mut refuse = |field: &str, why: &str| {
            errors.push(FieldError::new(format!("spec.{field}"), why));
        };
        match (self.on_backend_failure, self.local_share_percent) {
            (OnBackendFailure::Local, Some(1..=100) | None) => {}
            (OnBackendFailure::Local, Some(_)) => refuse("localSharePercent", "must be 1 to 100"),
            (OnBackendFailure::Open | OnBackendFailure::Closed, Some(_)) => {
                refuse("localSharePercent", "goes with onBackendFailure: Local only: leave it out")
            }
            (OnBackendFailure::Open | OnBackendFailure::Closed, None) => {}
        }
        if self.accuracy == Accuracy::Exact {
            if self.leased.is_some() {
                refuse("leased", "goes with accuracy: Leased only: leave it out");
            }
            return;
        }
        let LeasedSpec { batch, max_staleness_seconds } = self.leased.unwrap_or_default();
        if !(1..=100_000).contains(&batch) {
            refuse("leased.batch", "must be 1 to 100000");
        }
        let shortest = self.limits.iter().map(|limit| limit.window_seconds).min().unwrap_or(1);
        if max_staleness_seconds == 0 || max_staleness_seconds > shortest.min(60) {
            let why = "must be 1 to 60, and at most the shortest windowSeconds";
            refuse("leased.maxStalenessSeconds", why);
        }
        if self.limits.iter().any(|limit| limit.algorithm == Algorithm::Concurrency) {
            let why =
                "cannot be Leased with a Concurrency limit, its permits have names: use Exact";
            refuse("accuracy", why);
        }
    }

    fn core_accuracy(&self) -> ratelimit::Accuracy {
        let LeasedSpec { batch, max_staleness_seconds } = self.leased.unwrap_or_default();
        match self.accuracy {
            Accuracy::Exact => ratelimit::Accuracy::Exact,
            Accuracy::Leased => {
                ratelimit::Accuracy::Leased { batch: batch.into(), max_staleness_seconds }
            }
        }
    }
}

/// As the schema says: what fits into a header without escapes.
fn is_limit_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (first, last) = (name.bytes().next(), name.bytes().next_back());
    name.len() <= 63
        && name.bytes().all(|byte| is_word(byte) || byte == b'-')
        && first.is_some_and(is_word)
        && last.is_some_and(is_word)
}

impl LimitSpec {
    fn check(&self, refuse: &mut impl FnMut(&str, &str)) {
        let limit = u64::from(self.limit);
        if !(1..=MAX_LIMIT).contains(&limit) {
            refuse("limit", "must be 1 to 100000000");
        }
        if !(1..=MAX_WINDOW_SECONDS).contains(&self.window_seconds) {
            refuse("windowSeconds", "must be 1 to 2678400 (31 days)");
        }
        if !is_limit_name(&self.name) {
            let why = "must have 1 to 63 characters of a-z, 0-9 and '-', and neither start nor end with '-'";
            refuse("name", why);
        }
        let is_bucket = self.algorithm == Algorithm::TokenBucket;
        match self.burst {
            Some(_) if !is_bucket => refuse("burst", "goes with TokenBucket only: leave it out"),
            Some(0) => refuse("burst", "must be at least 1"),
            Some(burst) if u64::from(burst) > MAX_BURST_FACTOR * limit => refuse(
                "burst",
                "must be at most 100 times the limit: use a longer window with a higher limit",
            ),
            Some(_) | None => {}
        }
        if self.algorithm == Algorithm::Concurrency && limit > MAX_PERMITS {
            refuse("limit", "of Concurrency is at most 1000, because each permit is kept by name");
        }
    }

    fn limit(&self) -> ratelimit::Limit {
        ratelimit::Limit {
            name: self.name.clone(),
            algorithm: match self.algorithm {
                Algorithm::TokenBucket => ratelimit::Algorithm::TokenBucket,
                Algorithm::SlidingWindow => ratelimit::Algorithm::SlidingWindow,
                Algorithm::FixedWindow => ratelimit::Algorithm::FixedWindow,
                Algorithm::Concurrency => ratelimit::Algorithm::Concurrency,
            },
            limit: u64::from(self.limit),
            window_seconds: self.window_seconds,
            burst: u64::from(self.burst.unwrap_or(self.limit)),
        }
    }
}

impl Validate for RateLimit {
    type Config = RateLimitConfig;

    fn backend(&self) -> &str {
        &self.spec.backend
    }

    fn access(&self) -> &[AccessSpec] {
        &self.spec.access
    }

    fn validate(&self, _: &Resolved) -> Result<RateLimitConfig, Vec<FieldError>> {
        let spec = &self.spec;
        let mut errors = Vec::new();
        if let Err(why) = ClassName::new(self.name_any()) {
            errors.push(FieldError::new("metadata.name", why.to_string()));
        }
        if !(1..=MAX_LIMITS).contains(&spec.limits.len()) {
            errors.push(FieldError::new("spec.limits", "must be 1 to 8"));
        }
        let mut names = BTreeSet::new();
        for (i, limit) in spec.limits.iter().enumerate() {
            let mut refuse = |field: &str, why: &str| {
                errors.push(FieldError::new(format!("spec.limits[{i}].{field}"), why));
            };
            limit.check(&mut refuse);
            if !names.insert(&limit.name) {
                refuse("name", "is there twice");
            }
        }
        spec.check_modes(&mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(RateLimitConfig {
            generation: self.metadata.generation.unwrap_or(1),
            limits: spec.limits.iter().map(LimitSpec::limit).collect(),
            on_backend_failure: match spec.on_backend_failure {
                OnBackendFailure::Open => ratelimit::OnBackendFailure::Open,
                OnBackendFailure::Closed => ratelimit::OnBackendFailure::Closed,
                OnBackendFailure::Local => ratelimit::OnBackendFailure::Local {
                    share_percent: spec.local_share_percent.unwrap_or(DEFAULT_SHARE),
                },
            },
            shadow: spec.shadow,
            accuracy: spec.core_accuracy(),
        })
    }
}

#[cfg(test)]
mod tests;
