//! What a rate limit is, wherever it lives: one body per behaviour, run on memory and on Redis.

use std::{sync::Arc, time::Duration};

use holdfast_backend::{
    memory::MemoryRateLimits,
    redis::{RedisConfig, RedisRateLimits},
};
use holdfast_core::{
    Address, ClassName, Key, Kind, SystemClock,
    ratelimit::{Algorithm, Check, Decision, Limit, Mode, Outcome, Policy, RateLimitBackend, Rule},
};

use crate::{
    fixture::{eventually, patient},
    redis_cluster::RedisCluster,
    server::RedisServer,
};

/// A store, and what keeps it alive.
struct World {
    limits: Arc<dyn RateLimitBackend>,
    _servers: Box<dyn std::any::Any + Send>,
}

fn memory() -> World {
    World { limits: MemoryRateLimits::new(Arc::new(SystemClock)), _servers: Box::new(()) }
}

fn redis() -> World {
    let server = RedisServer::start(&[]);
    let config = patient(RedisConfig::new(&server.address()).unwrap());
    let limits = RedisRateLimits::connect(config, "default").unwrap();
    World { limits, _servers: Box::new(server) }
}

fn cluster() -> World {
    let cluster = RedisCluster::start(2, 0).patient();
    let config = patient(RedisConfig::from_seeds(&cluster.addresses()).unwrap());
    let limits = RedisRateLimits::connect(config, "default").unwrap();
    World { limits, _servers: Box::new(cluster) }
}

