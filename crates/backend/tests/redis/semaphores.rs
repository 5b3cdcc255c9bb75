//! The semaphores' Lua against core's `SemaphoreState`: random histories, with the store's time
//! injected (C7).

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Write,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use holdfast_backend::{
    hub::Hub,
    redis::{RedisLocks, RedisSemaphores, client::Client, scripts::Scripts},
};
use holdfast_core::{
    Address, BackendError, Fence, HoldId, Kind, SessionId,
    lock::{
        Acquire, Attempt, Beat, Fairness, HolderView, LockBackend, LockConfig, LockView, Release,
        Renewal, Which, state::Offer,
    },
    queue::Ticket,
    semaphore::{
        NAMED, Policy,
        state::{Holding, SemaphoreState},
    },
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    differential::{BROKEN_SCRIPTS, SCRIPTS},
    fixture::{NAMESPACE, Store, connect, mk_address, mk_config, mk_redis},
    model::{hold_id, mk_attempt, mk_fence, mk_grant, mk_holder, mk_request, session_id},
};

const HISTORIES: u32 = 300;
const STEPS: usize = 60;

#[derive(Clone, Debug)]
enum Op {
    Acquire {
        hold: u8,
        permits: u32,
        enqueue: bool,
        max_hold_ms: u64,
    },
    Renew {
        hold: u8,
        ttl_ms: u64,
    },
    Release {
        hold: u8,
    },
    Cancel {
        hold: u8,
    },
    Beat {
        session: u8,
    },
    ForceAll,
    /// The hold that was granted so many grants ago.
    ForceOne {
        back: u64,
    },
    /// That one and all before it.
    ForceUpTo {
        back: u64,
    },
}

/// What a caller sees of an operation.
#[derive(Debug, PartialEq)]
enum Outcome {
    Attempt(Attempt),
    Renewal(Renewal),
    Release(Release),
    Cancelled,
    Beat(Beat),
    Forced(Vec<HolderView>),
}

#[derive(Clone, Debug)]
struct History {
    start_ms: u64,
    classes: Vec<LockConfig>,
    steps: Vec<(Op, i64, u8)>,
}

fn ops() -> impl Strategy<Value = Op> {
    let hold = 0u8..12;
    let max_hold = prop_oneof![3 => Just(0u64), 1 => 1u64..3_000];
    prop_oneof![
        9 => (hold.clone(), prop_oneof![3 => Just(1u32), 1 => 1u32..5], prop::bool::weighted(0.7), max_hold).prop_map(
            |(hold, permits, enqueue, max_hold_ms)| Op::Acquire { hold, permits, enqueue, max_hold_ms }
        ),
        3 => (hold.clone(), 1u64..3_000).prop_map(|(hold, ttl_ms)| Op::Renew { hold, ttl_ms }),
        5 => hold.clone().prop_map(|hold| Op::Release { hold }),
        1 => hold.prop_map(|hold| Op::Cancel { hold }),
        6 => (0u8..3).prop_map(|session| Op::Beat { session }),
        1 => Just(Op::ForceAll),
        1 => (0u64..4).prop_map(|back| Op::ForceOne { back }),
        1 => (0u64..4).prop_map(|back| Op::ForceUpTo { back }),
    ]
}

fn classes() -> impl Strategy<Value = LockConfig> {
    let share = prop_oneof![4 => Just(0u32), 1 => 1u32..4];
    (1i64..4, 300u64..3_000, 1u32..7, share, 0u32..6, prop::bool::weighted(0.7)).prop_map(
        |(generation, ttl_ms, permits, max_per_holder, max_waiters, fifo)| LockConfig {
            generation,
            ttl_ms,
            permits,
            max_per_holder,
            max_waiters,
            fairness: if fifo { Fairness::Fifo } else { Fairness::None },
            ..(*mk_config()).clone()
        },
    )
}

