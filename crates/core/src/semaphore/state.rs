//! The rules of a semaphore, as a state machine of one key.
//!
//! Each transition is `reap → its own step → promote`, as a lock's is: what has expired is dropped
//! first, and those whose turn has come are granted last, in the same atomic step. So the permits of
//! all live holds never exceed what the class had when the newest of them was granted.
//!
//! Times are the store's own milliseconds and never run backwards here.

use std::collections::BTreeMap;

use crate::{
    HoldId, SessionId,
    lock::{
        Fairness,
        state::{Acquired, Held, Offer, TOMB_FACTOR},
    },
    queue::{Queue, REAP_AT_ONCE, Ticket},
    semaphore::Policy,
};

/// A hold and its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The hold.
    pub held: Held,
    /// How many permits it has.
    pub permits: u32,
}

/// What a session learns from [`SemaphoreState::beat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beaten {
    /// The unclaimed holds of the session: hold, sequence, what is left of the offer.
    pub offered: Vec<(HoldId, u64, u64)>,
    /// How many tickets it has in the queue. Fewer than it knows of: their owners ask again.
    pub tickets: u32,
    /// When something changes by itself, at the earliest.
    pub next_ms: u64,
    /// The newest fence sequence granted.
    pub seq: u64,
}

/// One key of a Semaphore class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SemaphoreState {
    /// The newest time seen.
    now_ms: u64,
    /// The newest fence sequence granted.
    seq: u64,
    /// By fence, so the oldest grant comes first.
    holds: BTreeMap<u64, Holding>,
    queue: Queue,
    /// Cancelled holds, and until when their requests are refused.
    tombs: BTreeMap<HoldId, u64>,
    policy: Policy,
}

impl SemaphoreState {
    /// A key that nobody has used yet.
    pub fn new(policy: Policy) -> Self {
        SemaphoreState {
            now_ms: 0,
            seq: 0,
            holds: BTreeMap::new(),
            queue: Queue::default(),
            tombs: BTreeMap::new(),
            policy,
        }
    }

    /// Grants, queues or refuses. `floor` is the least sequence of a new grant: the store's clock.
    pub fn acquire(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        want: Ticket,
        enqueue: bool,
    ) -> (Acquired, Vec<Offer>) {
        self.begin(now_ms, policy);
        if self.tombs.contains_key(&want.hold) {
            return (Acquired::Cancelled, self.promote(floor));
        }
        // Who asks is alive: its tickets must not be dropped as dead in this very step.
        self.queue.beat(self.now_ms, &want.session);
        // Whoever waits goes first; a newcomer gets what is left.
        let mut offers = self.promote(floor);
        offers.retain(|offer| offer.hold != want.hold);
        let now_ms = self.now_ms;
        if let Some(holding) = self.holding(&want.hold) {
            // The same request again: the same grant, counted anew, since the caller does too.
            holding.held.extend(now_ms, want.ttl_ms);
            let (seq, ttl_ms) = (holding.held.seq, holding.held.expires_ms - now_ms);
            return (Acquired::Granted { seq, ttl_ms }, offers);
        }
        if want.permits > self.policy.most() {
            // It may have fitted when it was queued; those behind it need not wait for it.
            if self.queue.remove(&want.hold).is_some() {
                offers.extend(self.promote(floor));
            }
            return (Acquired::TooMany(self.policy.most()), offers);
        }
        if let Some(position) = self.queue.position(&want.hold) {
            return (Acquired::Queued(position), offers);
        }
        if want.permits <= self.free() && !self.is_capped(&want) && self.is_next(&want) {
            let (seq, ttl_ms) = self.grant(floor, want, true);
            return (Acquired::Granted { seq, ttl_ms }, offers);
        }
        (self.enqueue(want, enqueue), offers)
    }

