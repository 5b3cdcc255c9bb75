//! Rate limits: the Lua against core's `RateState`, and what only a real Redis shows.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use holdfast_backend::redis::{RedisRateLimits, client::Client, scripts::Scripts};
use holdfast_core::{
    Address, ClassName, Key, Kind,
    ratelimit::{
        Algorithm, Check, Decision, Limit, Mode, Outcome, Policy, RateLimitBackend, Rule, Taken,
        state::RateState,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    fixture::{NAMESPACE, connect, mk_redis},
    server::RedisServer,
};

/// The store's time comes from a key, and nothing expires by the server's own.
const CLOCK: &str = "\
local redis = { register_function = redis.register_function,
  call = function(verb, key, value) if verb == 'SET' then return redis.call(verb, key, value) end
    return redis.call(verb, key) end,
  error_reply = function(text) return redis.error_reply(text) end }
local function store_ms() return 0 end
local function store_us() return tonumber(redis.call('GET', 'clock')) end
";
/// A Lua that rounds up where it must round down.
const BROKEN: &str = "\
local math = { min = function(a, b) return math.min(a, b) end,
  max = function(a, b) return math.max(a, b) end,
  ceil = function(a) return math.ceil(a) end, floor = function(a) return math.ceil(a) end }
";

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts::compose(CLOCK));
static BROKEN_SCRIPTS: LazyLock<Scripts> =
    LazyLock::new(|| Scripts::compose(&format!("{BROKEN}{CLOCK}")));

fn mk_address(key: &str) -> Address {
    Address {
        kind: Kind::RateLimit,
        namespace: NAMESPACE.into(),
        class: ClassName::new("api").unwrap(),
        key: Key::new(key).unwrap(),
    }
}

fn mk_limit(algorithm: Algorithm, limit: u64, window_seconds: u32, burst: u64) -> Limit {
    Limit { name: "l".into(), algorithm, limit, window_seconds, burst }
}

fn mk_policy(generation: i64, limits: &[Limit]) -> Arc<Policy> {
    Arc::new(Policy::new(generation, limits.iter().map(Rule::new).collect()))
}

fn some_policy(rng: &mut StdRng, generation: i64) -> Arc<Policy> {
    let limits: Vec<Limit> = (0..rng.random_range(1..=3))
        .map(|_| {
            let algorithm = match rng.random_range(0..4) {
                0 => Algorithm::TokenBucket,
                1 => Algorithm::SlidingWindow,
                2 => Algorithm::FixedWindow,
                _ => Algorithm::Concurrency,
            };
            let limit = rng.random_range(1..40);
            mk_limit(algorithm, limit, rng.random_range(1..30), rng.random_range(1..limit * 3 + 1))
        })
        .collect();
    mk_policy(generation, &limits)
}

fn kind_of(decision: &Decision) -> &'static str {
    match decision.outcome {
        Outcome::Allowed { wait_us: 0 } => "allowed",
        Outcome::Allowed { .. } => "reserved",
        Outcome::Limited { .. } => "limited",
        Outcome::TooLarge => "too large",
    }
}

