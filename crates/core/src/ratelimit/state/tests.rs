use proptest::prelude::*;

use super::*;
use crate::ratelimit::{Algorithm, Limit};

const S: u64 = 1_000_000;
const T0: u64 = 1_800_000_000 * S;

fn mk_limit(algorithm: Algorithm, limit: u64, window_seconds: u32, burst: u64) -> Limit {
    Limit { name: "l".into(), algorithm, limit, window_seconds, burst }
}

fn mk_policy(generation: i64, limits: &[Limit]) -> Arc<Policy> {
    Arc::new(Policy::new(generation, limits.iter().map(Rule::new).collect()))
}

fn mk_check(cost: u64) -> Check {
    Check { cost, mode: Mode::Enforce, max_wait_us: 0, permit: 7 }
}

fn is_allowed(decision: &Decision) -> bool {
    matches!(decision.outcome, Outcome::Allowed { .. })
}

#[test]
fn a_cost_of_the_whole_burst_fits_and_one_more_never_does() {
    let policy = mk_policy(1, &[mk_limit(Algorithm::TokenBucket, 10, 1, 5)]);
    let mut state = RateState::new(&policy, T0);
    assert_eq!(state.check(&policy, T0, &mk_check(6)).outcome, Outcome::TooLarge);
    assert_eq!(state.check(&policy, T0, &mk_check(5)).outcome, Outcome::Allowed { wait_us: 0 });
    let refused = state.check(&policy, T0, &mk_check(5));
    assert_eq!(refused.outcome, Outcome::Limited { retry_us: S / 2 });
    assert!(!is_allowed(&state.check(&policy, T0 + S / 2 - 1, &mk_check(5))));
    assert!(is_allowed(&state.check(&policy, T0 + S / 2, &mk_check(5))));
}

#[test]
fn all_limits_are_charged_or_none() {
    let limits =
        [mk_limit(Algorithm::TokenBucket, 10, 1, 10), mk_limit(Algorithm::FixedWindow, 3, 60, 3)];
    let policy = mk_policy(1, &limits);
    let mut state = RateState::new(&policy, T0);
    assert!(is_allowed(&state.check(&policy, T0, &mk_check(3))));
    let refused = state.check(&policy, T0, &mk_check(1));
    assert_eq!(refused.verdicts()[0].remaining, 7, "the first limit is not charged");
    assert!(refused.verdicts()[0].wait_us == 0 && refused.verdicts()[1].wait_us > 0);
}

#[test]
fn the_newest_class_wins_and_what_was_spent_stays_spent() {
    let old = mk_policy(1, &[mk_limit(Algorithm::TokenBucket, 100, 60, 100)]);
    let new = mk_policy(2, &[mk_limit(Algorithm::FixedWindow, 50, 60, 50)]);
    let mut state = RateState::new(&old, T0);
    assert!(is_allowed(&state.check(&old, T0, &mk_check(40))));
    let decision = state.check(&new, T0, &mk_check(1));
    assert_eq!(decision.verdicts()[0].remaining, 9);
    let stale = state.check(&old, T0, &mk_check(9));
    assert_eq!(stale.verdicts()[0].remaining, 0, "the old class is served by the new limit");
    assert!(!is_allowed(&state.check(&old, T0, &mk_check(1))));
}

#[test]
fn a_permit_is_held_until_it_is_released_or_expires() {
    let policy = mk_policy(1, &[mk_limit(Algorithm::Concurrency, 2, 10, 2)]);
    let mut state = RateState::new(&policy, T0);
    let take = |name| Check { permit: name, ..mk_check(1) };
    assert!(is_allowed(&state.check(&policy, T0, &take(1))));
    assert!(is_allowed(&state.check(&policy, T0 + S, &take(2))));
    let refused = state.check(&policy, T0 + 2 * S, &take(3));
    assert_eq!(refused.outcome, Outcome::Limited { retry_us: 8 * S });
    assert!(state.release(&policy, T0 + 2 * S, 2));
    assert!(!state.release(&policy, T0 + 2 * S, 2));
    assert!(is_allowed(&state.check(&policy, T0 + 2 * S, &take(3))));
    assert!(is_allowed(&state.check(&policy, T0 + 10 * S, &take(4))), "the first has expired");
}

