//! Random histories against the promises, and one sentence per rule.

use proptest::prelude::*;

use super::*;
use crate::Holder;

const HOLDS: usize = 8;
const SESSIONS: usize = 3;

fn mk_policy() -> Policy {
    Policy {
        generation: 1,
        permits: 4,
        max_per_holder: 0,
        max_waiters: 5,
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

fn mk_ticket(i: usize, permits: u32) -> Ticket {
    Ticket {
        hold: mk_hold(i),
        session: mk_session(i),
        holder: Holder::new(format!("pod-{i}")).unwrap(),
        ttl_ms: 500,
        max_hold_ms: 0,
        permits,
    }
}

/// Acquires at `now`, ready to queue.
fn ask(state: &mut SemaphoreState, now: u64, policy: Policy, i: usize, permits: u32) -> Acquired {
    state.acquire(now, 0, policy, mk_ticket(i, permits), true).0
}

fn names(offers: &[Offer]) -> Vec<HoldId> {
    offers.iter().map(|offer| offer.hold.clone()).collect()
}

#[derive(Clone, Debug)]
enum Op {
    Acquire { who: usize, permits: u32, ttl_ms: u64, enqueue: bool },
    Renew { who: usize, ttl_ms: u64 },
    Release { who: usize },
    Cancel { who: usize },
    Beat { session: usize },
    ForceOne { who: usize },
    ForceAll,
}

fn arb_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..HOLDS, 1u32..6, 50u64..600, prop::bool::weighted(0.8)).prop_map(
            |(who, permits, ttl_ms, enqueue)| Op::Acquire { who, permits, ttl_ms, enqueue }),
        3 => (0..HOLDS, 50u64..600).prop_map(|(who, ttl_ms)| Op::Renew { who, ttl_ms }),
        4 => (0..HOLDS).prop_map(|who| Op::Release { who }),
        1 => (0..HOLDS).prop_map(|who| Op::Cancel { who }),
        3 => (0..SESSIONS).prop_map(|session| Op::Beat { session }),
        1 => (0..HOLDS).prop_map(|who| Op::ForceOne { who }),
        1 => Just(Op::ForceAll),
    ]
}

/// What the world saw of a grant.
#[derive(Clone, Debug)]
struct Seen {
    seq: u64,
    permits: u32,
    session: SessionId,
    until_ms: u64,
}

/// What the world knows, kept without the state machine.
#[derive(Default)]
struct World {
    now_ms: u64,
    top_seq: u64,
    live: BTreeMap<HoldId, Seen>,
    /// The permits that each hold may be granted in this step.
    asked: BTreeMap<HoldId, u32>,
    cancelled: BTreeMap<HoldId, u64>,
}

impl World {
    fn used(&self) -> u32 {
        self.live.values().map(|seen| seen.permits).sum()
    }

    fn used_by(&self, session: &SessionId) -> u32 {
        let of = |seen: &&Seen| seen.session == *session;
        self.live.values().filter(of).map(|seen| seen.permits).sum()
    }

    /// A new grant, or the same again.
    fn granted(
        &mut self,
        policy: &Policy,
        hold: HoldId,
        who: SessionId,
        seq: u64,
        ttl: u64,
    ) -> Result<(), TestCaseError> {
        let until_ms = self.now_ms + ttl;
        if let Some(seen) = self.live.get_mut(&hold) {
            prop_assert_eq!(seen.seq, seq, "a live hold was granted anew");
            seen.until_ms = until_ms;
            return Ok(());
        }
        prop_assert!(seq > self.top_seq, "fence {} after {}", seq, self.top_seq);
        let refused_until = self.cancelled.get(&hold).copied().unwrap_or(0);
        prop_assert!(self.now_ms >= refused_until, "a cancelled request was granted");
        self.top_seq = seq;
        let permits = self.asked.remove(&hold).unwrap();
        self.live.insert(hold, Seen { seq, permits, session: who.clone(), until_ms });
        prop_assert!(self.used() <= policy.permits, "{} permits are out", self.used());
        let max = policy.max_per_holder;
        prop_assert!(max == 0 || self.used_by(&who) <= max, "more than a holder's share");
        Ok(())
    }
}