macro_rules! everywhere {
    ($($body:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $body() { super::$body(&super::memory()).await; })*
        }
        mod on_redis {
            $(#[tokio::test] async fn $body() { super::$body(&super::redis()).await; })*
        }
        mod on_a_cluster {
            $(#[tokio::test] async fn $body() { super::$body(&super::cluster()).await; })*
        }
    };
}

everywhere!(
    a_limit_passes_so_much_and_no_more,
    keys_have_counts_of_their_own,
    all_limits_are_charged_or_none,
    a_cost_above_the_limit_never_fits,
    a_peek_charges_nothing,
    a_refund_can_be_spent_again,
    what_was_refused_passes_when_the_store_said,
    a_reserved_slot_is_in_order,
    a_permit_is_held_until_it_is_released,
    a_permit_that_is_not_released_ends,
    a_new_class_keeps_what_was_spent,
    a_reset_forgets,
    who_is_content_with_less_gets_what_there_is,
    what_is_put_back_can_be_taken_again,
);

const ALL: [Algorithm; 4] = [
    Algorithm::TokenBucket,
    Algorithm::SlidingWindow,
    Algorithm::FixedWindow,
    Algorithm::Concurrency,
];

fn mk_address(key: &str) -> Address {
    Address {
        kind: Kind::RateLimit,
        namespace: "default".into(),
        class: ClassName::new("api").unwrap(),
        key: Key::new(key).unwrap(),
    }
}

fn mk_limit(algorithm: Algorithm, limit: u64, window_seconds: u32) -> Limit {
    Limit { name: "l".into(), algorithm, limit, window_seconds, burst: limit }
}

fn mk_policy(generation: i64, limits: &[Limit]) -> Arc<Policy> {
    Arc::new(Policy::new(generation, limits.iter().map(Rule::new).collect()))
}

/// So slow that nothing comes back in a test.
fn slow(algorithm: Algorithm, limit: u64) -> Arc<Policy> {
    mk_policy(1, &[mk_limit(algorithm, limit, 86_400 * 30)])
}

fn mk_check(cost: u64) -> Check {
    Check { cost, mode: Mode::Enforce, max_wait_us: 0, permit: 7, least: cost }
}

impl World {
    async fn ask(&self, key: &str, policy: &Arc<Policy>, check: &Check) -> Decision {
        self.limits.check(&mk_address(key), policy, check).await.unwrap()
    }

    async fn passes(&self, key: &str, policy: &Arc<Policy>, cost: u64) -> bool {
        let outcome = self.ask(key, policy, &mk_check(cost)).await.outcome;
        outcome == Outcome::Allowed { wait_us: 0 }
    }
}

async fn a_limit_passes_so_much_and_no_more(world: &World) {
    for algorithm in ALL {
        let (key, policy) = (format!("{algorithm:?}"), slow(algorithm, 5));
        for n in 0..5 {
            let decision = world.ask(&key, &policy, &mk_check(1)).await;
            assert_eq!(decision.outcome, Outcome::Allowed { wait_us: 0 }, "{algorithm:?}");
            assert_eq!(decision.verdicts()[0].remaining, 4 - n, "{algorithm:?}");
        }
        let refused = world.ask(&key, &policy, &mk_check(1)).await.outcome;
        assert!(matches!(refused, Outcome::Limited { retry_us: 1.. }), "{algorithm:?} {refused:?}");
    }
}

async fn keys_have_counts_of_their_own(world: &World) {
    let policy = slow(Algorithm::TokenBucket, 1);
    for key in ["a", "b", "{a}", "a:r"] {
        assert!(world.passes(key, &policy, 1).await, "{key}");
        assert!(!world.passes(key, &policy, 1).await, "{key}");
    }
}

async fn all_limits_are_charged_or_none(world: &World) {
    let month = 86_400 * 30;
    let limits = ALL.map(|algorithm| mk_limit(algorithm, 9, month));
    let mut limits = limits.to_vec();
    limits.push(mk_limit(Algorithm::FixedWindow, 2, month));
    let policy = mk_policy(1, &limits);
    assert!(world.passes("k", &policy, 2).await);
    let refused = world.ask("k", &policy, &mk_check(1)).await;
    let left: Vec<u64> = refused.verdicts().iter().map(|verdict| verdict.remaining).collect();
    assert_eq!(left, [7, 7, 7, 7, 0]);
    let waits: Vec<bool> = refused.verdicts().iter().map(|verdict| verdict.wait_us > 0).collect();
    assert_eq!(waits, [false, false, false, false, true]);
}

async fn a_cost_above_the_limit_never_fits(world: &World) {
    for algorithm in ALL {
        let (key, policy) = (format!("{algorithm:?}"), slow(algorithm, 5));
        assert_eq!(world.ask(&key, &policy, &mk_check(6)).await.outcome, Outcome::TooLarge);
        assert!(world.passes(&key, &policy, 5).await, "{algorithm:?}");
    }
}

async fn a_peek_charges_nothing(world: &World) {
    for algorithm in ALL {
        let (key, policy) = (format!("{algorithm:?}"), slow(algorithm, 5));
        for _ in 0..3 {
            let peek = Check { mode: Mode::Peek, ..mk_check(5) };
            let view = world.ask(&key, &policy, &peek).await;
            assert_eq!(view.outcome, Outcome::Allowed { wait_us: 0 });
            assert_eq!(view.verdicts()[0].remaining, 5);
        }
    }
}

async fn a_refund_can_be_spent_again(world: &World) {
    for algorithm in [Algorithm::TokenBucket, Algorithm::SlidingWindow, Algorithm::FixedWindow] {
        let (key, policy) = (format!("{algorithm:?}"), slow(algorithm, 5));
        assert!(world.passes(&key, &policy, 5).await);
        world.limits.refund(&mk_address(&key), &policy, 2).await.unwrap();
        assert!(!world.passes(&key, &policy, 3).await && world.passes(&key, &policy, 2).await);
    }
}

async fn what_was_refused_passes_when_the_store_said(world: &World) {
    for algorithm in ALL {
        let key = format!("{algorithm:?}");
        let policy = mk_policy(1, &[mk_limit(algorithm, 4, 1)]);
        let mut asked = 0;
        // Until a refusal: a window may end between two checks.
        let retry_us = loop {
            asked += 1;
            assert!(asked < 1_000, "{algorithm:?} never refuses");
            match world.ask(&key, &policy, &mk_check(2)).await.outcome {
                Outcome::Limited { retry_us } => break retry_us,
                Outcome::Allowed { .. } | Outcome::TooLarge => {}
            }
        };
        assert!(retry_us <= 2_000_000, "{algorithm:?}: {retry_us}");
        // The time is the store's: there is no condition to wait for but that.
        tokio::time::sleep(Duration::from_micros(retry_us) + Duration::from_millis(1)).await;
        assert!(world.passes(&key, &policy, 2).await, "{algorithm:?} after {retry_us} us");
    }
}

async fn a_reserved_slot_is_in_order(world: &World) {
    let policy = mk_policy(1, &[Limit { burst: 1, ..mk_limit(Algorithm::TokenBucket, 1, 10) }]);
    let ask = Check { max_wait_us: 60_000_000, ..mk_check(1) };
    let mut before = None;
    for n in 0..5u64 {
        let outcome = world.ask("k", &policy, &ask).await.outcome;
        let Outcome::Allowed { wait_us } = outcome else { panic!("{outcome:?}") };
        assert!(wait_us <= n * 10_000_000 && before.is_none_or(|before| wait_us > before));
        before = Some(wait_us);
    }
    let hurried = Check { max_wait_us: 1_000_000, ..ask };
    let refused = world.ask("k", &policy, &hurried).await.outcome;
    assert!(matches!(refused, Outcome::Limited { .. }), "{refused:?}");
}

async fn a_permit_is_held_until_it_is_released(world: &World) {
    let (at, policy) = (mk_address("k"), slow(Algorithm::Concurrency, 1));
    assert!(world.passes("k", &policy, 1).await && !world.passes("k", &policy, 1).await);
    assert!(!world.limits.release(&at, &policy, 8).await.unwrap(), "of another name");
    assert!(world.limits.release(&at, &policy, 7).await.unwrap());
    assert!(!world.limits.release(&at, &policy, 7).await.unwrap(), "twice");
    assert!(world.passes("k", &policy, 1).await);
}

async fn a_permit_that_is_not_released_ends(world: &World) {
    let policy = mk_policy(1, &[mk_limit(Algorithm::Concurrency, 1, 3)]);
    assert!(world.passes("k", &policy, 1).await && !world.passes("k", &policy, 1).await);
    eventually("the permit ends", async || world.passes("k", &policy, 1).await).await;
}

async fn a_new_class_keeps_what_was_spent(world: &World) {
    let old = slow(Algorithm::FixedWindow, 5);
    let new = mk_policy(2, &[mk_limit(Algorithm::FixedWindow, 8, 86_400 * 30)]);
    assert!(world.passes("k", &old, 5).await);
    assert!(!world.passes("k", &new, 4).await && world.passes("k", &new, 2).await);
    assert!(world.passes("k", &old, 1).await, "the old class is served by the new limit");
    assert!(!world.passes("k", &new, 1).await);
}

async fn a_reset_forgets(world: &World) {
    let policy = slow(Algorithm::TokenBucket, 1);
    assert!(world.passes("k", &policy, 1).await && !world.passes("k", &policy, 1).await);
    world.limits.reset(&mk_address("k")).await.unwrap();
    assert!(world.passes("k", &policy, 1).await);
}

async fn who_is_content_with_less_gets_what_there_is(world: &World) {
    for algorithm in [Algorithm::TokenBucket, Algorithm::SlidingWindow, Algorithm::FixedWindow] {
        let (key, policy) = (format!("{algorithm:?}"), slow(algorithm, 10));
        let ask = Check { least: 3, ..mk_check(6) };
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(world.ask(&key, &policy, &ask).await.taken.amount);
        }
        assert_eq!(taken, [6, 4, 0], "{algorithm:?}");
    }
}

async fn what_is_put_back_can_be_taken_again(world: &World) {
    for algorithm in [Algorithm::TokenBucket, Algorithm::SlidingWindow, Algorithm::FixedWindow] {
        let (key, policy) = (format!("{algorithm:?}"), slow(algorithm, 10));
        let mut taken = world.ask(&key, &policy, &Check { least: 1, ..mk_check(10) }).await.taken;
        assert_eq!(taken.amount, 10);
        taken.amount = 4;
        world.limits.put_back(&mk_address(&key), &policy, taken).await.unwrap();
        assert!(!world.passes(&key, &policy, 5).await && world.passes(&key, &policy, 4).await);
        // What was charged so long ago has come back by itself.
        taken.at_us -= 86_400 * 60 * 1_000_000;
        world.limits.put_back(&mk_address(&key), &policy, taken).await.unwrap();
        assert!(!world.passes(&key, &policy, 1).await, "{algorithm:?}");
    }
}