#[test]
fn a_reserved_slot_is_as_far_off_as_the_rate_says_and_can_be_given_back() {
    let policy = mk_policy(1, &[mk_limit(Algorithm::TokenBucket, 10, 1, 1)]);
    let mut state = RateState::new(&policy, T0);
    let ask = Check { max_wait_us: S, ..mk_check(1) };
    for n in 0..10 {
        let decision = state.check(&policy, T0, &ask);
        assert_eq!(decision.outcome, Outcome::Allowed { wait_us: n * S / 10 });
    }
    state.refund(&policy, T0, 1);
    let decision = state.check(&policy, T0, &ask);
    assert_eq!(decision.outcome, Outcome::Allowed { wait_us: 9 * S / 10 });
}

fn algorithms() -> impl Strategy<Value = Algorithm> {
    prop_oneof![
        Just(Algorithm::TokenBucket),
        Just(Algorithm::SlidingWindow),
        Just(Algorithm::FixedWindow),
        Just(Algorithm::Concurrency),
    ]
}

proptest! {
    /// B5: whatever the arrivals, no window of a bucket admits more than burst + rate * window, even
    /// with a clock that goes back.
    #[test]
    fn any_window_admits_at_most_burst_and_rate(
        limit in 1u64..1_000, window_s in 1u32..120, burst in 1u64..1_000,
        steps in prop::collection::vec((-200_000i64..2_000_000, 1u64..50), 1..200),
    ) {
        let burst = burst.min(limit * 100);
        let policy = mk_policy(1, &[mk_limit(Algorithm::TokenBucket, limit, window_s, burst)]);
        let mut state = RateState::new(&policy, T0);
        let (mut now, mut seen, mut admitted) = (T0, T0, Vec::new());
        for (passed, cost) in steps {
            now = now.saturating_add_signed(passed);
            seen = seen.max(now);
            if is_allowed(&state.check(&policy, now, &mk_check(cost))) {
                admitted.push((seen, cost));
            }
        }
        for i in 0..admitted.len() {
            let mut sum = 0u128;
            for (at, cost) in &admitted[i..] {
                sum += u128::from(*cost);
                let passed = u128::from(at - admitted[i].0);
                // sum <= burst + limit * passed / window, in whole numbers.
                let window = u128::from(window_s) * u128::from(S);
                prop_assert!(sum * window <= u128::from(burst) * window + u128::from(limit) * passed);
            }
        }
    }

    /// A refusal is neither too pessimistic nor too optimistic: just before, no; then, yes.
    #[test]
    fn retry_after_is_when_it_passes(
        algorithm in algorithms(), limit in 1u64..40, window_s in 1u32..20,
        steps in prop::collection::vec((0u64..3_000_000, 1u64..10), 1..60),
    ) {
        let policy = mk_policy(1, &[mk_limit(algorithm, limit, window_s, limit)]);
        let mut state = RateState::new(&policy, T0);
        let mut now = T0;
        for (passed, cost) in steps {
            now += passed;
            let decision = state.check(&policy, now, &mk_check(cost));
            prop_assert_eq!(decision.outcome == Outcome::TooLarge, cost > limit);
            if let Outcome::Limited { retry_us } = decision.outcome {
                prop_assert!(retry_us > 0);
                let later = state.clone().check(&policy, now + retry_us, &mk_check(cost));
                prop_assert!(is_allowed(&later), "{:?} {:?}", decision, later);
            }
        }
    }

    /// A state that is forgotten when it is idle decides as one that is kept.
    #[test]
    fn an_idle_state_says_nothing(
        algorithm in algorithms(), limit in 1u64..40, window_s in 1u32..5,
        costs in prop::collection::vec(1u64..10, 1..10), more in 1u64..5_000_000,
    ) {
        let policy = mk_policy(1, &[mk_limit(algorithm, limit, window_s, limit)]);
        let mut state = RateState::new(&policy, T0);
        for cost in costs {
            state.check(&policy, T0, &mk_check(cost));
        }
        let now = T0 + state.ends_us() + more;
        prop_assert!(state.is_idle(now));
        for cost in [1, limit] {
            let kept = state.clone().check(&policy, now, &mk_check(cost));
            let fresh = RateState::new(&policy, now).check(&policy, now, &mk_check(cost));
            prop_assert_eq!(kept, fresh);
        }
    }
}