/// Runs one operation; the offers it made.
fn run(
    state: &mut SemaphoreState,
    world: &mut World,
    policy: Policy,
    clock_ms: u64,
    op: &Op,
) -> Result<Vec<Offer>, TestCaseError> {
    Ok(match *op {
        Op::Acquire { who, permits, ttl_ms, enqueue } => {
            let hold = mk_hold(who);
            world.asked.entry(hold.clone()).or_insert(permits);
            let want = Ticket { ttl_ms, ..mk_ticket(who, permits) };
            let (outcome, offers) = state.acquire(clock_ms, 0, policy, want, enqueue);
            let offered = |o: &Offer| (o.seq, o.hold.clone(), o.session.clone(), o.ttl_ms);
            let mut grants: Vec<_> = offers.iter().map(offered).collect();
            match outcome {
                Acquired::Granted { seq, ttl_ms } => {
                    grants.push((seq, hold, mk_session(who), ttl_ms));
                }
                Acquired::TooMany(most) => prop_assert!(permits > most),
                _ => {}
            }
            // What was asked for may have had its turn in line, before others of the same step.
            let is_new = |hold: &HoldId| !world.live.contains_key(hold);
            grants.sort_by_key(|(seq, hold, ..)| (is_new(hold), *seq));
            for (seq, hold, session, ttl_ms) in grants {
                world.granted(&policy, hold, session, seq, ttl_ms)?;
            }
            return Ok(offers);
        }
        Op::Renew { who, ttl_ms } => {
            let (left, offers) = state.renew(clock_ms, 0, policy, &mk_hold(who), ttl_ms);
            let seen = world.live.get_mut(&mk_hold(who));
            prop_assert_eq!(left.is_some(), seen.is_some(), "a renewal and the truth differ");
            if let (Some(left), Some(seen)) = (left, seen) {
                seen.until_ms = world.now_ms + left;
            }
            offers
        }
        Op::Release { who } => {
            let (was_held, offers) = state.release(clock_ms, 0, policy, &mk_hold(who));
            prop_assert_eq!(was_held, world.live.remove(&mk_hold(who)).is_some());
            offers
        }
        Op::Cancel { who } => {
            world.live.remove(&mk_hold(who));
            world.cancelled.insert(mk_hold(who), world.now_ms + 600);
            state.cancel(clock_ms, 0, policy, &mk_hold(who), 300)
        }
        Op::Beat { session } => state.beat(clock_ms, 0, policy, &mk_session(session)).1,
        Op::ForceOne { who } => {
            let seen = world.live.remove(&mk_hold(who));
            let seq = seen.as_ref().map_or(u64::MAX, |seen| seen.seq);
            let (taken, offers) = state.force_release(clock_ms, 0, policy, |other| other == seq);
            prop_assert_eq!(taken.len(), usize::from(seen.is_some()));
            offers
        }
        Op::ForceAll => {
            let (taken, offers) = state.force_release(clock_ms, 0, policy, |_| true);
            prop_assert_eq!(taken.len(), world.live.len());
            world.live.clear();
            offers
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The promises, whatever happens, however the store's clock jumps back and the class changes.
    #[test]
    fn every_history_keeps_the_promises(
        max_per_holder in 0u32..5,
        fifo in any::<bool>(),
        steps in prop::collection::vec((-200i64..400, 0u32..7, arb_op()), 1..80),
    ) {
        let fairness = if fifo { Fairness::Fifo } else { Fairness::None };
        let mut policy = Policy { max_per_holder, fairness, ..mk_policy() };
        let (mut state, mut world) = (SemaphoreState::new(policy), World::default());
        let mut clock_ms = 10_000i64;
        for (advance, resize, op) in steps {
            clock_ms = (clock_ms + advance).max(0);
            world.now_ms = world.now_ms.max(clock_ms as u64);
            if let 1..=5 = resize {
                policy = Policy { generation: policy.generation + 1, permits: resize, ..policy };
            }
            let now_ms = world.now_ms;
            world.live.retain(|_, seen| now_ms < seen.until_ms);
            // A ticket that can never fit is dropped, and its hold may ask anew, for less: as the last.
            let fits = |ticket: &&Ticket| ticket.permits <= policy.most();
            let line: Vec<Ticket> = state.queue.iter().filter(fits).cloned().collect();
            let asked = line.iter().map(|ticket| (ticket.hold.clone(), ticket.permits));
            world.asked = asked.collect();
            let offers = run(&mut state, &mut world, policy, clock_ms as u64, &op)?;
            for Offer { session, hold, seq, ttl_ms } in offers {
                world.granted(&policy, hold.clone(), session.clone(), seq, ttl_ms)?;
                let earlier = line.iter().take_while(|ticket| ticket.hold != hold);
                for ticket in earlier.filter(|ticket| state.queue.position(&ticket.hold).is_some()) {
                    prop_assert!(!fifo || state.is_stopped(ticket), "{op:?}: not first come");
                }
            }
            let live: Vec<_> = state.view(now_ms).0.map(|h| (&h.held.hold, h.permits)).collect();
            prop_assert_eq!(live.len(), world.live.len());
            for (hold, permits) in live {
                prop_assert_eq!(world.live.get(hold).map(|seen| seen.permits), Some(permits));
            }
            prop_assert!(state.queue.len() <= 5);
            let head = state.queue.get(0).filter(|head| !state.is_capped(head));
            let idle = head.is_some_and(|head| {
                head.permits <= state.free()
                    && !state.queue.is_dead(&head.session, now_ms, policy.beat_ms)
            });
            prop_assert!(!idle, "{op:?}: permits are free and the head waits");
        }
    }
}

#[test]
fn one_release_grants_to_several_waiters_in_their_order() {
    let (mut state, policy) = (SemaphoreState::new(mk_policy()), mk_policy());
    assert!(matches!(ask(&mut state, 0, policy, 0, 4), Acquired::Granted { seq: 1, .. }));
    for i in 1..5 {
        assert_eq!(ask(&mut state, 0, policy, i, 1), Acquired::Queued(i as u32));
    }
    let (was_held, offers) = state.release(1, 0, policy, &mk_hold(0));
    assert!(was_held);
    assert_eq!(names(&offers), [1, 2, 3, 4].map(mk_hold));
    assert!(offers.is_sorted_by(|a, b| a.seq < b.seq));
}

#[test]
fn a_heavy_request_is_not_overtaken_by_light_ones_unless_the_class_has_no_order() {
    for (fairness, bypass) in [(Fairness::Fifo, false), (Fairness::None, true)] {
        let policy = Policy { fairness, ..mk_policy() };
        let mut state = SemaphoreState::new(policy);
        ask(&mut state, 0, policy, 0, 3);
        assert_eq!(ask(&mut state, 0, policy, 1, 4), Acquired::Queued(1));
        let light = ask(&mut state, 0, policy, 2, 1);
        assert_eq!(matches!(light, Acquired::Granted { .. }), bypass, "{light:?}");
    }
}

#[test]
fn whoever_has_its_share_waits_without_stopping_others() {
    let policy = Policy { max_per_holder: 2, ..mk_policy() };
    let mut state = SemaphoreState::new(policy);
    ask(&mut state, 0, policy, 0, 2);
    assert_eq!(ask(&mut state, 0, policy, 3, 1), Acquired::Queued(1));
    assert!(matches!(ask(&mut state, 0, policy, 1, 2), Acquired::Granted { .. }));
    assert_eq!(ask(&mut state, 0, policy, 2, 3), Acquired::TooMany(2));
    assert_eq!(names(&state.release(1, 0, policy, &mk_hold(0)).1), [mk_hold(3)]);
}

#[test]
fn shrinking_takes_nothing_away_and_an_older_class_does_not_grow_it_back() {
    let (old, mut state) = (mk_policy(), SemaphoreState::new(mk_policy()));
    let new = Policy { generation: 2, permits: 1, ..old };
    ask(&mut state, 0, old, 0, 2);
    ask(&mut state, 0, old, 1, 1);
    assert!(state.renew(1, 0, new, &mk_hold(0), 500).0.is_some());
    assert_eq!(ask(&mut state, 2, old, 2, 1), Acquired::Queued(1));
    assert_eq!(state.release(3, 0, old, &mk_hold(0)).1, []);
    assert_eq!(names(&state.release(4, 0, old, &mk_hold(1)).1), [mk_hold(2)]);
}

#[test]
fn a_ticket_that_can_never_fit_again_makes_way_and_is_told_when_it_asks() {
    let (old, mut state) = (mk_policy(), SemaphoreState::new(mk_policy()));
    let new = Policy { generation: 2, permits: 2, ..old };
    ask(&mut state, 0, old, 0, 2);
    assert_eq!(ask(&mut state, 0, old, 1, 3), Acquired::Queued(1));
    assert_eq!(ask(&mut state, 0, old, 2, 2), Acquired::Queued(2));
    assert_eq!(names(&state.release(1, 0, new, &mk_hold(0)).1), [mk_hold(2)]);
    assert_eq!(state.beat(2, 0, new, &mk_session(1)).0.tickets, 0);
    assert_eq!(ask(&mut state, 3, new, 1, 3), Acquired::TooMany(2));
}

#[test]
fn expired_holds_make_room_in_the_very_step_that_needs_it() {
    let (policy, mut state) = (mk_policy(), SemaphoreState::new(mk_policy()));
    ask(&mut state, 0, policy, 0, 4);
    let refused = state.acquire(499, 0, policy, mk_ticket(1, 1), false).0;
    assert_eq!(refused, Acquired::Locked { retry_after_ms: 1, waiters: 0 });
    let granted = state.acquire(500, 0, policy, mk_ticket(1, 4), false).0;
    assert_eq!(granted, Acquired::Granted { seq: 2, ttl_ms: 500 });
}

#[test]
fn a_beat_names_every_offer_that_was_not_claimed() {
    let (policy, mut state) = (mk_policy(), SemaphoreState::new(mk_policy()));
    ask(&mut state, 0, policy, 0, 4);
    ask(&mut state, 0, policy, 1, 1);
    ask(&mut state, 0, policy, 4, 1);
    state.release(1, 0, policy, &mk_hold(0));
    state.renew(2, 0, policy, &mk_hold(4), 500);
    let offered = state.beat(3, 0, policy, &mk_session(1)).0.offered;
    assert_eq!(offered, [(mk_hold(1), 2, 298)]);
}

#[test]
fn the_same_hold_again_keeps_its_fence_and_its_permits() {
    let (policy, mut state) = (mk_policy(), SemaphoreState::new(mk_policy()));
    let first = ask(&mut state, 0, policy, 0, 3);
    assert_eq!(ask(&mut state, 60, policy, 0, 1), first);
    assert_eq!(state.free(), 1);
}

#[test]
fn force_release_takes_one_hold_by_its_fence_and_raises_the_next() {
    let (policy, mut state) = (mk_policy(), SemaphoreState::new(mk_policy()));
    ask(&mut state, 0, policy, 0, 1);
    ask(&mut state, 0, policy, 1, 1);
    let (taken, _) = state.force_release(1, 0, policy, |seq| seq == 1);
    assert_eq!(taken.iter().map(|t| &t.held.hold).collect::<Vec<_>>(), [&mk_hold(0)]);
    assert!(matches!(ask(&mut state, 2, policy, 2, 1), Acquired::Granted { seq: 4, .. }));
    assert_eq!(state.force_release(3, 0, policy, |_| true).0.len(), 2);
}
