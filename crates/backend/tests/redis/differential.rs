//! The Lua against core's `LockState`: random histories, with the store's time injected (C7).

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::StreamExt;
use holdfast_backend::{
    hub::Hub,
    redis::{RedisLocks, client::Client, scripts::Scripts},
};
use holdfast_core::{
    Address, BackendError, SessionId,
    lock::{LockBackend, LockConfig, state::LockState},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    fixture::{NAMESPACE, Store, connect, mk_address, mk_redis},
    model::{
        History, Op, Outcome, STEPS, histories, hold_id, meant, mk_fence, mk_request, mk_ticket,
        model_step, model_view, passed_as, raise_to, session_id,
    },
};

const HISTORIES: u32 = 350;

/// The store's time comes from a key.
const CLOCK: &str = "local function store_ms() return tonumber(redis.call('GET', 'clock')) end\n";
/// A Lua in which the smaller of two numbers is always the first one.
const BROKEN: &str = "\
local function max(a, b) if a > b then return a end return b end
local math = { min = function(a) return a end, max = function(a, b, c) return max(max(a, b), c or 0) end }
";

pub static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts::compose(CLOCK));
pub static BROKEN_SCRIPTS: LazyLock<Scripts> =
    LazyLock::new(|| Scripts::compose(&format!("{BROKEN}{CLOCK}")));

/// The store under test and the messages it sent.
struct Subject {
    store: Store,
    locks: Arc<RedisLocks>,
    messages: redis::aio::PubSub,
    client: redis::aio::MultiplexedConnection,
    /// How often each kind of outcome was seen.
    seen: BTreeMap<&'static str, usize>,
}

impl Subject {
    async fn start(args: &[&str], scripts: &'static Scripts) -> Self {
        let store = Store::start(args).await;
        let client = Arc::new(Client::with_scripts(mk_redis(&store.server), scripts));
        let (session, epoch) = (SessionId::random(), store.epoch.subscribe());
        let locks = RedisLocks::with_client(client, NAMESPACE, session, Hub::new(), epoch).unwrap();
        let url = format!("redis://{}/", store.server.address());
        let client = connect(&url).await.unwrap();
        let mut messages = redis::Client::open(url).unwrap().get_async_pubsub().await.unwrap();
        messages.psubscribe("*").await.unwrap();
        Subject { store, locks, messages, client, seen: BTreeMap::new() }
    }

    async fn set_clock(&mut self, ms: u64) {
        let set = redis::cmd("SET").arg("clock").arg(ms).to_owned();
        set.exec_async(&mut self.client).await.unwrap();
    }

    /// Everything published so far, one line a message.
    async fn published(&mut self) -> String {
        let end = redis::cmd("PUBLISH").arg("end").arg("").to_owned();
        end.exec_async(&mut self.client).await.unwrap();
        let mut lines = String::new();
        let mut stream = self.messages.on_message();
        loop {
            let message = stream.next().await.unwrap();
            if message.get_channel_name() == "end" {
                return lines;
            }
            let payload: String = message.get_payload().unwrap();
            writeln!(lines, "{} {payload}", message.get_channel_name()).unwrap();
        }
    }
}

async fn store_step(
    locks: &RedisLocks,
    at: &Address,
    config: &LockConfig,
    (op, newest): (&Op, u64),
) -> Result<Outcome, BackendError> {
    Ok(match op {
        Op::Acquire { hold, enqueue, max_hold_ms } => {
            let request = mk_request(config, *hold, *enqueue, *max_hold_ms);
            Outcome::Attempt(locks.acquire(at, &request).await?)
        }
        Op::Renew { hold, ttl_ms } => {
            let ttl = Duration::from_millis(*ttl_ms);
            Outcome::Renewal(locks.renew(at, config, &hold_id(*hold), ttl).await?)
        }
        Op::Release { hold } => Outcome::Release(locks.release(at, config, &hold_id(*hold)).await?),
        Op::PassOn { hold, behind, heir } => {
            let (fence, heir) = (mk_fence(passed_as(newest, *behind)), mk_ticket(config, *heir, 0));
            Outcome::Passed(locks.pass_on(at, config, &hold_id(*hold), fence, heir.into()).await?)
        }
        Op::Cancel { hold } => {
            locks.cancel(at, config, &hold_id(*hold)).await?;
            Outcome::Cancelled
        }
        Op::Beat { session } => Outcome::Beat(locks.beat(at, config, &session_id(*session)).await?),
        Op::ForceRelease | Op::ForceUpTo { .. } => {
            let taken = locks.force_release_holds(at, config, meant(op, newest)).await?;
            Outcome::Forced(taken.into_iter().next())
        }
        Op::Raise { hold, ahead } => {
            let (hold, to) = (hold.map(hold_id), mk_fence(raise_to(newest, *ahead)));
            Outcome::Raised(locks.raise(at, config, hold.as_ref(), to).await?)
        }
    })
}

