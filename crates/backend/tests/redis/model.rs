//! The model that the Lua is held against: random histories of core's `LockState`, and what a caller
//! sees of each step.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    Fence, HoldId, Holder, SessionId,
    lock::{
        Acquire, Attempt, Beat, Fairness, Grant, HolderView, LockConfig, LockView, Passed, Release,
        Renewal, Which,
        state::{Acquired, Held, LockState, Offer, PassedOn},
    },
    queue::Ticket,
};
use proptest::prelude::*;

use crate::fixture::mk_config;

/// The epoch that histories run in.
const EPOCH: u64 = 1;
/// Steps of a history.
pub const STEPS: usize = 60;

#[derive(Clone, Debug)]
pub enum Op {
    Acquire {
        hold: u8,
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
    /// A hold that its holder has passed on, under the newest sequence or an older one.
    PassOn {
        hold: u8,
        behind: u64,
        heir: u8,
    },
    Cancel {
        hold: u8,
    },
    Beat {
        session: u8,
    },
    ForceRelease,
    /// The hold with this sequence, counted back from the newest, or an older one.
    ForceUpTo {
        back: u64,
    },
    /// To the newest sequence and so many more.
    Raise {
        hold: Option<u8>,
        ahead: i64,
    },
}

/// An operation, the time that passes before it, and the class it is sent with.
pub type Step = (Op, i64, u8);

#[derive(Clone, Debug)]
pub struct History {
    pub start_ms: u64,
    pub classes: Vec<LockConfig>,
    pub steps: Vec<Step>,
}

/// What a caller sees of an operation.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    Attempt(Attempt),
    Renewal(Renewal),
    Release(Release),
    Passed(Passed),
    Cancelled,
    Beat(Beat),
    Forced(Option<HolderView>),
    Raised(bool),
}

pub fn ops() -> impl Strategy<Value = Op> {
    let hold = 0u8..7;
    prop_oneof![
        6 => (hold.clone(), any::<bool>(), prop_oneof![3 => Just(0u64), 1 => 1u64..3_000])
            .prop_map(|(hold, enqueue, max_hold_ms)| Op::Acquire { hold, enqueue, max_hold_ms }),
        3 => (hold.clone(), 1u64..3_000).prop_map(|(hold, ttl_ms)| Op::Renew { hold, ttl_ms }),
        4 => hold.clone().prop_map(|hold| Op::Release { hold }),
        1 => (hold.clone(), prop_oneof![9 => Just(0u64), 1 => 1u64..4], hold.clone())
            .prop_map(|(hold, behind, heir)| Op::PassOn { hold, behind, heir }),
        1 => hold.clone().prop_map(|hold| Op::Cancel { hold }),
        2 => (prop::option::weighted(0.7, hold), -2i64..20)
            .prop_map(|(hold, ahead)| Op::Raise { hold, ahead }),
        3 => (0u8..3).prop_map(|session| Op::Beat { session }),
        1 => Just(Op::ForceRelease),
        1 => (0u64..3).prop_map(|back| Op::ForceUpTo { back }),
    ]
}

pub fn classes() -> impl Strategy<Value = LockConfig> {
    let delays = || prop_oneof![2 => Just(0u64), 1 => 1u64..1_500];
    (1i64..4, 300u64..3_000, delays(), delays(), 0u32..5, any::<bool>(), 0u64..4_000).prop_map(
        |(generation, ttl_ms, min_hold_ms, lock_delay_ms, max_waiters, fifo, floor)| LockConfig {
            generation,
            ttl_ms,
            min_hold_ms,
            lock_delay_ms,
            max_waiters,
            fairness: if fifo { Fairness::Fifo } else { Fairness::None },
            // Now and then a floor ahead of the clock; see `run`.
            fence_floor: Fence::new(floor),
            ..(*mk_config()).clone()
        },
    )
}

