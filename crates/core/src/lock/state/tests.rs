//! Random histories against the promises, and one sentence per rule.

use proptest::prelude::*;

use super::*;
use crate::{Fence, lock::LockConfig};

const HOLDS: usize = 6;
const SESSIONS: usize = 3;

fn mk_policy() -> Policy {
    Policy {
        generation: 1,
        min_hold_ms: 0,
        lock_delay_ms: 0,
        max_waiters: 4,
        beat_ms: 100,
        fairness: Fairness::Fifo,
        fence_floor: 0,
    }
}

fn mk_hold(i: usize) -> HoldId {
    HoldId::new(format!("h{i}")).unwrap()
}

fn mk_session(i: usize) -> SessionId {
    SessionId::new(format!("s{}", i % SESSIONS)).unwrap()
}

fn mk_ticket(i: usize, ttl_ms: u64) -> Ticket {
    Ticket {
        hold: mk_hold(i),
        session: mk_session(i),
        holder: Holder::new(format!("pod-{i}")).unwrap(),
        ttl_ms,
        max_hold_ms: 0,
        permits: 1,
    }
}

#[derive(Clone, Debug)]
enum Op {
    Acquire { who: usize, ttl_ms: u64, enqueue: bool },
    Renew { who: usize, ttl_ms: u64 },
    Release { who: usize },
    PassOn { who: usize, behind: u64, heir: usize },
    Cancel { who: usize },
    Beat { session: usize },
    ForceRelease,
}

fn arb_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..HOLDS, 50u64..600, prop::bool::weighted(0.8))
            .prop_map(|(who, ttl_ms, enqueue)| Op::Acquire { who, ttl_ms, enqueue }),
        3 => (0..HOLDS, 50u64..600).prop_map(|(who, ttl_ms)| Op::Renew { who, ttl_ms }),
        3 => (0..HOLDS).prop_map(|who| Op::Release { who }),
        3 => (0..HOLDS, prop_oneof![4 => Just(0u64), 1 => 1u64..3], 0..HOLDS)
            .prop_map(|(who, behind, heir)| Op::PassOn { who, behind, heir }),
        1 => (0..HOLDS).prop_map(|who| Op::Cancel { who }),
        3 => (0..SESSIONS).prop_map(|session| Op::Beat { session }),
        1 => Just(Op::ForceRelease),
    ]
}

