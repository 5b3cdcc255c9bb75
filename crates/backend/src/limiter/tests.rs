use std::fmt::Write;

use allocation_counter::{AllocationInfo, measure};
use holdfast_core::{ClassName, Key, Kind, SystemClock, ratelimit::Algorithm, ratelimit::Limit};

use super::*;

const KEYS: i64 = 10_000;
/// Tables, however many keys are in them, and the task that tidies.
const A_FEW: i64 = 16;

fn mk_plan(limits: usize, accuracy: Accuracy) -> Plan {
    let limit = Limit {
        name: "l".into(),
        algorithm: Algorithm::TokenBucket,
        // Slow, so that what is counted of a key is not forgotten meanwhile.
        limit: 10,
        window_seconds: 86_400,
        burst: 10,
    };
    Plan::new(&RateLimitConfig {
        generation: 1,
        limits: vec![limit; limits],
        on_backend_failure: OnBackendFailure::Closed,
        shadow: false,
        accuracy,
    })
}

/// What is allocated, and stays so, while each of many keys is checked; the keys themselves are there.
fn measure_checks(plan: &Plan) -> [AllocationInfo; 2] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = MemoryRateLimits::new(clock.clone());
    let limiter = Limiter::new(store.clone(), clock);
    let mut name = String::new();
    let keys: Vec<Address> = (0..KEYS)
        .map(|n| {
            name.clear();
            write!(name, "k{n}").unwrap();
            let (namespace, class) = ("ns".into(), ClassName::new("api").unwrap());
            Address { kind: Kind::RateLimit, namespace, class, key: Key::new(&name).unwrap() }
        })
        .collect();
    let check = Check { cost: 1, least: 1, mode: Mode::Enforce, max_wait_us: 0, permit: 0 };
    // Of a key's second check two tokens are fetched, and one is in hand for the third.
    let rounds = [2, 1].map(|times| {
        measure(|| {
            runtime.block_on(async {
                for at in keys.iter().flat_map(|at| std::iter::repeat_n(at, times)) {
                    let (decision, _) = limiter.check(at, plan, &check).await.unwrap();
                    assert_eq!(decision.outcome, Outcome::Allowed { wait_us: 0 });
                }
            });
        })
    });
    assert_eq!(store.kept() as i64, KEYS);
    rounds
}

#[test]
fn a_key_in_memory_costs_no_allocation_but_its_name() {
    let [first, again] = measure_checks(&mk_plan(1, Accuracy::Exact));
    assert!(first.count_current <= A_FEW, "{first:?}");
    // The call itself, through a pointer to whatever store it is.
    assert_eq!(again.count_total as i64, KEYS, "{again:?}");
    assert_eq!(again.count_current, 0);
}

#[test]
fn several_limits_of_a_key_are_counted_in_one_allocation() {
    let [first, again] = measure_checks(&mk_plan(3, Accuracy::Exact));
    assert!((KEYS..=KEYS + A_FEW).contains(&first.count_current), "{first:?}");
    assert_eq!(again.count_current, 0);
}

#[test]
fn a_leased_key_costs_no_allocation_but_its_name_and_none_while_tokens_are_in_hand() {
    let accuracy = Accuracy::Leased { batch: 100, max_staleness_seconds: 60 };
    let [first, again] = measure_checks(&mk_plan(1, accuracy));
    assert!(first.count_current <= A_FEW, "{first:?}");
    assert_eq!(again.count_total, 0, "{again:?}");
}