pub fn histories() -> impl Strategy<Value = History> {
    // Beyond 2^31, today, and close to the largest sequence there can be.
    let starts =
        prop_oneof![Just(5_000_000_000u64), Just(1_795_434_121_145), Just((1 << 42) - 9_000_000)];
    let passes = prop_oneof![6 => 0i64..200, 3 => 0i64..2_000, 1 => -3_000i64..0];
    let steps = prop::collection::vec((ops(), passes, 0u8..3), STEPS);
    (starts, prop::collection::vec(classes(), 3), steps).prop_map(
        |(start_ms, mut classes, steps)| {
            for class in &mut classes {
                let ahead = class.fence_floor.get();
                let floor = if ahead > 3_000 { start_ms + ahead } else { 0 };
                class.fence_floor = Fence::new(floor);
            }
            History { start_ms, classes, steps }
        },
    )
}

impl Outcome {
    pub fn name(&self) -> &'static str {
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
            Outcome::Passed(Passed { is_heirs: true, .. }) => "passed on",
            Outcome::Passed(_) => "not passed on",
            Outcome::Cancelled => "cancelled",
            Outcome::Beat(Beat { offered, .. }) if !offered.is_empty() => "offered",
            Outcome::Beat(Beat { tickets: 1.., .. }) => "waiting",
            Outcome::Beat(_) => "not waiting",
            Outcome::Forced(Some(_)) => "forced",
            Outcome::Forced(None) => "not forced",
            Outcome::Raised(true) => "raised",
            Outcome::Raised(false) => "not raised",
        }
    }
}

pub fn hold_id(n: u8) -> HoldId {
    HoldId::new(format!("hold{n}")).unwrap()
}

pub fn session_id(n: u8) -> SessionId {
    SessionId::new(format!("session{n}")).unwrap()
}

/// What a release by force takes.
pub fn meant(op: &Op, newest: u64) -> Which {
    match op {
        Op::ForceUpTo { back } => Which::UpTo(mk_fence(newest.saturating_sub(*back))),
        _ => Which::All,
    }
}

pub fn mk_fence(seq: u64) -> Fence {
    Fence::compose(EPOCH, seq).unwrap()
}

pub fn mk_attempt(acquired: Acquired) -> Attempt {
    match acquired {
        Acquired::Granted { seq, ttl_ms } => Attempt::Granted(mk_grant(seq, ttl_ms, true)),
        Acquired::Queued(position) => Attempt::Queued { position },
        Acquired::Locked { retry_after_ms, waiters } => {
            let retry_after = Duration::from_millis(retry_after_ms);
            Attempt::Locked { retry_after, waiters }
        }
        Acquired::QueueFull(waiters) => Attempt::QueueFull { waiters },
        Acquired::TooMany(most) => Attempt::TooMany { most },
        Acquired::Cancelled => Attempt::Cancelled,
    }
}

pub fn mk_grant(seq: u64, ttl_ms: u64, claimed: bool) -> Grant {
    Grant { fence: mk_fence(seq), ttl: Duration::from_millis(ttl_ms), claimed, since: None }
}

pub fn mk_holder(held: &Held, now_ms: u64) -> HolderView {
    HolderView {
        holder: held.holder.clone(),
        fence: mk_fence(held.seq),
        ttl: Duration::from_millis(held.expires_ms - now_ms),
        held_for: Duration::from_millis(now_ms - held.since_ms),
        permits: 1,
    }
}

pub fn mk_request(config: &LockConfig, hold: u8, enqueue: bool, max_hold_ms: u64) -> Acquire {
    Acquire {
        config: Arc::new(config.clone()),
        hold: hold_id(hold),
        session: session_id(hold % 3),
        holder: Holder::new(format!("pod-{hold}-é")).unwrap(),
        ttl: Duration::from_millis(config.ttl_ms),
        max_hold: Duration::from_millis(max_hold_ms),
        enqueue,
        permits: 1,
    }
}

pub fn mk_ticket(config: &LockConfig, hold: u8, max_hold_ms: u64) -> Ticket {
    let request = mk_request(config, hold, true, max_hold_ms);
    Ticket {
        hold: request.hold,
        session: request.session,
        holder: request.holder,
        ttl_ms: config.ttl_ms,
        max_hold_ms,
        permits: 1,
    }
}

/// The sequence that a hold is passed on under, where `newest` is the one granted last.
pub fn passed_as(newest: u64, behind: u64) -> u64 {
    newest.saturating_sub(behind)
}

/// What a raise is to, where `newest` is the sequence granted last.
pub fn raise_to(newest: u64, ahead: i64) -> u64 {
    newest.saturating_add_signed(ahead).max(1)
}

