//! The rules of a lock, as a state machine of one key.
//!
//! Every substrate that can run a transition atomically runs *this* one: memory calls it, Redis runs
//! its transcription in Lua, and a differential test holds the two together. Each transition is
//! `reap → its own step → promote`: what has expired is dropped first, and whoever is then first in
//! line is granted last, in the same atomic step. A waiter is so *handed* the lock, it never races
//! for it.
//!
//! Times are the store's own milliseconds. They never run backwards here: a clock stepped back
//! stands still until it has caught up (semantics: `now = max(TIME, last seen)`).

use std::collections::BTreeMap;

use crate::{
    HoldId, Holder, SessionId,
    lock::{Fairness, Policy},
    queue::{Queue, Ticket},
};

mod outcome;

pub use outcome::{Acquired, Beaten, Offer, PassedOn};

/// A hold in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub hold: HoldId,
    /// Whose it is.
    pub session: SessionId,
    /// Who that is, for people.
    pub holder: Holder,
    /// Its fence's sequence.
    pub seq: u64,
    /// When it was granted.
    pub since_ms: u64,
    /// When it ends unless renewed.
    pub expires_ms: u64,
    /// What a claim extends it by.
    pub ttl_ms: u64,
    /// The longest it may last from `since_ms`, zero for no bound.
    pub max_hold_ms: u64,
    /// Whether its holder has been heard of since it was granted.
    pub claimed: bool,
}

/// One key of a Lock class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockState {
    /// The newest time seen.
    now_ms: u64,
    /// The newest fence sequence granted.
    seq: u64,
    held: Option<Held>,
    /// Nobody is granted before this: a minimal hold or a lock delay.
    free_at_ms: u64,
    queue: Queue,
    /// Cancelled holds, and until when their requests are refused.
    tombs: BTreeMap<HoldId, u64>,
    policy: Policy,
}

/// A request that was cancelled is refused for so many times its class's claim time (or time to
/// live): longer than any request can be under way.
pub(crate) const TOMB_FACTOR: u64 = 2;
/// How far sequences are apart: the one after a hold's own is kept for the waiter that its holder may
/// pass it on to before the store knows.
const STEP: u64 = 2;

impl LockState {
    /// A key that nobody has used yet.
    pub fn new(policy: Policy) -> Self {
        LockState {
            now_ms: 0,
            seq: 0,
            held: None,
            free_at_ms: 0,
            queue: Queue::default(),
            tombs: BTreeMap::new(),
            policy,
        }
    }

    /// Grants, queues or refuses. `floor` is the least sequence of a new grant: the store's clock,
    /// so that fences grow even when the rest of the state was lost.
    pub fn acquire(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        want: Ticket,
        enqueue: bool,
    ) -> (Acquired, Option<Offer>) {
        self.begin(now_ms, policy);
        if self.tombs.contains_key(&want.hold) {
            return (Acquired::Cancelled, self.promote(floor));
        }
        // Who asks is alive: its tickets must not be dropped as dead in this very step.
        self.queue.beat(self.now_ms, &want.session);
        if self.policy.fairness == Fairness::None && self.is_free() {
            self.queue.remove(&want.hold);
            let (seq, ttl_ms) = self.grant(self.next_seq(floor), want, true);
            return (Acquired::Granted { seq, ttl_ms }, None);
        }
        // Promoting first keeps a newcomer behind those who wait, on a lock that has just expired.
        let offer = self.promote(floor).filter(|offer| offer.hold != want.hold);
        let now_ms = self.now_ms;
        if let Some(held) = self.held.as_mut().filter(|held| held.hold == want.hold) {
            // The same request again: the same grant, counted anew, since the caller does too.
            held.extend(now_ms, want.ttl_ms);
            let (seq, ttl_ms) = (held.seq, held.expires_ms - now_ms);
            return (Acquired::Granted { seq, ttl_ms }, offer);
        }
        if let Some(position) = self.queue.position(&want.hold) {
            return (Acquired::Queued(position), offer);
        }
        if self.is_free() && self.queue.is_empty() {
            let (seq, ttl_ms) = self.grant(self.next_seq(floor), want, true);
            return (Acquired::Granted { seq, ttl_ms }, offer);
        }
        if !enqueue {
            let (retry_after_ms, waiters) = (self.next_change_ms(), self.queue.len() as u32);
            return (Acquired::Locked { retry_after_ms, waiters }, offer);
        }
        let max = self.policy.max_waiters as usize;
        if self.queue.len() >= max {
            self.queue.reap_all(self.now_ms, self.policy.beat_ms);
        }
        if self.queue.len() >= max {
            return (Acquired::QueueFull(self.queue.len() as u32), offer);
        }
        (Acquired::Queued(self.queue.push(self.now_ms, want)), offer)
    }

