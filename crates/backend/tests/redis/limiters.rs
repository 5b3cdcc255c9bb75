//! Processes that use rate limits of a real Redis: `Leased`, `Local`, and what a key costs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use holdfast_backend::{
    limiter::{Limiter, Plan},
    redis::{RedisConfig, RedisRateLimits},
};
use holdfast_core::{
    Address, ClassName, Key, Kind, SystemClock,
    ratelimit::{
        Accuracy, Algorithm, Check, Limit, Mode, OnBackendFailure, Outcome, RateLimitConfig,
        outage::CALM,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use crate::{
    fixture::{NAMESPACE, command_as, connect, eventually, mk_redis},
    server::RedisServer,
};

pub fn mk_address(key: &str) -> Address {
    Address {
        kind: Kind::RateLimit,
        namespace: NAMESPACE.into(),
        class: ClassName::new("api").unwrap(),
        key: Key::new(key).unwrap(),
    }
}

pub fn mk_config(algorithm: Algorithm, limit: u64, window_seconds: u32) -> RateLimitConfig {
    RateLimitConfig {
        generation: 1,
        limits: vec![Limit { name: "l".into(), algorithm, limit, window_seconds, burst: limit }],
        on_backend_failure: OnBackendFailure::Closed,
        shadow: false,
        accuracy: Accuracy::Exact,
    }
}

pub fn mk_check(cost: u64) -> Check {
    Check { cost, mode: Mode::Enforce, max_wait_us: 0, permit: 0, least: cost }
}

/// One sidecar's process.
pub fn sidecar(server: &RedisServer) -> Arc<Limiter> {
    sidecar_as(mk_redis(server))
}

fn sidecar_as(config: RedisConfig) -> Arc<Limiter> {
    let limits = RedisRateLimits::connect(config, NAMESPACE).unwrap();
    Limiter::new(limits, Arc::new(SystemClock))
}

pub async fn passes(limiter: &Arc<Limiter>, plan: &Plan, key: &str) -> bool {
    let asked = limiter.check(&mk_address(key), plan, &mk_check(1)).await;
    matches!(asked, Ok((decision, _)) if matches!(decision.outcome, Outcome::Allowed { .. }))
}

pub async fn calls(server: &RedisServer) -> u64 {
    let url = format!("redis://{}/", server.address());
    let info: String = command_as(&url, &["INFO", "commandstats"]).await.unwrap();
    let line = info.lines().find(|line| line.starts_with("cmdstat_fcall:")).unwrap_or("calls=0,");
    line.split(['=', ',']).nth(1).unwrap().parse().unwrap()
}

/// More than once if it must be: on a machine that stands still in the wrong moment every token
/// goes stale in hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leased_sidecars_that_are_killed_keep_the_bound() {
    for _ in 0..3 {
        if run_leased().await > 0.0 {
            return;
        }
    }
    panic!("nothing was ever in hand when it mattered: this shows nothing");
}

/// Four sidecars, each of which is killed (forgets all, puts nothing back) or stopped and started
/// again now and then, ask one key: by turns a little, so that tokens stay in hand while the bucket
/// fills, and as fast as they can. The most that was admitted above what is exact.
async fn run_leased() -> f64 {
    const SIDECARS: u64 = 4;
    let server = RedisServer::start(&[]);
    let config = RateLimitConfig {
        accuracy: Accuracy::Leased { batch: 25, max_staleness_seconds: 1 },
        ..mk_config(Algorithm::TokenBucket, 200, 1)
    };
    let plan = Arc::new(Plan::new(&config));
    let bound = config.over_admission().unwrap().of(SIDECARS);
    assert_eq!(bound, 100);
    let (began, kills) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let tasks = (0..SIDECARS).map(|n| {
        let (plan, kills, mut limiter) = (plan.clone(), kills.clone(), sidecar(&server));
        let restart = {
            let config = mk_redis(&server);
            move || sidecar_as(config.clone())
        };
        tokio::spawn(async move {
            let (mut rng, mut admitted) = (StdRng::seed_from_u64(n), Vec::new());
            let (mut phase, mut in_phase) = (0, 0);
            let is_enough = || match began.elapsed().as_secs() {
                0..6 => false,
                // On a slow machine there are fewer.
                6..60 => kills.load(Relaxed) >= 10,
                _ => true,
            };
            while !is_enough() {
                let now = began.elapsed().as_millis() / 700;
                if now > phase {
                    (phase, in_phase) = (now, 0);
                }
                if phase % 2 == 0 && in_phase >= 10 {
                    sleep(Duration::from_millis(2)).await;
                    continue;
                }
                match rng.random_range(0..400) {
                    0 => limiter = restart(),
                    1 => {
                        limiter.close().await;
                        assert_eq!(limiter.in_hand(), 0);
                        limiter = restart();
                    }
                    _ => {
                        if passes(&limiter, &plan, "k").await {
                            admitted.push(began.elapsed());
                            in_phase += 1;
                        } else {
                            sleep(Duration::from_millis(2)).await;
                        }
                        assert!(limiter.in_hand() <= 25);
                        continue;
                    }
                }
                kills.fetch_add(1, Relaxed);
            }
            admitted
        })
    });
    let mut admitted: Vec<Duration> =
        futures::future::join_all(tasks).await.into_iter().flat_map(Result::unwrap).collect();
    admitted.sort();
    let kills = kills.load(Relaxed);
    assert!(kills >= 10, "only {kills} were killed or stopped");
    let mut most = 0.0f64;
    for (first, from) in admitted.iter().enumerate() {
        for (n, to) in admitted[first..].iter().enumerate() {
            // The store's time between two answers is longer than ours by a round trip at the most.
            let window = (*to - *from).as_secs_f64() + 0.05;
            let exact = 200.0 + 200.0 * window;
            let over = (n + 1) as f64 - exact;
            most = most.max(over + 0.05 * 200.0);
            assert!(over <= bound as f64, "{} in {window} s, {over} too many", n + 1);
        }
    }
    println!("{} admitted, {kills} restarts, at most {most:.0} over of {bound}", admitted.len());
    assert!(admitted.len() > 200, "only {} were admitted", admitted.len());
    most
}

#[tokio::test]
async fn a_leased_check_seldom_asks_the_store_and_a_stop_puts_back() {
    let server = RedisServer::start(&[]);
    let config = RateLimitConfig {
        accuracy: Accuracy::Leased { batch: 50, max_staleness_seconds: 60 },
        ..mk_config(Algorithm::TokenBucket, 1_000, 2_678_400)
    };
    let (plan, limiter) = (Plan::new(&config), sidecar(&server));
    assert!(passes(&limiter, &plan, "k").await);
    let before = calls(&server).await;
    for _ in 0..500 {
        assert!(passes(&limiter, &plan, "k").await);
    }
    let asked = calls(&server).await - before;
    assert!(asked <= 20, "{asked} calls for 500 checks");
    assert!((1..=50).contains(&limiter.in_hand()), "{}", limiter.in_hand());
    limiter.close().await;
    let left = async |limiter: &Arc<Limiter>| {
        let peek = Check { mode: Mode::Peek, ..mk_check(1) };
        let view = limiter.check(&mk_address("k"), &plan, &peek).await.unwrap();
        view.0.verdicts()[0].remaining
    };
    assert_eq!(left(&sidecar(&server)).await, 1_000 - 501);
}

/// Concurrent checks of one key share one fetch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_at_a_time_fetches() {
    let server = RedisServer::start(&[]);
    let config = RateLimitConfig {
        accuracy: Accuracy::Leased { batch: 20, max_staleness_seconds: 60 },
        ..mk_config(Algorithm::FixedWindow, 300, 2_678_400)
    };
    let (plan, limiter) = (Arc::new(Plan::new(&config)), sidecar(&server));
    let tasks = (0..400).map(|_| {
        let (plan, limiter) = (plan.clone(), limiter.clone());
        tokio::spawn(async move { passes(&limiter, &plan, "k").await })
    });
    let passed =
        futures::future::join_all(tasks).await.into_iter().filter(|p| *p.as_ref().unwrap());
    assert_eq!(passed.count(), 300);
}

