//! RateLimits: whether their limits can be checked, and how many keys are at a limit now.

use std::time::Duration;

use holdfast_api::{
    bundle::ClassConfig,
    compile::Class,
    conditions::{Verdict, set_conditions},
    v1alpha1::{RateLimit, RateLimitStatus},
};
use holdfast_core::{Key, Kind, Substrate};
use k8s_openapi::jiff::Timestamp;
use tokio::time::{Instant, timeout};

use crate::{
    context::Context,
    error::Error,
    pipeline::{Controlled, Phase, Valid, judge},
    status,
};

/// The store is asked no more often: counts change all the time.
const LEAST: Duration = Duration::from_secs(5);
/// Asking takes at most a fiftieth of the time.
const SHARE: u32 = 50;
/// A look that takes longer is given up.
const WITHIN: Duration = Duration::from_secs(5);
/// Keys that are looked at.
const KEYS: usize = 1_000;

impl Controlled for RateLimit {
    const KIND: Kind = Kind::RateLimit;

    fn class(&self) -> Class {
        Class::RateLimit(self.clone())
    }

    /// It is never on Leases.
    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }

    async fn report(&self, ctx: &Context, phase: Phase<'_>) -> Result<Option<Duration>, Error> {
        let before = self.status.clone().unwrap_or_default();
        let mut again = None;
        let (verdict, limited, guarantee, over_admission) = match phase {
            Phase::Refused(verdict) => {
                let before = before.clone();
                (verdict, before.limited, before.guarantee, before.over_admission)
            }
            Phase::Applied(valid, applied) => {
                let asked = Instant::now();
                let limited = limited(ctx, valid).await.or(before.limited);
                again = Some(LEAST.max(asked.elapsed() * SHARE));
                let guarantee = Some(valid.guarantee.to_string());
                (judge::ready(valid, &applied), limited, guarantee, over_admission(valid))
            }
        };
        let status = RateLimitStatus {
            observed_generation: self.metadata.generation,
            conditions: conditions(self, &before, verdict),
            limited,
            guarantee,
            over_admission,
        };
        let wait = status::write(ctx, self, self.status.as_ref(), &status).await?;
        Ok([wait, again].into_iter().flatten().min())
    }
}

fn conditions(
    limit: &RateLimit,
    before: &RateLimitStatus,
    verdict: Verdict,
) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    set_conditions(&before.conditions, &[verdict], limit.metadata.generation, Timestamp::now())
}

/// How much more than the limits may pass, where sidecars take tokens in advance.
fn over_admission(valid: &Valid) -> Option<String> {
    let ClassConfig::RateLimit(config) = &valid.class.config else { return None };
    config.over_admission().map(|bound| bound.to_string())
}

/// How many keys would be refused the least there is to ask for. A store that does not answer leaves
/// things as they were: the Backend's condition tells.
async fn limited(ctx: &Context, valid: &Valid) -> Option<u32> {
    let ClassConfig::RateLimit(config) = &valid.class.config else { return None };
    let (Substrate::Redis, Some(backend)) = (valid.substrate, &valid.backend) else { return None };
    let store = ctx.stores.get(backend).ok()?;
    let policy = config.policy();
    let look = store.limited(&valid.namespace, &valid.class.name, &policy, KEYS);
    let looked = timeout(WITHIN, look).await.ok()?;
    looked.inspect_err(|error| tracing::debug!(%error, "cannot look at a rate limit")).ok()
}
