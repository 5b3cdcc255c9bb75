use proptest::prelude::*;

use super::*;
use crate::ratelimit::{
    Accuracy, Algorithm, Limit, OnBackendFailure, RateLimitConfig, state::RateState,
};

const T0: u64 = 1_800_000_000_000_000;

fn mk_config(
    algorithm: Algorithm,
    limit: u64,
    window_seconds: u32,
    batch: u64,
    stale: u32,
) -> RateLimitConfig {
    let name = "l".into();
    RateLimitConfig {
        generation: 1,
        limits: vec![Limit { name, algorithm, limit, window_seconds, burst: limit }],
        on_backend_failure: OnBackendFailure::Closed,
        shadow: false,
        accuracy: Accuracy::Leased { batch, max_staleness_seconds: stale },
    }
}

fn at(us: u64) -> Stamp {
    Stamp { boot_ns: us * 1_000, raw_ns: us * 1_000, real_ns: us * 1_000 }
}

fn mk_check(cost: u64) -> Check {
    Check { cost, mode: Mode::Enforce, max_wait_us: 0, permit: 0, least: cost }
}

/// One sidecar's check against one store; whether it passed, and whether the store was asked.
fn run(
    tokens: &mut Tokens,
    store: &mut RateState,
    policy: &Arc<Policy>,
    terms: Terms,
    now: u64,
    cost: u64,
) -> (bool, bool) {
    if let Some((policy, taken)) = tokens.expire(policy, at(now)) {
        store.put_back(&policy, now, taken);
    }
    let check = mk_check(cost);
    let (decision, asked) = match tokens.serve(terms, at(now), &check) {
        Step::Decided(decision) => (decision, false),
        Step::Ask(ask) => {
            let answer = store.check(policy, now, &ask);
            (tokens.note(terms, at(now), &check, &answer), true)
        }
    };
    (matches!(decision.outcome, Outcome::Allowed { .. }), asked)
}

#[test]
fn a_busy_key_asks_the_store_once_a_batch() {
    let config = mk_config(Algorithm::TokenBucket, 1_000, 1, 50, 5);
    let (policy, terms) = (config.policy(), Terms { batch: 50, staleness: Duration::from_secs(5) });
    let mut store = RateState::new(&policy, T0);
    let mut tokens = Tokens::new(&policy, at(T0));
    let asked = (0..1_000).filter(|_| {
        let (passed, asked) = run(&mut tokens, &mut store, &policy, terms, T0, 1);
        assert!(passed);
        asked
    });
    assert!(asked.count() <= 26);
    assert_eq!(run(&mut tokens, &mut store, &policy, terms, T0, 1), (false, true));
    assert_eq!(run(&mut tokens, &mut store, &policy, terms, T0, 1), (false, false), "it is known");
}

#[test]
fn what_is_put_back_in_time_can_be_taken_again_and_late_it_cannot() {
    let config = mk_config(Algorithm::TokenBucket, 10, 10, 10, 5);
    let policy = config.policy();
    for (later, left) in [(0, 10), (4_000_000, 10)] {
        let mut store = RateState::new(&policy, T0);
        let took = store.check(&policy, T0, &Check { least: 1, ..mk_check(8) }).taken;
        assert_eq!(took.amount, 8);
        // Others take what has come back meanwhile: it is not given back twice.
        store.check(&policy, T0 + later, &Check { least: 1, ..mk_check(6) });
        store.put_back(&policy, T0 + later, took);
        let view = store.peek(&policy, T0 + later, 1);
        let spent = if later == 0 { 2 } else { 6 };
        assert_eq!(view.verdicts()[0].remaining, left - spent);
    }
}

proptest! {
    /// The promise of `Leased`: sidecars that are killed, started again or stopped at any time never
    /// admit, in any window, more than `Exact` and the bound.
    #[test]
    fn the_bound_is_kept(
        is_bucket in any::<bool>(), limit in 1u64..60, window_s in 1u32..8, batch in 1u64..40,
        stale in 1u32..8, sidecars in 1usize..5,
        steps in prop::collection::vec((0u64..900_000, 0usize..5, 1u64..4, 0u8..30), 1..400),
    ) {
        let stale = stale.min(window_s);
        let algorithm = if is_bucket { Algorithm::TokenBucket } else { Algorithm::FixedWindow };
        let config = mk_config(algorithm, limit, window_s, batch, stale);
        let bound = config.over_admission().unwrap().of(sidecars as u64);
        let terms = Terms { batch, staleness: Duration::from_secs(stale.into()) };
        let policy = config.policy();
        let mut store = RateState::new(&policy, T0);
        let mut pods: Vec<Tokens> = (0..sidecars).map(|_| Tokens::new(&policy, at(T0))).collect();
        let (mut now, mut admitted) = (T0, Vec::new());
        for (passed, pod, cost, event) in steps {
            // Mostly bursts.
            now += if event % 3 == 0 { passed } else { passed / 1_000 };
            let pod = &mut pods[pod % sidecars];
            match event {
                0 => *pod = Tokens::new(&policy, at(now)),
                1 => {
                    if let Some((policy, taken)) = pod.give_up() {
                        store.put_back(&policy, now, taken);
                    }
                    *pod = Tokens::new(&policy, at(now));
                }
                _ => {
                    if run(pod, &mut store, &policy, terms, now, cost).0 {
                        admitted.push((now, cost));
                    }
                    prop_assert!(pod.in_hand() <= batch);
                }
            }
        }
        let window_us = u64::from(window_s) * 1_000_000;
        for (first, (from, _)) in admitted.iter().enumerate() {
            let mut sum = 0;
            for (to, cost) in &admitted[first..] {
                sum += cost;
                let exact = match is_bucket {
                    // burst + rate * w, rounded down: whole tokens are admitted.
                    true => limit + limit * (to - from) / window_us,
                    false => limit * (to / window_us - from / window_us + 1),
                };
                prop_assert!(sum <= exact + bound, "{sum} in {} us, {exact} + {bound}", to - from);
            }
        }
    }
}