#[tokio::test]
async fn a_share_is_enforced_while_the_store_is_away_and_given_up_when_it_is_back() {
    let mut server = RedisServer::start(&[]);
    let config = RateLimitConfig {
        on_backend_failure: OnBackendFailure::Local { share_percent: 20 },
        ..mk_config(Algorithm::FixedWindow, 50, 2_678_400)
    };
    let (plan, limiter) = (Plan::new(&config), sidecar(&server));
    let ask = async || limiter.check(&mk_address("k"), &plan, &mk_check(1)).await.unwrap();
    assert!(!ask().await.1);
    let away = Instant::now();
    server.kill();
    let mut passed = 0;
    for _ in 0..60 {
        let (decision, degraded) = ask().await;
        assert!(degraded);
        passed += u32::from(matches!(decision.outcome, Outcome::Allowed { .. }));
    }
    assert_eq!(passed, 10, "a fifth of the limit, and no more");
    assert!(limiter.is_away());
    let large = limiter.check(&mk_address("k"), &plan, &mk_check(11)).await.unwrap_err();
    assert!(large.is_retryable() && large.to_string().contains("share"), "{large}");
    server.restart();
    eventually("the store is asked again", async || (!ask().await.1).then_some(())).await;
    eventually("it is believed again", async || {
        ask().await;
        (!limiter.is_away()).then_some(())
    })
    .await;
    assert!(away.elapsed() >= CALM, "believed after {:?}", away.elapsed());
    // It kept nothing, so its count begins anew: the whole limit, not the share.
    let left = ask().await.0.verdicts()[0].remaining;
    assert!((10..50).contains(&left), "{left}");
}