    /// Extends a hold and claims it; `None` when it is not there. Returns what is left of it.
    pub fn renew(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        hold: &HoldId,
        ttl_ms: u64,
    ) -> (Option<u64>, Option<Offer>) {
        self.begin(now_ms, policy);
        let now_ms = self.now_ms;
        match self.held.as_mut().filter(|held| held.hold == *hold) {
            Some(held) => {
                held.extend(now_ms, ttl_ms);
                (Some(held.expires_ms - now_ms), None)
            }
            None => (None, self.promote(floor)),
        }
    }

    /// Ends a hold; whether it was held. Before its minimal time is over nobody else is granted.
    pub fn release(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        hold: &HoldId,
    ) -> (bool, Option<Offer>) {
        self.begin(now_ms, policy);
        (self.let_go(hold, None), self.promote(floor))
    }

    /// Ends a hold of this sequence that its holder has passed on already, to a waiter of its own
    /// session, with the sequence after its own, which no other grant ever has. That is made true if
    /// the hold is still there, wherever the heir stands in line, unless the heir was cancelled. Else
    /// the heir is cancelled: it has been told what is not so.
    pub fn pass_on(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        (hold, seq): (&HoldId, u64),
        heir: Ticket,
    ) -> (PassedOn, Option<Offer>) {
        self.begin(now_ms, policy);
        let (name, ttl_ms) = (heir.hold.clone(), heir.ttl_ms);
        let was_held = self.let_go(hold, Some(seq));
        if was_held && !self.tombs.contains_key(&name) {
            self.queue.remove(&name);
            self.grant(seq + 1, heir, true);
        }
        // Or it was made true before, and the answer was lost.
        let is_heirs = |held: &Held| held.hold == name && held.seq == seq + 1;
        let is_heirs = self.held.as_ref().is_some_and(is_heirs);
        if !is_heirs {
            // Not under the number that it was told, so not at all.
            self.withdraw(&name, ttl_ms);
        }
        let is_in_order = self.policy.fairness == Fairness::Fifo;
        let first = self.queue.get(0).filter(|_| is_heirs && is_in_order);
        let first = first.map(|ticket| ticket.hold.clone());
        (PassedOn { was_held, is_heirs, first }, self.promote(floor))
    }

    /// Ends a hold, if it is there with this sequence.
    fn let_go(&mut self, hold: &HoldId, seq: Option<u64>) -> bool {
        let is_meant =
            |held: &mut Held| held.hold == *hold && seq.is_none_or(|seq| held.seq == seq);
        let held = self.held.take_if(is_meant);
        if let Some(held) = &held {
            self.free_at_ms = held.since_ms.saturating_add(self.policy.min_hold_ms);
        }
        held.is_some()
    }

    /// Withdraws a request whatever became of it, and refuses it should it still arrive. A hold it
    /// got is freed at once: nobody has been told of it, so no minimal time applies.
    pub fn cancel(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        hold: &HoldId,
        ttl_ms: u64,
    ) -> Option<Offer> {
        self.begin(now_ms, policy);
        self.withdraw(hold, ttl_ms);
        self.promote(floor)
    }

    fn withdraw(&mut self, hold: &HoldId, ttl_ms: u64) {
        self.held.take_if(|held| held.hold == *hold);
        self.queue.remove(hold);
        let keep_ms = TOMB_FACTOR * ttl_ms.max(self.policy.claim_ms());
        self.tombs.insert(hold.clone(), self.now_ms + keep_ms);
    }

    /// Raises the newest sequence to `seq` if the key is held as `hold` says (`None`: by nobody) and
    /// the sequence is not beyond it yet; whether it stands at `seq` now. The hold has that fence
    /// then. For locks that live on several stores; see [`redlock`](super::redlock).
    pub fn raise(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        hold: Option<&HoldId>,
        seq: u64,
    ) -> (bool, Option<Offer>) {
        self.begin(now_ms, policy);
        let is_so = self.held.as_ref().map(|held| &held.hold) == hold && self.seq <= seq;
        if is_so {
            self.seq = seq;
            if let Some(held) = &mut self.held {
                held.seq = seq;
            }
        }
        (is_so, self.promote(floor))
    }

    /// Notes that a session is alive, and tells it what it may have missed.
    pub fn beat(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        session: &SessionId,
    ) -> (Beaten, Option<Offer>) {
        self.begin(now_ms, policy);
        self.queue.beat(self.now_ms, session);
        let offer = self.promote(floor);
        let offered = self
            .held
            .as_ref()
            .filter(|held| held.session == *session && !held.claimed)
            .map(|held| (held.hold.clone(), held.seq, held.expires_ms - self.now_ms));
        let tickets = self.queue.tickets_of(session);
        (Beaten { offered, tickets, next_ms: self.next_change_ms(), seq: self.seq }, offer)
    }