fn histories() -> impl Strategy<Value = History> {
    // Beyond 2^31, today, and close to the largest sequence there can be.
    let starts =
        prop_oneof![Just(5_000_000_000u64), Just(1_795_434_121_145), Just((1 << 42) - 9_000_000)];
    let passes = prop_oneof![6 => 0i64..200, 3 => 0i64..2_000, 1 => -3_000i64..0];
    let steps = prop::collection::vec((ops(), passes, 0u8..3), STEPS);
    (starts, prop::collection::vec(classes(), 3), steps, prop::bool::weighted(0.2)).prop_map(
        |(start_ms, classes, mut steps, crowded)| {
            if crowded {
                let crowd = crowd(classes[0].permits);
                steps.splice(..crowd.len(), crowd.into_iter().map(|op| (op, 0, 0)));
            }
            History { start_ms, classes, steps }
        },
    )
}

/// Two of one session wait for what is taken from a third at once: chance alone hardly ever has it.
fn crowd(permits: u32) -> Vec<Op> {
    let acquire = |hold, permits| Op::Acquire { hold, permits, enqueue: true, max_hold_ms: 0 };
    vec![acquire(0, permits), acquire(1, 1), acquire(4, 1), Op::ForceAll, Op::Beat { session: 1 }]
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Outcome::Attempt(Attempt::Granted(_)) => "granted",
            Outcome::Attempt(Attempt::Queued { .. }) => "queued",
            Outcome::Attempt(Attempt::Locked { .. }) => "locked",
            Outcome::Attempt(Attempt::QueueFull { .. }) => "queue full",
            Outcome::Attempt(Attempt::TooMany { .. }) => "too many",
            Outcome::Attempt(Attempt::Cancelled) => "refused as cancelled",
            Outcome::Renewal(Renewal::Renewed { .. }) => "renewed",
            Outcome::Renewal(Renewal::Lost) => "lost",
            Outcome::Release(Release::Released) => "released",
            Outcome::Release(Release::NotHeld) => "not held",
            Outcome::Cancelled => "cancelled",
            Outcome::Beat(Beat { offered, .. }) if offered.len() > 1 => "several offered",
            Outcome::Beat(Beat { offered, .. }) if !offered.is_empty() => "offered",
            Outcome::Beat(Beat { tickets: 1.., .. }) => "waiting",
            Outcome::Beat(_) => "not waiting",
            Outcome::Forced(taken) if taken.len() > 1 => "several forced",
            Outcome::Forced(taken) if taken.is_empty() => "not forced",
            Outcome::Forced(_) => "forced",
        }
    }
}

fn request(
    config: &LockConfig,
    hold: u8,
    permits: u32,
    enqueue: bool,
    max_hold_ms: u64,
) -> Acquire {
    Acquire { permits, ..mk_request(config, hold, enqueue, max_hold_ms) }
}

fn mk_holding(holding: &Holding, now_ms: u64) -> HolderView {
    HolderView { permits: holding.permits, ..mk_holder(&holding.held, now_ms) }
}