/// What the world saw of a grant.
#[derive(Clone, Debug)]
struct Seen {
    hold: HoldId,
    seq: u64,
    until_ms: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The promises, whatever happens and however the store's clock jumps back.
    #[test]
    fn every_history_keeps_the_promises(
        min_hold_ms in prop_oneof![Just(0u64), 1u64..300],
        lock_delay_ms in prop_oneof![Just(0u64), 1u64..300],
        steps in prop::collection::vec((-200i64..400, arb_op()), 1..80),
    ) {
        let policy = Policy { min_hold_ms, lock_delay_ms, ..mk_policy() };
        let mut state = LockState::new(policy);
        let (mut clock_ms, mut top_ms, mut top_seq) = (10_000i64, 0u64, 0u64);
        let mut current: Option<Seen> = None;
        let mut cancelled: BTreeMap<HoldId, u64> = BTreeMap::new();
        for (advance, op) in steps {
            clock_ms = (clock_ms + advance).max(0);
            let now_ms = clock_ms as u64;
            top_ms = top_ms.max(now_ms);
            let floor = 0;
            let line_before: Vec<HoldId> = state.queue.iter().map(|t| t.hold.clone()).collect();
            let mut grant = None;
            let (mut ended, mut inherited) = (false, None);
            let offer = match op.clone() {
                Op::Acquire { who, ttl_ms, enqueue } => {
                    let want = mk_ticket(who, ttl_ms);
                    let (outcome, offer) = state.acquire(now_ms, floor, policy, want, enqueue);
                    if let Acquired::Granted { seq, ttl_ms } = outcome {
                        grant = Some((mk_hold(who), seq, ttl_ms));
                    }
                    offer
                }
                Op::Renew { who, ttl_ms } => {
                    let (left, offer) = state.renew(now_ms, floor, policy, &mk_hold(who), ttl_ms);
                    if let Some(left) = left {
                        let mine = current.as_mut().filter(|c| c.hold == mk_hold(who));
                        let mine = mine.expect("renewed what was never granted");
                        prop_assert!(top_ms < mine.until_ms, "renewed after it had expired");
                        mine.until_ms = top_ms + left;
                    }
                    offer
                }
                Op::Release { who } => {
                    let (released, offer) = state.release(now_ms, floor, policy, &mk_hold(who));
                    ended = released;
                    offer
                }
                Op::PassOn { who, behind, heir } => {
                    let own = current.as_ref().map_or(0, |c| c.seq).saturating_sub(behind);
                    let hold = (&mk_hold(who), own);
                    let (PassedOn { was_held, is_heirs, .. }, offer) =
                        state.pass_on(now_ms, floor, policy, hold, mk_ticket(heir, 300));
                    ended = was_held;
                    if was_held {
                        prop_assert!(behind == 0, "passed on under another's number");
                        let refused_until = cancelled.get(&mk_hold(heir)).copied().unwrap_or(0);
                        prop_assert_eq!(is_heirs, top_ms >= refused_until);
                    }
                    if !is_heirs {
                        ended |= current.as_ref().is_some_and(|c| c.hold == mk_hold(heir));
                        cancelled.insert(mk_hold(heir), top_ms + 600);
                    }
                    if was_held && is_heirs {
                        inherited = Some(own + 1);
                        grant = Some((mk_hold(heir), own + 1, 300));
                    }
                    offer
                }
                Op::Cancel { who } => {
                    ended = current.as_ref().is_some_and(|c| c.hold == mk_hold(who));
                    let offer = state.cancel(now_ms, floor, policy, &mk_hold(who), 300);
                    cancelled.insert(mk_hold(who), top_ms + 600);
                    offer
                }
                Op::Beat { session } => {
                    let (_, offer) = state.beat(now_ms, floor, policy, &mk_session(session));
                    offer
                }
                Op::ForceRelease => {
                    let (taken, offer) = state.force_release(now_ms, floor, policy, |_| true);
                    ended = taken.is_some();
                    offer
                }
            };
            if ended { current = None; }
            let offered = offer.map(|o| (o.hold, o.seq, o.ttl_ms, true));
            let granted = grant.map(|(hold, seq, ttl)| (hold, seq, ttl, false));
            for (hold, seq, ttl_ms, from_queue) in granted.into_iter().chain(offered) {
                let again = current.as_ref().is_some_and(|c| c.hold == hold && c.seq == seq);
                if let (Some(before), false) = (&current, again) {
                    prop_assert!(top_ms >= before.until_ms, "{op:?}: two holders at once");
                    prop_assert!(top_ms >= before.until_ms + lock_delay_ms, "no lock delay");
                }
                if !again {
                    let step = if inherited == Some(seq) { 1 } else { 2 };
                    prop_assert!(seq >= top_seq + step, "{op:?}: fence {seq} after {top_seq}");
                    top_seq = seq;
                }
                let refused_until = cancelled.get(&hold).copied().unwrap_or(0);
                prop_assert!(top_ms >= refused_until, "{op:?}: a cancelled request was granted");
                if from_queue {
                    let at = line_before.iter().position(|h| *h == hold);
                    let overtaken = line_before.iter().take(at.unwrap_or(0));
                    for earlier in overtaken {
                        prop_assert!(state.queue.position(earlier).is_none(), "not first come");
                    }
                }
                current = Some(Seen { hold, seq, until_ms: top_ms + ttl_ms });
            }
            prop_assert!(state.queue.len() <= 4);
            let held = state.view(now_ms).0.map(|h| h.hold.clone());
            if let Some(seen) = &current {
                prop_assert_eq!(held, (top_ms < seen.until_ms).then(|| seen.hold.clone()));
            }
        }
    }
}

#[test]
fn release_hands_over_to_the_first_who_waits_in_the_same_step() {
    let mut state = LockState::new(mk_policy());
    state.acquire(0, 0, mk_policy(), mk_ticket(0, 500), true);
    assert_eq!(state.acquire(1, 0, mk_policy(), mk_ticket(1, 500), true).0, Acquired::Queued(1));
    assert_eq!(state.acquire(2, 0, mk_policy(), mk_ticket(2, 500), true).0, Acquired::Queued(2));
    let (released, offer) = state.release(3, 0, mk_policy(), &mk_hold(0));
    let offer = offer.unwrap();
    assert!(released);
    assert_eq!((offer.hold, offer.seq, offer.ttl_ms), (mk_hold(1), 4, 300));
}