/// Runs one history against both; an error names the first step at which they differ.
async fn run(subject: &mut Subject, at: &Address, history: &History) -> Result<(), TestCaseError> {
    // What an earlier history has left that failed.
    subject.published().await;
    let mut state = LockState::new(history.classes[0].policy());
    let (mut now_ms, mut seen_ms, mut expected) = (history.start_ms, 0, String::new());
    for (n, (op, passed_ms, class)) in history.steps.iter().enumerate() {
        now_ms = now_ms.saturating_add_signed(*passed_ms);
        seen_ms = now_ms.max(seen_ms);
        let config = &history.classes[usize::from(*class)];
        if n == 0 {
            state = LockState::new(config.policy());
        }
        let newest = state.view(seen_ms).2;
        let (outcome, messages) = model_step(&mut state, now_ms, seen_ms, config, op);
        expected.extend(messages);
        subject.set_clock(now_ms).await;
        let found = store_step(&subject.locks, at, config, (op, newest)).await;
        let found = found.map_err(|error| TestCaseError::fail(format!("step {n}: {error}")))?;
        *subject.seen.entry(found.name()).or_default() += 1;
        prop_assert_eq!(found, outcome, "step {} at {} ms: {:?}", n, now_ms, op);
        let view = subject.locks.query(at, config).await.unwrap();
        prop_assert_eq!(view, model_view(&state, seen_ms), "after step {}: {:?}", n, op);
    }
    prop_assert_eq!(subject.published().await, expected, "the pushes");
    Ok(())
}

/// Runs many histories on a server that is started with `args`; the kinds of outcomes seen, or the
/// first difference.
fn compare(
    args: &[&str],
    scripts: &'static Scripts,
    histories_to_run: u32,
) -> Result<BTreeMap<&'static str, usize>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let subject = RefCell::new(runtime.block_on(Subject::start(args, scripts)));
    let count = Cell::new(0usize);
    let config = Config {
        cases: histories_to_run,
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&histories(), |history| {
        count.set(count.get() + 1);
        let at = mk_address(&format!("history/{}", count.get()));
        runtime.block_on(run(&mut subject.borrow_mut(), &at, &history))
    });
    let _guard = runtime.enter();
    let subject = subject.into_inner();
    subject.store.epoch.send_replace(None);
    result.map_err(|error| error.to_string())?;
    println!("{} transitions, no difference: {:?}", count.get() * STEPS, subject.seen);
    Ok(subject.seen)
}

#[test]
fn functions_do_what_the_rules_say() {
    let seen = compare(&[], &SCRIPTS, HISTORIES).unwrap_or_else(|error| panic!("{error}"));
    assert!(seen.values().sum::<usize>() >= 20_000);
    assert_eq!(seen.len(), 19, "a kind of outcome never happened: {seen:?}");
    assert!(seen.values().all(|times| *times >= 25), "too seldom: {seen:?}");
}

#[test]
fn scripts_do_what_the_rules_say_where_there_are_no_functions() {
    let args = ["--rename-command", "FCALL", "", "--rename-command", "FUNCTION", ""];
    compare(&args, &SCRIPTS, 30).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_wrong_rule_is_found() {
    let found = compare(&[], &BROKEN_SCRIPTS, HISTORIES).unwrap_err();
    assert!(found.contains("left"), "{found}");
}

#[tokio::test]
async fn numbers_are_written_alike_where_a_long_is_short() {
    let store = Store::start(&[]).await;
    // What `string.format` does where a C long has 32 bits.
    let short = "local string = { gsub = string.gsub, format = function(format, number) \
                 if string.find(format, '%d', 1, true) and number >= 2147483648 then \
                 return '-2147483648' end return string.format(format, number) end }\n";
    for number in ["0", "7", "2147483647", "2147483648", "1795703000000", "9007199254740991"] {
        for server in ["", short] {
            let script = format!("{server}{}return int(tonumber(ARGV[1]))", Scripts::numbers());
            let text: String = store.command(&["EVAL", &script, "0", number]).await.unwrap();
            assert_eq!(text, number, "{server}");
        }
    }
}