/// Runs random histories against both; the kinds of outcomes seen, or the first difference.
async fn compare(
    args: &[&str],
    scripts: &'static Scripts,
    seed: u64,
    histories: usize,
) -> Result<BTreeMap<&'static str, usize>, String> {
    let server = RedisServer::start(args);
    let client = Arc::new(Client::with_scripts(mk_redis(&server), scripts));
    let limits = RedisRateLimits::with_client(client, NAMESPACE).unwrap();
    let url = format!("redis://{}/", server.address());
    let mut clock = connect(&url).await.unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut seen = BTreeMap::new();
    for history in 0..histories {
        let at = mk_address(&format!("history/{history}"));
        let classes: Vec<_> = (1..=3).map(|generation| some_policy(&mut rng, generation)).collect();
        let mut now = 1_800_000_000_000_000 + rng.random_range(0..60_000_000u64);
        let mut state: Option<RateState> = None;
        for step in 0..60 {
            now = now.saturating_add_signed(rng.random_range(-500_000..3_000_000));
            redis::cmd("SET").arg("clock").arg(now).exec_async(&mut clock).await.unwrap();
            // Mostly one class, now and then the roll-out of the next.
            let newest = step / 20;
            let class =
                if rng.random_range(0..4) == 0 { rng.random_range(0..=newest) } else { newest };
            let policy = &classes[class];
            let failed =
                |why: String| format!("seed {seed}, history {history}, step {step}: {why}");
            let is_fresh = state.is_none();
            let model = state.get_or_insert_with(|| RateState::new(policy, now));
            match rng.random_range(0..11) {
                10 => {
                    let at_us = now.saturating_sub(rng.random_range(0..4_000_000));
                    let taken = Taken { amount: rng.random_range(1..6), at_us };
                    model.put_back(policy, now, taken);
                    let put_back = limits.put_back(&at, policy, taken).await;
                    put_back.map_err(|error| failed(error.to_string()))?;
                    *seen.entry("put back").or_default() += 1;
                }
                0 => {
                    let cost = rng.random_range(1..5);
                    model.refund(policy, now, cost);
                    limits.refund(&at, policy, cost).await.map_err(|e| failed(e.to_string()))?;
                    *seen.entry("refunded").or_default() += 1;
                }
                1 => {
                    let permit = rng.random_range(0..8);
                    let expected = model.release(policy, now, permit);
                    let found = limits.release(&at, policy, permit).await;
                    let found = found.map_err(|error| failed(error.to_string()))?;
                    *seen.entry(if found { "released" } else { "not held" }).or_default() += 1;
                    if found != expected {
                        return Err(failed(format!("left {found}, right {expected}")));
                    }
                }
                n => {
                    let cost = rng.random_range(1..8);
                    let check = Check {
                        cost,
                        least: if n == 4 { rng.random_range(1..=cost) } else { cost },
                        mode: if n == 2 { Mode::Peek } else { Mode::Enforce },
                        max_wait_us: if (5..=6).contains(&n) || n == 3 { 2_000_000 } else { 0 },
                        permit: rng.random_range(0..8),
                    };
                    let expected = match check.mode {
                        Mode::Peek => model.peek(policy, now, check.cost),
                        Mode::Enforce => model.check(policy, now, &check),
                    };
                    let found = limits.check(&at, policy, &check).await;
                    let found = found.map_err(|error| failed(error.to_string()))?;
                    *seen.entry(kind_of(&found)).or_default() += 1;
                    if found != expected {
                        return Err(failed(format!("left {found:?}, right {expected:?}")));
                    }
                    if check.mode == Mode::Peek && is_fresh {
                        state = None;
                    }
                }
            }
        }
    }
    println!("{} transitions, no difference: {seen:?}", histories * 60);
    Ok(seen)
}

#[tokio::test]
async fn rate_limit_functions_do_what_the_rules_say() {
    let seen = compare(&[], &SCRIPTS, 7, 300).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(seen.values().sum::<usize>() >= 10_000);
    assert_eq!(seen.len(), 8, "a kind of outcome never happened: {seen:?}");
    assert!(seen.values().all(|times| *times >= 20), "too seldom: {seen:?}");
}

#[tokio::test]
async fn rate_limit_scripts_do_what_the_rules_say_where_there_are_no_functions() {
    let args = ["--rename-command", "FCALL", "", "--rename-command", "FUNCTION", ""];
    compare(&args, &SCRIPTS, 8, 30).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_wrong_rate_limit_rule_is_found() {
    let found = compare(&[], &BROKEN_SCRIPTS, 7, 300).await.unwrap_err();
    assert!(found.contains("left"), "{found}");
}

#[tokio::test]
async fn a_record_ends_with_what_it_says() {
    let server = RedisServer::start(&[]);
    let limits = RedisRateLimits::connect(mk_redis(&server), NAMESPACE).unwrap();
    let url = format!("redis://{}/", server.address());
    let mut direct = connect(&url).await.unwrap();
    let policy = mk_policy(1, &[mk_limit(Algorithm::TokenBucket, 10, 100, 10)]);
    let at = mk_address("order/1");
    let check = Check { cost: 3, mode: Mode::Enforce, max_wait_us: 0, permit: 0, least: 3 };
    assert_eq!(kind_of(&limits.check(&at, &policy, &check).await.unwrap()), "allowed");
    let names: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut direct).await.unwrap();
    assert_eq!(names, ["hf:shop:{ratelimit/api/order/1}:r"]);
    let left: i64 = redis::cmd("PTTL").arg(&names[0]).query_async(&mut direct).await.unwrap();
    assert!((20_000..=30_000).contains(&left), "{left}");
    limits.reset(&at).await.unwrap();
    let names: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut direct).await.unwrap();
    assert_eq!(names.len(), 0);
}

/// Many at once through one store: together they pass what the limit says, not one more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sidecars_together_keep_one_limit() {
    let server = RedisServer::start(&[]);
    let policy = mk_policy(1, &[mk_limit(Algorithm::TokenBucket, 50, 3_600, 50)]);
    let tasks = (0..4).map(|_| {
        let limits = RedisRateLimits::connect(mk_redis(&server), NAMESPACE).unwrap();
        let policy = policy.clone();
        tokio::spawn(async move {
            let mut passed = 0;
            for _ in 0..40 {
                let check =
                    Check { cost: 1, mode: Mode::Enforce, max_wait_us: 0, permit: 0, least: 1 };
                let decision = limits.check(&mk_address("all"), &policy, &check).await.unwrap();
                passed += usize::from(kind_of(&decision) == "allowed");
            }
            passed
        })
    });
    let passed: usize =
        futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(passed, 50);
}