/// One step of the model: what the caller sees, and what is published.
fn model_step(
    state: &mut SemaphoreState,
    now_ms: u64,
    seen_ms: u64,
    config: &LockConfig,
    op: &Op,
) -> (Outcome, String) {
    let policy = Policy::of(config);
    let mut told = String::new();
    let (outcome, offers) = match op {
        Op::Acquire { hold, permits, enqueue, max_hold_ms } => {
            let request = request(config, *hold, *permits, *enqueue, *max_hold_ms);
            let want = Ticket {
                hold: request.hold,
                session: request.session,
                holder: request.holder,
                ttl_ms: config.ttl_ms,
                max_hold_ms: *max_hold_ms,
                permits: *permits,
            };
            let (acquired, offers) = state.acquire(now_ms, seen_ms, policy, want, *enqueue);
            (Outcome::Attempt(mk_attempt(acquired)), offers)
        }
        Op::Renew { hold, ttl_ms } => {
            let (left, offers) = state.renew(now_ms, seen_ms, policy, &hold_id(*hold), *ttl_ms);
            let renewed = |ms| Renewal::Renewed { ttl: Duration::from_millis(ms) };
            (Outcome::Renewal(left.map_or(Renewal::Lost, renewed)), offers)
        }
        Op::Release { hold } => {
            let (held, offers) = state.release(now_ms, seen_ms, policy, &hold_id(*hold));
            (Outcome::Release(if held { Release::Released } else { Release::NotHeld }), offers)
        }
        Op::Cancel { hold } => {
            let offers = state.cancel(now_ms, seen_ms, policy, &hold_id(*hold), config.ttl_ms);
            (Outcome::Cancelled, offers)
        }
        Op::Beat { session } => {
            let (beaten, offers) = state.beat(now_ms, seen_ms, policy, &session_id(*session));
            let offered = beaten.offered.into_iter();
            let beat = Beat {
                offered: offered.map(|(hold, seq, ms)| (hold, mk_grant(seq, ms, false))).collect(),
                tickets: beaten.tickets,
                next: Duration::from_millis(beaten.next_ms),
                // A key without any grant has no epoch either.
                last_fence: if beaten.seq == 0 { Fence::new(0) } else { mk_fence(beaten.seq) },
            };
            (Outcome::Beat(beat), offers)
        }
        Op::ForceAll | Op::ForceOne { .. } | Op::ForceUpTo { .. } => {
            let which = meant(op, state.seq());
            let is_meant = |seq| which.takes(mk_fence(seq));
            let (taken, offers) = state.force_release(now_ms, seen_ms, policy, is_meant);
            for holding in &taken {
                let (session, hold) = (&holding.held.session, &holding.held.hold);
                writeln!(told, "hf:shop:s:{session} l {hold}").unwrap();
            }
            (Outcome::Forced(taken.iter().map(|h| mk_holding(h, seen_ms)).collect()), offers)
        }
    };
    for Offer { session, hold, seq, ttl_ms } in offers {
        writeln!(told, "hf:shop:s:{session} g {hold} {seq} {ttl_ms} 1").unwrap();
    }
    (outcome, told)
}

/// What a force release takes. Fences of one history are often one apart.
fn meant(op: &Op, seq: u64) -> Which {
    match op {
        Op::ForceOne { back } => Which::One(mk_fence(seq.saturating_sub(*back))),
        Op::ForceUpTo { back } => Which::UpTo(mk_fence(seq.saturating_sub(*back))),
        _ => Which::All,
    }
}

fn model_view(state: &SemaphoreState, seen_ms: u64) -> LockView {
    let (holds, queue, seq) = state.view(seen_ms);
    let holds: Vec<&Holding> = holds.collect();
    let mut named = holds.iter().take(NAMED).map(|holding| mk_holding(holding, seen_ms));
    LockView {
        holder: named.next(),
        others: named.collect(),
        holds: holds.len() as u32,
        used: holds.iter().map(|holding| holding.permits).sum(),
        waiters: queue.len() as u32,
        queue: queue.iter().take(10).map(|ticket| ticket.holder.clone()).collect(),
        last_fence: (seq > 0).then(|| mk_fence(seq)),
    }
}

async fn store_step(
    store: &RedisSemaphores,
    at: &Address,
    config: &LockConfig,
    op: &Op,
    seq: u64,
) -> Result<Outcome, BackendError> {
    let id = |hold: &u8| -> HoldId { hold_id(*hold) };
    Ok(match op {
        Op::Acquire { hold, permits, enqueue, max_hold_ms } => {
            let request = request(config, *hold, *permits, *enqueue, *max_hold_ms);
            Outcome::Attempt(store.acquire(at, &request).await?)
        }
        Op::Renew { hold, ttl_ms } => {
            let ttl = Duration::from_millis(*ttl_ms);
            Outcome::Renewal(store.renew(at, config, &id(hold), ttl).await?)
        }
        Op::Release { hold } => Outcome::Release(store.release(at, config, &id(hold)).await?),
        Op::Cancel { hold } => {
            store.cancel(at, config, &id(hold)).await?;
            Outcome::Cancelled
        }
        Op::Beat { session } => Outcome::Beat(store.beat(at, config, &session_id(*session)).await?),
        Op::ForceAll | Op::ForceOne { .. } | Op::ForceUpTo { .. } => {
            Outcome::Forced(store.force_release_holds(at, config, meant(op, seq)).await?)
        }
    })
}

