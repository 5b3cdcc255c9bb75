//! What a decision looks like to Envoy, and how it is counted.

use holdfast_core::{
    ClassName,
    ratelimit::{Limit, Outcome, RateLimitConfig},
};
use holdfast_peers::{
    prost_types::Duration,
    rls::{
        HeaderValue, RateLimitResponse,
        rate_limit_response::{Code as Verdict, DescriptorStatus, RateLimit, rate_limit::Unit},
    },
};
use prometheus::{IntCounter, IntCounterVec};

use super::{Answer, Retry};
use crate::service::Checked;

/// What answers about a class need, resolved once.
pub struct Shown {
    limits: Vec<RateLimit>,
    within: IntCounter,
    near: IntCounter,
    over: IntCounter,
    shadowed: IntCounter,
    unchecked: IntCounter,
    pub(super) refunded: IntCounter,
    pub(super) failed: IntCounter,
}

impl Shown {
    pub(super) fn new(config: &RateLimitConfig, name: &ClassName, hits: &IntCounterVec) -> Self {
        let limit = |limit: &Limit| RateLimit {
            name: format!("{name}/{}", limit.name),
            requests_per_unit: small(limit.limit),
            unit: unit_of(limit).into(),
        };
        let outcome = |outcome: &str| hits.with_label_values(&[name.as_str(), outcome]);
        Shown {
            limits: config.limits.iter().map(limit).collect(),
            within: outcome("within"),
            near: outcome("near"),
            over: outcome("over"),
            shadowed: outcome("shadowed"),
            unchecked: outcome("unchecked"),
            refunded: outcome("refunded"),
            failed: outcome("failed"),
        }
    }

    /// Where the hits of a check are counted.
    pub(super) fn outcome(&self, checked: &Checked) -> &IntCounter {
        match checked.decision.outcome {
            // The class is open while its store is away.
            Outcome::Allowed { .. } if checked.degraded => &self.unchecked,
            Outcome::Allowed { .. } if is_near(checked) => &self.near,
            Outcome::Allowed { .. } => &self.within,
            Outcome::Limited { .. } | Outcome::TooLarge if checked.class.config.shadow => {
                &self.shadowed
            }
            Outcome::Limited { .. } | Outcome::TooLarge => &self.over,
        }
    }
}

/// Nothing limits it.
pub(super) fn mk_ok() -> Answer {
    let status = DescriptorStatus { code: Verdict::Ok.into(), ..DescriptorStatus::default() };
    Answer { status, retry: None }
}

/// A decision, shown by its tightest limit.
pub(super) fn mk_answer(shown: &Shown, checked: &Checked) -> Answer {
    let mut answer = mk_ok();
    let retry = match checked.decision.outcome {
        Outcome::Allowed { .. } => None,
        // Earlier would be too early.
        Outcome::Limited { retry_us } => Some(Retry::After(retry_us.div_ceil(1_000_000).max(1))),
        Outcome::TooLarge => Some(Retry::Never),
    };
    if retry.is_some() && !checked.class.config.shadow {
        answer.status.code = Verdict::OverLimit.into();
        answer.retry = retry;
    }
    let limits = shown.limits.iter().zip(checked.decision.verdicts());
    // What refuses for the longest, else what has the least left.
    let tightest =
        limits.max_by_key(|(_, verdict)| (verdict.wait_us, u64::MAX - verdict.remaining));
    if let Some((limit, verdict)) = tightest {
        answer.status.limit_remaining = small(verdict.remaining);
        answer.status.duration_until_reset = Some(Duration {
            seconds: (verdict.reset_us / 1_000_000) as i64,
            nanos: (verdict.reset_us % 1_000_000) as i32 * 1_000,
        });
        answer.status.current_limit = Some(limit.clone());
    }
    answer
}

/// All descriptors together: over the limit if any is, and until the last of them passes.
pub(super) fn mk_response(
    statuses: Vec<DescriptorStatus>,
    retry: Option<Retry>,
) -> RateLimitResponse {
    let header = match retry {
        Some(Retry::After(seconds)) => {
            Some(HeaderValue { key: "retry-after".into(), value: seconds.to_string() })
        }
        Some(Retry::Never) | None => None,
    };
    RateLimitResponse {
        overall_code: if retry.is_some() { Verdict::OverLimit } else { Verdict::Ok }.into(),
        statuses,
        response_headers_to_add: header.into_iter().collect(),
    }
}

/// Whether a limit has less than a fifth left.
fn is_near(checked: &Checked) -> bool {
    let rules = checked.class.plan.policy.rules.iter().zip(checked.decision.verdicts());
    rules.into_iter().any(|(rule, verdict)| verdict.remaining * 5 < rule.capacity())
}

/// Envoy knows no other windows than these.
fn unit_of(limit: &Limit) -> Unit {
    match limit.window_seconds {
        1 => Unit::Second,
        60 => Unit::Minute,
        3_600 => Unit::Hour,
        86_400 => Unit::Day,
        604_800 => Unit::Week,
        _ => Unit::Unknown,
    }
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
