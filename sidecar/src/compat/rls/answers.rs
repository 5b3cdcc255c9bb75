//! What a decision looks like to Envoy.

use holdfast_core::ratelimit::{Limit, Outcome};
use holdfast_peers::{
    prost_types::Duration,
    rls::rate_limit_response::{Code as Verdict, DescriptorStatus, RateLimit, rate_limit::Unit},
};

use super::Answer;
use crate::service::Checked;

/// Nothing limits it.
pub(super) fn mk_ok() -> Answer {
    let status = DescriptorStatus { code: Verdict::Ok.into(), ..DescriptorStatus::default() };
    Answer { status, retry_seconds: None }
}

/// A decision, shown by its tightest limit.
pub(super) fn mk_answer(checked: &Checked) -> Answer {
    let mut answer = mk_ok();
    let (is_over, retry_us) = match checked.decision.outcome {
        Outcome::Allowed { .. } => (false, None),
        Outcome::Limited { retry_us } => (true, Some(retry_us)),
        Outcome::TooLarge => (true, None),
    };
    if is_over && !checked.class.config.shadow {
        answer.status.code = Verdict::OverLimit.into();
        // Earlier would be too early.
        answer.retry_seconds = retry_us.map(|us| us.div_ceil(1_000_000).max(1));
    }
    let limits = checked.class.config.limits.iter().zip(checked.decision.verdicts());
    // What refuses for the longest, else what has the least left.
    let tightest =
        limits.max_by_key(|(_, verdict)| (verdict.wait_us, u64::MAX - verdict.remaining));
    if let Some((limit, verdict)) = tightest {
        answer.status.limit_remaining = small(verdict.remaining);
        answer.status.duration_until_reset = Some(Duration {
            seconds: (verdict.reset_us / 1_000_000) as i64,
            nanos: (verdict.reset_us % 1_000_000) as i32 * 1_000,
        });
        answer.status.current_limit = Some(RateLimit {
            name: format!("{}/{}", checked.class.name, limit.name),
            requests_per_unit: small(limit.limit),
            unit: unit_of(limit).into(),
        });
    }
    answer
}

/// Whether a limit has less than a fifth left.
pub(super) fn is_near(checked: &Checked) -> bool {
    let rules = checked.class.policy.rules.iter().zip(checked.decision.verdicts());
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