struct Subject {
    store: Store,
    semaphores: Arc<RedisSemaphores>,
    messages: redis::aio::PubSub,
    client: redis::aio::MultiplexedConnection,
    seen: BTreeMap<&'static str, usize>,
}

impl Subject {
    async fn start(args: &[&str], scripts: &'static Scripts) -> Self {
        let store = Store::start(args).await;
        let client = Client::with_scripts(mk_redis(&store.server), scripts);
        let (session, epoch) = (SessionId::random(), store.epoch.subscribe());
        let locks =
            RedisLocks::with_client(Arc::new(client), NAMESPACE, session, Hub::new(), epoch)
                .unwrap();
        let url = format!("redis://{}/", store.server.address());
        let client = connect(&url).await.unwrap();
        let mut messages = redis::Client::open(url).unwrap().get_async_pubsub().await.unwrap();
        messages.psubscribe("*").await.unwrap();
        let semaphores = RedisSemaphores::beside(locks);
        Subject { store, semaphores, messages, client, seen: BTreeMap::new() }
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

/// Runs one history against both; an error names the first step at which they differ.
async fn run(subject: &mut Subject, at: &Address, history: &History) -> Result<(), TestCaseError> {
    let mut state = SemaphoreState::new(Policy::of(&history.classes[0]));
    let (mut now_ms, mut seen_ms, mut expected) = (history.start_ms, 0, String::new());
    for (n, (op, passed_ms, class)) in history.steps.iter().enumerate() {
        now_ms = now_ms.saturating_add_signed(*passed_ms);
        seen_ms = now_ms.max(seen_ms);
        let config = &history.classes[usize::from(*class)];
        if n == 0 {
            state = SemaphoreState::new(Policy::of(config));
        }
        let seq = state.seq();
        let (outcome, told) = model_step(&mut state, now_ms, seen_ms, config, op);
        expected.push_str(&told);
        let set = redis::cmd("SET").arg("clock").arg(now_ms).to_owned();
        set.exec_async(&mut subject.client).await.unwrap();
        let found = store_step(&subject.semaphores, at, config, op, seq).await;
        let found = found.map_err(|error| TestCaseError::fail(format!("step {n}: {error}")))?;
        *subject.seen.entry(found.name()).or_default() += 1;
        prop_assert_eq!(found, outcome, "step {} at {} ms: {:?}", n, now_ms, op);
        let view = subject.semaphores.query(at, config).await.unwrap();
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
        let at =
            Address { kind: Kind::Semaphore, ..mk_address(&format!("history/{}", count.get())) };
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
fn functions_do_what_the_rules_of_semaphores_say() {
    let seen = compare(&[], &SCRIPTS, HISTORIES).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(seen.len(), 18, "a kind of outcome never happened: {seen:?}");
    assert!(seen.values().all(|times| *times >= 5), "too seldom: {seen:?}");
}

#[test]
fn scripts_do_what_the_rules_of_semaphores_say_where_there_are_no_functions() {
    let args = ["--rename-command", "FCALL", "", "--rename-command", "FUNCTION", ""];
    compare(&args, &SCRIPTS, 30).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_wrong_rule_of_semaphores_is_found() {
    let found = compare(&[], &BROKEN_SCRIPTS, HISTORIES).unwrap_err();
    assert!(found.contains("left"), "{found}");
}