    /// Extends a hold and claims it; `None` when it is not there. Returns what is left of it.
    pub fn renew(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        hold: &HoldId,
        ttl_ms: u64,
    ) -> (Option<u64>, Vec<Offer>) {
        self.begin(now_ms, policy);
        let now_ms = self.now_ms;
        let left = self.holding(hold).map(|holding| {
            holding.held.extend(now_ms, ttl_ms);
            holding.held.expires_ms - now_ms
        });
        (left, self.promote(floor))
    }

    /// Ends a hold; whether it was held.
    pub fn release(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        hold: &HoldId,
    ) -> (bool, Vec<Offer>) {
        self.begin(now_ms, policy);
        let before = self.holds.len();
        self.holds.retain(|_, holding| holding.held.hold != *hold);
        (self.holds.len() < before, self.promote(floor))
    }

    /// Withdraws a request whatever became of it, and refuses it should it still arrive.
    pub fn cancel(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        hold: &HoldId,
        ttl_ms: u64,
    ) -> Vec<Offer> {
        self.begin(now_ms, policy);
        self.holds.retain(|_, holding| holding.held.hold != *hold);
        self.queue.remove(hold);
        let keep_ms = TOMB_FACTOR * ttl_ms.max(self.policy.claim_ms());
        self.tombs.insert(hold.clone(), self.now_ms + keep_ms);
        self.promote(floor)
    }

    /// Notes that a session is alive, and tells it what it may have missed.
    pub fn beat(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        session: &SessionId,
    ) -> (Beaten, Vec<Offer>) {
        self.begin(now_ms, policy);
        self.queue.beat(self.now_ms, session);
        let offers = self.promote(floor);
        let offered = self
            .holds
            .values()
            .map(|holding| &holding.held)
            .filter(|held| held.session == *session && !held.claimed)
            .map(|held| (held.hold.clone(), held.seq, held.expires_ms - self.now_ms))
            .collect();
        let tickets = self.queue.tickets_of(session);
        (Beaten { offered, tickets, next_ms: self.next_change_ms(), seq: self.seq }, offers)
    }

    /// Takes the holds whose fences are meant, and raises the fence past any given so far.
    pub fn force_release(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        is_meant: impl Fn(u64) -> bool,
    ) -> (Vec<Holding>, Vec<Offer>) {
        self.begin(now_ms, policy);
        let meant: Vec<u64> = self.holds.keys().copied().filter(|seq| is_meant(*seq)).collect();
        let taken: Vec<Holding> = meant.iter().filter_map(|seq| self.holds.remove(seq)).collect();
        if !taken.is_empty() {
            self.seq += 1;
        }
        (taken, self.promote(floor))
    }

    /// The live holds, oldest first, the queue and the newest sequence. Changes nothing.
    pub fn view(&self, now_ms: u64) -> (impl Iterator<Item = &Holding>, &Queue, u64) {
        let now_ms = now_ms.max(self.now_ms);
        let live = self.holds.values().filter(move |holding| now_ms < holding.held.expires_ms);
        (live, &self.queue, self.seq)
    }

    /// The newest fence sequence granted.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Whether the key can be forgotten without anybody noticing, but for its fence.
    pub fn is_idle(&self, now_ms: u64) -> bool {
        let now_ms = now_ms.max(self.now_ms);
        self.view(now_ms).0.next().is_none()
            && self.queue.is_empty()
            && self.tombs.values().all(|until| now_ms >= *until)
    }

    fn begin(&mut self, now_ms: u64, policy: Policy) {
        self.now_ms = self.now_ms.max(now_ms);
        if policy.generation >= self.policy.generation {
            self.policy = policy;
        }
        let now_ms = self.now_ms;
        self.holds.retain(|_, holding| now_ms < holding.held.expires_ms);
        self.tombs.retain(|_, until| now_ms < *until);
    }

