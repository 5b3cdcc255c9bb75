//! What a process enforces by itself while the store is away: a share of each limit.
//!
//! **Bound**: while the store is away, a process admits in any window what the share admits, so all
//! of them together at most `processes * max(1, limit * share)`, beside what the store had admitted
//! before. With `share = 100 / processes` that is the limit itself.

use super::{Policy, Rule};

/// The share of a policy. Each limit stays at least 1, or nothing would ever pass.
pub fn of(policy: &Policy, percent: u32) -> Policy {
    let percent = u64::from(percent.clamp(1, 100));
    let part = |whole: u64| (whole * percent / 100).max(1);
    let rules = policy.rules.iter().map(|rule| match *rule {
        // The rate is exact where it can be: less drains, or a unit weighs more.
        Rule::TokenBucket { unit, drain, burst } => {
            let (unit, drain) = if drain * percent % 100 == 0 {
                (unit, drain * percent / 100)
            } else {
                ((unit * 100).div_ceil(percent), drain)
            };
            Rule::TokenBucket { unit, drain, burst: part(burst) }
        }
        Rule::SlidingWindow { limit, window_us } => {
            Rule::SlidingWindow { limit: part(limit), window_us }
        }
        Rule::FixedWindow { limit, window_us } => {
            Rule::FixedWindow { limit: part(limit), window_us }
        }
        Rule::Concurrency { limit, ttl_us } => Rule::Concurrency { limit: part(limit), ttl_us },
    });
    Policy::new(policy.generation, rules.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ratelimit::{Algorithm, Limit};

    proptest! {
        #[test]
        fn a_share_is_never_more_than_its_part_or_one(
            limit in 1u64..=100_000_000, window_seconds in 1u32..=2_678_400,
            times in 1u64..=100, percent in 1u32..=100,
        ) {
            let burst = limit * times;
            let algorithm = Algorithm::TokenBucket;
            let limit = Limit { name: "l".into(), algorithm, limit, window_seconds, burst };
            let whole = Policy::new(1, vec![Rule::new(&limit)]);
            let share = of(&whole, percent);
            let (Rule::TokenBucket { unit, drain, burst }, Rule::TokenBucket { unit: u, drain: d, .. }) =
                (share.rules[0], whole.rules[0]) else { return Err(TestCaseError::fail("a bucket")) };
            prop_assert!(burst <= (limit.burst * u64::from(percent) / 100).max(1));
            // drain / unit <= d / u * percent / 100
            let (ours, theirs) = (
                u128::from(drain) * u128::from(u) * 100,
                u128::from(d) * u128::from(unit) * u128::from(percent),
            );
            prop_assert!(ours <= theirs);
            // Levels stay exact in a double.
            prop_assert!(2 * burst * unit < 1 << 53);
        }
    }
}
