//! Equal checks of one key, asked of the store as one.
//!
//! Invariant: what each of them is told is what it would have been told, had they come one after
//! another at the instant of the call.

use super::{Check, Decision, Mode, Outcome, Policy, Rule, Taken, Verdict};

/// Whether a check may share a call with equal ones: a permit has a name of its own, a slot in the
/// future a time of its own, and only a cost of 1 leaves no rest that nobody can use.
pub fn may_share(policy: &Policy, check: &Check) -> bool {
    let has_permits = policy.rules.iter().any(|rule| matches!(rule, Rule::Concurrency { .. }));
    check.mode == Mode::Enforce
        && check.cost == 1
        && check.least == 1
        && check.max_wait_us == 0
        && !has_permits
}

/// What to ask for so many of them, at least one.
pub const fn ask(many: u64) -> Check {
    Check { cost: many, least: 1, mode: Mode::Enforce, max_wait_us: 0, permit: 0 }
}

/// What the answer to [`ask`] says to the one that came `nth`, counted from 0.
pub fn told(answer: &Decision, many: u64, nth: u64) -> Decision {
    let mut told = Decision { taken: Taken::default(), ..*answer };
    if many == 1 || !matches!(answer.outcome, Outcome::Allowed { .. }) {
        return told;
    }
    let passed = answer.taken.amount;
    if nth < passed {
        let after = passed - 1 - nth;
        for Verdict { remaining, wait_us, .. } in told.verdicts.iter_mut().take(answer.count) {
            (*remaining, *wait_us) = (*remaining + after, 0);
        }
    } else {
        let waits = answer.verdicts().iter().map(|verdict| verdict.wait_us);
        told.outcome = Outcome::Limited { retry_us: waits.max().unwrap_or(0) };
    }
    told
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::ratelimit::{Algorithm, Limit, state::RateState};

    const T0: u64 = 1_800_000_000_000_000;

    fn mk_policy(limits: &[(Algorithm, u64, u32)]) -> Arc<Policy> {
        let rules = limits.iter().map(|&(algorithm, limit, window_seconds)| {
            Rule::new(&Limit { name: "l".into(), algorithm, limit, window_seconds, burst: limit })
        });
        Arc::new(Policy::new(1, rules.collect()))
    }

    /// Of a decision, without when all is back: that moves with each charge.
    fn seen(decision: &Decision) -> (Outcome, Vec<(u64, u64)>) {
        let each = |verdict: &Verdict| (verdict.remaining, verdict.wait_us);
        (decision.outcome, decision.verdicts().iter().map(each).collect())
    }

    fn algorithms() -> impl Strategy<Value = Algorithm> {
        use Algorithm::{FixedWindow, SlidingWindow, TokenBucket};
        prop_oneof![Just(TokenBucket), Just(SlidingWindow), Just(FixedWindow)]
    }

    proptest! {
        #[test]
        fn each_is_told_what_it_would_be_told_alone(
            limits in prop::collection::vec((algorithms(), 1u64..40, 1u32..90), 1..4),
            batches in prop::collection::vec((1u64..50, 0u64..30_000_000), 1..12),
        ) {
            let policy = mk_policy(&limits);
            let mut shared = RateState::new(&policy, T0);
            let mut alone = shared.clone();
            let mut now = T0;
            for (many, later) in batches {
                now += later;
                let answer = shared.check(&policy, now, &ask(many));
                for nth in 0..many {
                    let by_itself = alone.check(&policy, now, &ask(1));
                    prop_assert_eq!(seen(&told(&answer, many, nth)), seen(&by_itself));
                }
                prop_assert_eq!(&shared, &alone);
            }
        }
    }

    #[test]
    fn what_has_a_name_or_a_slot_of_its_own_is_asked_alone() {
        let policy = mk_policy(&[(Algorithm::TokenBucket, 5, 1)]);
        assert!(may_share(&policy, &ask(1)));
        for other in [
            Check { cost: 2, least: 2, ..ask(1) },
            Check { max_wait_us: 1, ..ask(1) },
            Check { mode: Mode::Peek, ..ask(1) },
            ask(2),
        ] {
            assert!(!may_share(&policy, &other), "{other:?}");
        }
        let with_permits =
            mk_policy(&[(Algorithm::TokenBucket, 5, 1), (Algorithm::Concurrency, 5, 1)]);
        assert!(!may_share(&with_permits, &ask(1)));
    }
}