#[test]
fn a_hold_that_was_passed_on_is_its_heirs_wherever_the_heir_stands() {
    let mut state = LockState::new(mk_policy());
    state.acquire(0, 0, mk_policy(), mk_ticket(0, 500), true);
    for i in [1, 2, 3] {
        state.acquire(1, 0, mk_policy(), mk_ticket(i, 500), true);
    }
    let mut pass_on = |now_ms, hold: usize, seq, heir: usize| {
        let heir = mk_ticket(heir, 500);
        let (passed, offer) = state.pass_on(now_ms, 0, mk_policy(), (&mk_hold(hold), seq), heir);
        assert_eq!(offer, None);
        assert_eq!(passed.first, passed.is_heirs.then(|| mk_hold(1)));
        (passed.was_held, passed.is_heirs)
    };
    assert_eq!(pass_on(2, 0, 2, 3), (true, true));
    // The same again is the same; and so is one whose ticket the store has lost.
    assert_eq!(pass_on(3, 0, 2, 3), (false, true));
    assert_eq!(pass_on(4, 3, 3, 0), (true, true));
    // Who holds nothing, or not under this number, has nothing to pass on.
    assert_eq!(pass_on(5, 3, 3, 4), (false, false));
    assert_eq!(pass_on(6, 0, 3, 5), (false, false));
    // Who was told so, wrongly, gets nothing any more.
    let late = state.acquire(7, 0, mk_policy(), mk_ticket(4, 500), true).0;
    assert_eq!(late, Acquired::Cancelled);
    // A cancelled heir gets nothing, and the order is as it was.
    state.cancel(7, 0, mk_policy(), &mk_hold(2), 500);
    let heir = mk_ticket(2, 500);
    let (passed, offer) = state.pass_on(8, 0, mk_policy(), (&mk_hold(0), 4), heir);
    assert_eq!(passed, PassedOn { was_held: true, is_heirs: false, first: None });
    assert_eq!(offer.map(|o| (o.hold, o.seq)), Some((mk_hold(1), 6)));
}

#[test]
fn an_unclaimed_offer_ends_with_its_sessions_silence_not_with_its_hold() {
    let mut state = LockState::new(mk_policy());
    state.acquire(0, 0, mk_policy(), mk_ticket(0, 60_000), true);
    state.acquire(0, 0, mk_policy(), mk_ticket(1, 60_000), true);
    state.acquire(0, 0, mk_policy(), mk_ticket(2, 60_000), true);
    state.release(10, 0, mk_policy(), &mk_hold(0));
    for now in [100, 200, 300] {
        state.beat(now, 0, mk_policy(), &mk_session(2));
    }
    // Beat 310 is the first after the claim time of 300 ms.
    let (_, offer) = state.beat(310, 0, mk_policy(), &mk_session(2));
    assert_eq!(offer.unwrap().hold, mk_hold(2));
}

#[test]
fn the_same_hold_again_gets_the_same_fence_and_counts_anew() {
    let mut state = LockState::new(mk_policy());
    let first = state.acquire(0, 7, mk_policy(), mk_ticket(0, 100), false).0;
    let again = state.acquire(60, 9, mk_policy(), mk_ticket(0, 100), false).0;
    assert_eq!(first, Acquired::Granted { seq: 7, ttl_ms: 100 });
    assert_eq!(again, first);
    assert!(state.renew(120, 0, mk_policy(), &mk_hold(0), 100).0.is_some());
}

#[test]
fn a_late_request_of_a_cancelled_hold_is_refused() {
    let mut state = LockState::new(mk_policy());
    state.cancel(0, 0, mk_policy(), &mk_hold(0), 500);
    let late = state.acquire(999, 0, mk_policy(), mk_ticket(0, 500), true).0;
    assert_eq!(late, Acquired::Cancelled);
    let after = state.acquire(1_000, 0, mk_policy(), mk_ticket(0, 500), true).0;
    assert!(matches!(after, Acquired::Granted { .. }));
}

#[test]
fn lock_delay_applies_after_expiry_and_never_after_a_release() {
    let policy = Policy { lock_delay_ms: 1_000, ..mk_policy() };
    let mut state = LockState::new(policy);
    state.acquire(0, 0, policy, mk_ticket(0, 100), false);
    state.release(50, 0, policy, &mk_hold(0));
    let next = state.acquire(50, 0, policy, mk_ticket(1, 100), false).0;
    assert!(matches!(next, Acquired::Granted { .. }));
    let delayed = state.acquire(151, 0, policy, mk_ticket(2, 100), false).0;
    assert_eq!(delayed, Acquired::Locked { retry_after_ms: 999, waiters: 0 });
    let served = state.acquire(1_150, 0, policy, mk_ticket(2, 100), false).0;
    assert!(matches!(served, Acquired::Granted { .. }));
}