/// One step of the model.
pub fn model_step(
    state: &mut LockState,
    now_ms: u64,
    seen_ms: u64,
    config: &LockConfig,
    op: &Op,
) -> (Outcome, Vec<String>) {
    let policy = config.policy();
    let mut lost = Vec::new();
    let (outcome, offer): (Outcome, Option<Offer>) = match op {
        Op::Acquire { hold, enqueue, max_hold_ms } => {
            let want = mk_ticket(config, *hold, *max_hold_ms);
            let (acquired, offer) = state.acquire(now_ms, seen_ms, policy, want, *enqueue);
            (Outcome::Attempt(mk_attempt(acquired)), offer)
        }
        Op::Renew { hold, ttl_ms } => {
            let (left, offer) = state.renew(now_ms, seen_ms, policy, &hold_id(*hold), *ttl_ms);
            let renewed = |ms| Renewal::Renewed { ttl: Duration::from_millis(ms) };
            (Outcome::Renewal(left.map_or(Renewal::Lost, renewed)), offer)
        }
        Op::Release { hold } => {
            let (held, offer) = state.release(now_ms, seen_ms, policy, &hold_id(*hold));
            (Outcome::Release(if held { Release::Released } else { Release::NotHeld }), offer)
        }
        Op::PassOn { hold, behind, heir } => {
            let seq = passed_as(state.view(seen_ms).2, *behind);
            let (passed, offer) = state.pass_on(
                now_ms,
                seen_ms,
                policy,
                (&hold_id(*hold), seq),
                mk_ticket(config, *heir, 0),
            );
            let release = if passed.was_held { Release::Released } else { Release::NotHeld };
            let PassedOn { is_heirs, first, .. } = passed;
            (Outcome::Passed(Passed { release, is_heirs, first }), offer)
        }
        Op::Cancel { hold } => {
            let offer = state.cancel(now_ms, seen_ms, policy, &hold_id(*hold), config.ttl_ms);
            (Outcome::Cancelled, offer)
        }
        Op::Beat { session } => {
            let (beaten, offer) = state.beat(now_ms, seen_ms, policy, &session_id(*session));
            let offered = beaten.offered.into_iter();
            let beat = Beat {
                offered: offered.map(|(hold, seq, ms)| (hold, mk_grant(seq, ms, false))).collect(),
                tickets: beaten.tickets,
                next: Duration::from_millis(beaten.next_ms),
                // A key without any grant has no epoch either.
                last_fence: if beaten.seq == 0 { Fence::new(0) } else { mk_fence(beaten.seq) },
            };
            (Outcome::Beat(beat), offer)
        }
        Op::Raise { hold, ahead } => {
            let to = raise_to(state.view(seen_ms).2, *ahead);
            let hold = hold.map(hold_id);
            let (raised, offer) = state.raise(now_ms, seen_ms, policy, hold.as_ref(), to);
            (Outcome::Raised(raised), offer)
        }
        Op::ForceRelease | Op::ForceUpTo { .. } => {
            let which = meant(op, state.view(seen_ms).2);
            let is_meant = |seq| which.takes(mk_fence(seq));
            let (held, offer) = state.force_release(now_ms, seen_ms, policy, is_meant);
            lost.extend(
                held.iter().map(|held| format!("hf:shop:s:{} l {}\n", held.session, held.hold)),
            );
            (Outcome::Forced(held.map(|held| mk_holder(&held, seen_ms))), offer)
        }
    };
    lost.extend(offer.map(|offer| {
        let Offer { session, hold, seq, ttl_ms } = offer;
        format!("hf:shop:s:{session} g {hold} {seq} {ttl_ms} {EPOCH}\n")
    }));
    (outcome, lost)
}

pub fn model_view(state: &LockState, seen_ms: u64) -> LockView {
    let (held, queue, seq) = state.view(seen_ms);
    LockView {
        holder: held.map(|held| mk_holder(held, seen_ms)),
        others: Vec::new(),
        holds: u32::from(held.is_some()),
        used: u32::from(held.is_some()),
        waiters: queue.len() as u32,
        queue: queue.iter().take(10).map(|ticket| ticket.holder.clone()).collect(),
        last_fence: (seq > 0).then(|| mk_fence(seq)),
    }
}