#[tokio::test]
async fn one_slow_call_decides_only_itself() {
    let server = RedisServer::start(&[]);
    let config = RateLimitConfig {
        on_backend_failure: OnBackendFailure::Local { share_percent: 20 },
        ..mk_config(Algorithm::FixedWindow, 50, 2_678_400)
    };
    let mut redis = mk_redis(&server);
    redis.response_timeout = Duration::from_secs(3);
    let (plan, limiter) = (Plan::new(&config), sidecar_as(redis));
    let ask = async || limiter.check(&mk_address("k"), &plan, &mk_check(1)).await.unwrap();
    assert!(!ask().await.1);
    server.pause(true);
    assert!(ask().await.1, "it is decided by the share");
    server.pause(false);
    eventually("the store answers", async || (!ask().await.1).then_some(())).await;
    assert!(!limiter.is_away());
}

#[tokio::test]
async fn open_and_closed_do_as_they_say() {
    let mut server = RedisServer::start(&[]);
    let limiter = sidecar(&server);
    let closed = Plan::new(&mk_config(Algorithm::TokenBucket, 1, 1));
    let open = Plan::new(&RateLimitConfig {
        on_backend_failure: OnBackendFailure::Open,
        ..mk_config(Algorithm::TokenBucket, 1, 2_678_400)
    });
    assert!(passes(&limiter, &open, "k").await && !passes(&limiter, &open, "k").await);
    server.kill();
    for _ in 0..10 {
        let (decision, degraded) =
            limiter.check(&mk_address("k"), &open, &mk_check(1)).await.unwrap();
        assert_eq!((decision.outcome, degraded), (Outcome::Allowed { wait_us: 0 }, true));
        let refused = limiter.check(&mk_address("k"), &closed, &mk_check(1)).await.unwrap_err();
        assert!(refused.is_retryable(), "{refused}");
    }
    server.restart();
    eventually("Closed asks the store again", async || {
        passes(&limiter, &closed, "other").await.then_some(())
    })
    .await;
}

/// What a key costs: its name and the least that says its state, and half as much again at most.
#[tokio::test]
async fn ten_thousand_keys_are_small_and_end_with_their_window() {
    const KEYS: usize = 10_000;
    let server = RedisServer::start(&[]);
    let limiter = sidecar(&server);
    let url = format!("redis://{}/", server.address());
    let mut direct = connect(&url).await.unwrap();
    for algorithm in [Algorithm::TokenBucket, Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        let plan = Plan::new(&mk_config(algorithm, 100, 3_600));
        redis::cmd("FLUSHALL").exec_async(&mut direct).await.unwrap();
        let keys: Vec<Address> = (0..KEYS).map(|n| mk_address(&format!("k{n:05}"))).collect();
        for keys in keys.chunks(100) {
            let check = mk_check(90);
            let asked = keys.iter().map(|at| limiter.check(at, &plan, &check));
            assert!(futures::future::join_all(asked).await.iter().all(Result::is_ok));
        }
        let (mut used, mut bare, mut measured) = (0u64, 0u64, 0);
        for n in 0..KEYS {
            let name = format!("hf:{NAMESPACE}:{{ratelimit/api/k{n:05}}}:r");
            // A count or level and when it was so: sixteen bytes say both.
            let least = format!("hf:{NAMESPACE}:{{ratelimit/api/m{n:05}}}:r");
            let mut all = redis::pipe();
            all.cmd("MEMORY").arg("USAGE").arg(&name);
            all.cmd("PTTL").arg(&name);
            all.cmd("SET").arg(&least).arg("0123456789abcdef").arg("PX").arg(60_000).ignore();
            all.cmd("MEMORY").arg("USAGE").arg(&least);
            all.cmd("DEL").arg(&least).ignore();
            let (usage, ttl, floor): (Option<u64>, i64, u64) =
                all.query_async(&mut direct).await.unwrap();
            // An aligned window may end while we look.
            let Some(usage) = usage else { continue };
            // A sliding window's count weighs until the end of the next one.
            let windows = if algorithm == Algorithm::SlidingWindow { 2 } else { 1 };
            assert!((0..=windows * 3_600_000).contains(&ttl), "{algorithm:?} {name}: {ttl} ms");
            (used, bare, measured) = (used + usage, bare + floor, measured + 1);
        }
        assert!(measured > 0, "{algorithm:?}: every key had ended");
        let ratio = used as f64 / bare as f64;
        println!("{algorithm:?}: {} bytes a key, {ratio:.2} of the least", used / measured);
        assert!(ratio <= 1.5, "{algorithm:?}: {ratio:.2}");
    }
}