#[test]
fn a_hold_released_early_keeps_the_lock_for_its_minimal_time() {
    let policy = Policy { min_hold_ms: 1_000, ..mk_policy() };
    let mut state = LockState::new(policy);
    state.acquire(0, 0, policy, mk_ticket(0, 100), false);
    assert!(state.release(10, 0, policy, &mk_hold(0)).0);
    let early = state.acquire(20, 0, policy, mk_ticket(1, 100), false).0;
    assert_eq!(early, Acquired::Locked { retry_after_ms: 980, waiters: 0 });
    assert!(matches!(
        state.acquire(1_000, 0, policy, mk_ticket(1, 100), false).0,
        Acquired::Granted { .. }
    ));
}

#[test]
fn renewals_never_go_beyond_the_longest_hold() {
    let mut state = LockState::new(mk_policy());
    let want = Ticket { max_hold_ms: 250, ..mk_ticket(0, 100) };
    state.acquire(0, 0, mk_policy(), want, false);
    assert_eq!(state.renew(90, 0, mk_policy(), &mk_hold(0), 100).0, Some(100));
    assert_eq!(state.renew(180, 0, mk_policy(), &mk_hold(0), 100).0, Some(70));
    assert_eq!(state.renew(250, 0, mk_policy(), &mk_hold(0), 100).0, None);
}

#[test]
fn force_release_raises_the_fence_and_serves_the_next() {
    let mut state = LockState::new(mk_policy());
    state.acquire(0, 0, mk_policy(), mk_ticket(0, 100), false);
    state.acquire(0, 0, mk_policy(), mk_ticket(1, 100), true);
    assert_eq!(state.force_release(1, 0, mk_policy(), |seq| seq < 2), (None, None));
    let (taken, offer) = state.force_release(1, 0, mk_policy(), |seq| seq <= 2);
    assert_eq!(taken.unwrap().seq, 2);
    assert_eq!(offer.unwrap().seq, 6);
    assert!(state.renew(2, 0, mk_policy(), &mk_hold(0), 100).0.is_none());
}

#[test]
fn the_newest_generation_wins_in_the_store() {
    let newer = Policy { generation: 2, max_waiters: 0, ..mk_policy() };
    let mut state = LockState::new(mk_policy());
    state.acquire(0, 0, newer, mk_ticket(0, 100), true);
    // A sidecar that has not seen generation 2 yet does not bring the old limit back.
    let full = state.acquire(0, 0, mk_policy(), mk_ticket(1, 100), true).0;
    assert_eq!(full, Acquired::QueueFull(0));
}

#[test]
fn a_class_created_again_starts_above_its_floor() {
    let policy = Policy { fence_floor: 41, ..mk_policy() };
    let mut state = LockState::new(policy);
    let first = state.acquire(0, 7, policy, mk_ticket(0, 100), false).0;
    assert_eq!(first, Acquired::Granted { seq: 43, ttl_ms: 100 });
}

#[test]
fn dead_waiters_do_not_fill_the_queue() {
    let mut state = LockState::new(mk_policy());
    state.acquire(0, 0, mk_policy(), mk_ticket(0, 60_000), true);
    for i in 1..5 {
        state.acquire(0, 0, mk_policy(), mk_ticket(i, 100), true);
    }
    assert_eq!(
        state.acquire(10, 0, mk_policy(), mk_ticket(5, 100), true).0,
        Acquired::QueueFull(4)
    );
    // Hold 5 is of the same session as hold 2, which so is alive; the other three are not.
    assert_eq!(state.acquire(300, 0, mk_policy(), mk_ticket(5, 100), true).0, Acquired::Queued(2));
}

#[test]
fn beats_come_six_times_in_a_hold() {
    let mut config = LockConfig {
        generation: 1,
        ttl_ms: 15_000,
        max_hold_ms: 0,
        min_hold_ms: 0,
        lock_delay_ms: 0,
        permits: 1,
        max_per_holder: 0,
        keys: crate::lock::Keys::Any,
        max_waiters: 1,
        fairness: Fairness::Fifo,
        consistency: crate::lock::Consistency::Strict,
        fence_floor: Fence::new(0),
    };
    assert_eq!(config.beat_ms(), 2_500);
    config.ttl_ms = 100;
    assert_eq!(config.beat_ms(), 100);
    config.ttl_ms = 3_600_000;
    assert_eq!(config.beat_ms(), 5_000);
}