    /// Takes the lock from whoever has it, if the fence is meant, and raises the fence past anything
    /// granted so far.
    pub fn force_release(
        &mut self,
        now_ms: u64,
        floor: u64,
        policy: Policy,
        is_meant: impl Fn(u64) -> bool,
    ) -> (Option<Held>, Option<Offer>) {
        self.begin(now_ms, policy);
        let held = self.held.take_if(|held| is_meant(held.seq));
        if held.is_some() {
            self.seq += STEP;
            self.free_at_ms = 0;
        }
        (held, self.promote(floor))
    }

    /// The hold, the queue and the newest sequence, as of `now_ms`. Changes nothing.
    pub fn view(&self, now_ms: u64) -> (Option<&Held>, &Queue, u64) {
        let now_ms = now_ms.max(self.now_ms);
        (self.held.as_ref().filter(|held| now_ms < held.expires_ms), &self.queue, self.seq)
    }

    /// Whether the key can be forgotten without anybody noticing, but for its fence.
    pub fn is_idle(&self, now_ms: u64) -> bool {
        let now_ms = now_ms.max(self.now_ms);
        self.view(now_ms).0.is_none()
            && self.queue.is_empty()
            && now_ms >= self.free_at_ms
            && self.tombs.values().all(|until| now_ms >= *until)
    }

    /// What every transition starts with: time goes on, the newest class wins, the dead are dropped.
    fn begin(&mut self, now_ms: u64, policy: Policy) {
        self.now_ms = self.now_ms.max(now_ms);
        if policy.generation >= self.policy.generation {
            self.policy = policy;
        }
        if let Some(held) = self.held.take_if(|held| self.now_ms >= held.expires_ms) {
            self.free_at_ms = held.expires_ms.saturating_add(self.policy.lock_delay_ms);
        }
        let now_ms = self.now_ms;
        self.tombs.retain(|_, until| now_ms < *until);
    }

    /// What every transition ends with: a free lock goes to the first who is alive.
    fn promote(&mut self, floor: u64) -> Option<Offer> {
        if !self.is_free() {
            return None;
        }
        self.queue.reap_head(self.now_ms, self.policy.beat_ms);
        // A head that is still dead after one round of reaping waits for the next transition.
        let head = self.queue.pop_live(self.now_ms, self.policy.beat_ms)?;
        let (session, hold) = (head.session.clone(), head.hold.clone());
        let (seq, ttl_ms) = self.grant(self.next_seq(floor), head, false);
        Some(Offer { session, hold, seq, ttl_ms })
    }

    fn is_free(&self) -> bool {
        self.held.is_none() && self.now_ms >= self.free_at_ms
    }

    fn next_seq(&self, floor: u64) -> u64 {
        (self.seq + STEP).max(floor).max(self.policy.fence_floor + STEP)
    }

    fn grant(&mut self, seq: u64, to: Ticket, claimed: bool) -> (u64, u64) {
        self.seq = seq;
        let ttl_ms = if claimed { to.ttl_ms } else { to.ttl_ms.min(self.policy.claim_ms()) };
        let held = Held::granted(to, self.seq, self.now_ms, ttl_ms, claimed);
        let ttl_ms = held.expires_ms - self.now_ms;
        self.held = Some(held);
        (self.seq, ttl_ms)
    }

    /// How long until something changes without anybody's doing; a minute when nothing does.
    fn next_change_ms(&self) -> u64 {
        let at_ms = match &self.held {
            Some(held) => held.expires_ms,
            None => self.free_at_ms,
        };
        if at_ms > self.now_ms { (at_ms - self.now_ms).min(60_000) } else { 60_000 }
    }
}

impl Held {
    /// The hold that a ticket becomes, for `ttl_ms` to begin with.
    pub(crate) fn granted(to: Ticket, seq: u64, now_ms: u64, ttl_ms: u64, claimed: bool) -> Self {
        let mut held = Held {
            hold: to.hold,
            session: to.session,
            holder: to.holder,
            seq,
            since_ms: now_ms,
            expires_ms: now_ms,
            ttl_ms: to.ttl_ms,
            max_hold_ms: to.max_hold_ms,
            claimed,
        };
        held.extend(now_ms, ttl_ms);
        held.claimed = claimed;
        held
    }

    /// Counts the hold anew from `now_ms`, never beyond its longest time.
    pub(crate) fn extend(&mut self, now_ms: u64, ttl_ms: u64) {
        let expires_ms = now_ms.saturating_add(ttl_ms);
        self.expires_ms = match self.max_hold_ms {
            0 => expires_ms,
            max => expires_ms.min(self.since_ms.saturating_add(max)),
        };
        self.claimed = true;
    }
}

#[cfg(test)]
mod tests;
