//! A RateLimit class, with all that a check needs resolved once.

use std::sync::{Arc, OnceLock};

use axum::http::HeaderValue;
use holdfast_api::{
    bundle::{AccessRule, BundleClass},
    load::did_you_mean,
};
use holdfast_backend::limiter::{Limiter, Plan};
use holdfast_core::{
    ClassName,
    ratelimit::{Algorithm, RateLimitConfig},
};
use holdfast_wire::Code;

use super::Snapshot;
use crate::{
    compat::rls::Shown,
    error::Failure,
    metrics::{Metrics, RateLimitMetrics},
};

/// A RateLimit class, ready to serve.
pub struct RateLimitClass {
    /// Its name.
    pub name: ClassName,
    /// The backend's name.
    pub backend: String,
    /// What its decisions promise.
    pub guarantee: String,
    /// Its configuration.
    pub config: RateLimitConfig,
    /// How it is served.
    pub plan: Plan,
    /// The `RateLimit-Policy` header: the same for every answer.
    pub header: Option<HeaderValue>,
    /// Whether a check takes a permit that must be released.
    pub has_permits: bool,
    /// Who may use it.
    pub access: Vec<AccessRule>,
    /// Where it lives.
    pub client: Arc<Limiter>,
    /// Its metrics.
    pub metrics: RateLimitMetrics,
    /// What an Envoy is told and counted; made when one asks.
    pub envoy: OnceLock<Shown>,
}

impl RateLimitClass {
    pub(super) fn new(
        class: &BundleClass,
        config: &RateLimitConfig,
        client: Arc<Limiter>,
        metrics: &Metrics,
    ) -> Self {
        // Names are checked to be of a-z, 0-9 and '-': they need no escapes in a structured field.
        let policies = config.limits.iter().map(|limit| match limit.algorithm {
            Algorithm::TokenBucket | Algorithm::SlidingWindow | Algorithm::FixedWindow => {
                format!("\"{}\";q={};w={}", limit.name, limit.limit, limit.window_seconds)
            }
            Algorithm::Concurrency => {
                format!("\"{}\";q={};qu=\"concurrent-requests\"", limit.name, limit.limit)
            }
        });
        let is_permits = |algorithm| algorithm == Algorithm::Concurrency;
        RateLimitClass {
            name: class.name.clone(),
            backend: class.backend.clone(),
            guarantee: client.store().guarantee().to_string(),
            plan: Plan::new(config),
            header: HeaderValue::try_from(policies.collect::<Vec<_>>().join(", ")).ok(),
            has_permits: config.limits.iter().any(|limit| is_permits(limit.algorithm)),
            config: config.clone(),
            access: class.access.clone(),
            client,
            metrics: metrics.rate_limit(class.name.as_str()),
            envoy: OnceLock::new(),
        }
    }
}

impl Snapshot {
    /// The RateLimit class of a name.
    ///
    /// # Errors
    /// 404, with the nearest name that there is.
    pub fn rate_limit(&self, name: &str) -> Result<&Arc<RateLimitClass>, Failure> {
        self.rate_limits.get(name).ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            let hint = did_you_mean(&shown, self.rate_limits.keys().map(String::as_str));
            let why = format!("there is no RateLimit \"{shown}\" here{hint}");
            Failure::new(Code::ClassNotFound, why)
        })
    }
}