    /// Grants to those whose turn has come. The first who does not fit stops those behind it, unless
    /// the class has no order; who has its own session's share stops its own session only.
    fn promote(&mut self, floor: u64) -> Vec<Offer> {
        let (mut offers, mut passed) = (Vec::new(), Vec::<SessionId>::new());
        let (mut at, mut reaped) = (0, 0);
        while self.free() > 0 {
            let Some(ticket) = self.queue.get(at) else { break };
            if self.queue.is_dead(&ticket.session, self.now_ms, self.policy.beat_ms) {
                if reaped == REAP_AT_ONCE {
                    break;
                }
                reaped += 1;
                self.queue.remove_at(at);
            } else if ticket.permits > self.policy.most() {
                self.queue.remove_at(at);
            } else if passed.contains(&ticket.session) {
                at += 1;
            } else if self.is_capped(ticket) {
                passed.push(ticket.session.clone());
                at += 1;
            } else if ticket.permits <= self.free() {
                let Some(ticket) = self.queue.remove_at(at) else { break };
                let (session, hold) = (ticket.session.clone(), ticket.hold.clone());
                let (seq, ttl_ms) = self.grant(floor, ticket, false);
                offers.push(Offer { session, hold, seq, ttl_ms });
            } else if self.policy.fairness == Fairness::None {
                at += 1;
            } else {
                break;
            }
        }
        offers
    }

    /// Queues a request that cannot be granted now, if it wants that and there is room.
    fn enqueue(&mut self, want: Ticket, enqueue: bool) -> Acquired {
        if !enqueue {
            let (retry_after_ms, waiters) = (self.next_change_ms(), self.queue.len() as u32);
            return Acquired::Locked { retry_after_ms, waiters };
        }
        let max = self.policy.max_waiters as usize;
        if self.queue.len() >= max {
            self.queue.reap_all(self.now_ms, self.policy.beat_ms);
        }
        if self.queue.len() >= max {
            return Acquired::QueueFull(self.queue.len() as u32);
        }
        Acquired::Queued(self.queue.push(self.now_ms, want))
    }

    fn holding(&mut self, hold: &HoldId) -> Option<&mut Holding> {
        self.holds.values_mut().find(|holding| holding.held.hold == *hold)
    }

    /// Permits that nobody has; none while more are out than a shrunken class has.
    fn free(&self) -> u32 {
        let used: u32 = self.holds.values().map(|holding| holding.permits).sum();
        self.policy.permits.saturating_sub(used)
    }

    /// Whether the grant would give its session more than its share.
    fn is_capped(&self, want: &Ticket) -> bool {
        let of_session = |holding: &&Holding| holding.held.session == want.session;
        let has: u32 = self.holds.values().filter(of_session).map(|holding| holding.permits).sum();
        let max = self.policy.max_per_holder;
        max > 0 && has.saturating_add(want.permits) > max
    }

    /// Whether nobody waits whom a newcomer would overtake.
    fn is_next(&self, want: &Ticket) -> bool {
        self.policy.fairness == Fairness::None
            || self.queue.tickets_of(&want.session) == 0
                && self.queue.iter().all(|ticket| self.is_stopped(ticket))
    }

    /// Whether a ticket waits for its own session: the first of that session's has no share left.
    fn is_stopped(&self, ticket: &Ticket) -> bool {
        let first = self.queue.iter().find(|other| other.session == ticket.session);
        first.is_some_and(|first| self.is_capped(first))
    }

    fn grant(&mut self, floor: u64, to: Ticket, claimed: bool) -> (u64, u64) {
        self.seq = (self.seq + 1).max(floor).max(self.policy.fence_floor + 1);
        let ttl_ms = if claimed { to.ttl_ms } else { to.ttl_ms.min(self.policy.claim_ms()) };
        let permits = to.permits;
        let held = Held::granted(to, self.seq, self.now_ms, ttl_ms, claimed);
        let ttl_ms = held.expires_ms - self.now_ms;
        self.holds.insert(self.seq, Holding { held, permits });
        (self.seq, ttl_ms)
    }

    /// How long until something changes without anybody's doing; a minute when nothing does.
    fn next_change_ms(&self) -> u64 {
        let first = self.holds.values().map(|holding| holding.held.expires_ms).min();
        first.map_or(60_000, |at_ms| (at_ms - self.now_ms).min(60_000))
    }
}

#[cfg(test)]
mod tests;
