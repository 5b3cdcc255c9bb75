//! What this process knows by itself: records as it last saw them, its own holds, the requests whose
//! outcome is open, and who waits here. All of it is a hint or a memory of own writes; what holds is
//! decided by the API server, by the next conditional write.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use holdfast_core::{
    Address, Fence, HoldId, SessionId, Stamp,
    lock::{Acquire, record::Sighting},
};
use tokio::sync::Notify;

use super::{
    client::CALL,
    names,
    record::{Basis, Snapshot},
    slot::{Known, News, Slot},
};

/// Keys that are remembered although nobody here holds or waits for them.
const PLACES: usize = 1_024;
/// Holds and open requests beyond which old ones are looked for and forgotten.
const SWEEP_AT: usize = 1_024;
/// After so many times to live, or of the longest call, nothing is left of a write: it has been in
/// flight for one of them, and what it granted, and nobody renewed, has run out.
const LEFT_FOR_TTLS: u32 = 3;

#[derive(Default)]
pub(super) struct Local {
    places: HashMap<Address, Place>,
    holds: HashMap<HoldId, Own>,
    open: HashMap<HoldId, Open>,
    /// Cancelled holds, and since when.
    tombs: HashMap<HoldId, Stamp>,
}

/// One key, as seen from here.
#[derive(Default)]
pub(super) struct Place {
    /// The records of its Leases: of a lock one, of a semaphore one for each slot.
    known: BTreeMap<u32, Known>,
    /// The newest of own writes to any of them: when it was sent, and the version it made.
    wrote: Option<(Stamp, u64)>,
    /// Who has been promised a part of its session's share: marks of a hold and of its session.
    pub asking: Vec<(String, String)>,
    pub queue: VecDeque<Waiter>,
    /// Whether a task serves the queue.
    pub served: bool,
    /// Something about this key has changed.
    pub changed: Arc<Notify>,
}

/// A request that waits.
#[derive(Clone)]
pub(super) struct Waiter {
    pub request: Acquire,
    /// Before anything was done about it.
    pub since: Stamp,
}

/// A hold that this process was granted.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub slot: Slot,
    /// What the next write is conditional on, unless somebody else wrote meanwhile.
    pub basis: Basis,
    pub fence: Fence,
    pub granted: Stamp,
    /// Before the write that extended it last was sent.
    pub extended: Stamp,
    pub ttl: Duration,
    pub max_hold: Duration,
    /// The Lease is being deleted.
    pub terminating: bool,
}

/// A write that takes the lock, sent and not known to have failed.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub slot: Slot,
    pub basis: Basis,
    /// Before the first of its tries was sent.
    pub sent: Stamp,
    /// Before the newest of them was sent.
    tried: Stamp,
    /// The mark of the session that it is for.
    session: String,
    /// For how long it grants.
    ttl: Duration,
}

impl Open {
    /// Whether something of it may still be in the store, or come there.
    fn may_be_left(&self, now: Stamp) -> bool {
        now.since(self.tried) < self.ttl.max(CALL) * LEFT_FOR_TTLS
    }
}

impl Own {
    /// Whether the hold is over by its own clocks.
    pub(super) fn is_over(&self, now: Stamp) -> bool {
        now.since(self.extended) >= self.ttl || self.left_of_max(now).is_zero()
    }

    /// What is left of the longest time it may be held.
    pub(super) fn left_of_max(&self, now: Stamp) -> Duration {
        match self.max_hold {
            Duration::ZERO => Duration::MAX,
            max => max.saturating_sub(now.since(self.granted)),
        }
    }
}

impl Local {
    /// The entry of a key.
    pub(super) fn place(&mut self, at: &Address) -> &mut Place {
        if self.places.len() >= PLACES && !self.places.contains_key(at) {
            self.places.retain(|_, place| {
                place.served || !place.queue.is_empty() || !place.asking.is_empty()
            });
        }
        self.places.entry(at.clone()).or_default()
    }

    /// Notes a record. `now` was read after it arrived. Older news than what is known is dropped:
    /// a watch may be behind a read.
    pub(super) fn note(&mut self, slot: &Slot, snapshot: Snapshot, news: News, now: Stamp) {
        let place = self.place(&slot.at);
        if let News::Wrote(sent) = news
            && let Some(version) = snapshot.version()
            && place.wrote.is_none_or(|(_, known)| known < version)
        {
            place.wrote = Some((sent, version));
        }
        let before = place.known.remove(&slot.number);
        let next = Known::next(before, snapshot, news, place.wrote, now);
        place.known.insert(slot.number, next);
        place.changed.notify_one();
    }

    /// Notes that an object is not there, as a read that was sent at this time found out.
    pub(super) fn note_absent(&mut self, slot: &Slot, sent: Stamp) {
        let place = self.place(&slot.at);
        place.known.insert(slot.number, Known::Absent(sent));
        place.changed.notify_one();
    }

    /// Notes that nothing is known of an object.
    pub(super) fn forget_record(&mut self, slot: &Slot) {
        let place = self.place(&slot.at);
        place.known.remove(&slot.number);
        place.changed.notify_one();
    }

    /// What is known of an object, if it was ever looked at.
    pub(super) fn known(&self, slot: &Slot) -> Option<&Known> {
        self.places.get(&slot.at)?.known.get(&slot.number)
    }

    /// All that is known of a key's objects, by their numbers.
    pub(super) fn all_known(&self, at: &Address) -> impl Iterator<Item = (u32, &Known)> {
        let known = self.places.get(at).into_iter().flat_map(|place| &place.known);
        known.map(|(number, known)| (*number, known))
    }

    /// The newest record known.
    pub(super) fn seen(&self, slot: &Slot) -> Option<(Snapshot, Sighting)> {
        match self.known(slot)? {
            Known::There(there) => Some((there.snapshot.clone(), there.sighting.clone())),
            Known::Absent(_) => None,
        }
    }

    /// Who waits here, first come first.
    pub(super) fn waiters(&self, at: &Address) -> impl Iterator<Item = &Acquire> {
        let queue = self.places.get(at).into_iter().flat_map(|place| &place.queue);
        queue.map(|waiter| &waiter.request)
    }

    /// How many tickets a session has on a key.
    pub(super) fn tickets(&self, at: &Address, session: &SessionId) -> u32 {
        self.waiters(at).filter(|waiter| waiter.session == *session).count() as u32
    }

    /// The place of a hold in the queue, counted from 1.
    pub(super) fn position(&self, at: &Address, hold: &HoldId) -> Option<u32> {
        self.waiters(at).position(|waiter| waiter.hold == *hold).map(|i| i as u32 + 1)
    }

    /// Keys of a class that somebody here holds or waits for.
    pub(super) fn keys(&self, is_ours: impl Fn(&Address) -> bool) -> Vec<Address> {
        self.places.keys().filter(|at| is_ours(at)).cloned().collect()
    }

    /// Whether another hold of the request's session would be within its share: what its records say
    /// it holds, what it has open, and what others of it were promised. Its own part does not count.
    pub(super) fn is_within_share(&self, at: &Address, request: &Acquire, now: Stamp) -> bool {
        let most = request.config.max_per_holder as usize;
        let Some(place) = self.places.get(at).filter(|_| most > 0) else { return true };
        let session = names::mark(request.session.as_str());
        let own = names::mark(request.hold.as_str());
        let held = place.known.values().filter_map(|known| known.held_by(&session, now));
        let promised = place.asking.iter().filter(|(_, of)| *of == session).map(|(hold, _)| hold);
        let mut holds: Vec<String> = held.chain(promised.cloned()).collect();
        let open = self.open.iter().filter(|(_, open)| {
            open.slot.at == *at && open.session == session && open.may_be_left(now)
        });
        holds.extend(open.map(|(hold, _)| names::mark(hold.as_str())));
        holds.retain(|hold| *hold != own);
        holds.sort_unstable();
        holds.dedup();
        holds.len() < most
    }

    /// Takes a ticket out; whether there was one.
    pub(super) fn leave(&mut self, at: &Address, hold: &HoldId) -> bool {
        let Some(place) = self.places.get_mut(at) else { return false };
        let before = place.queue.len();
        place.queue.retain(|waiter| waiter.request.hold != *hold);
        place.changed.notify_one();
        place.queue.len() < before
    }

    /// A write that takes the lock is about to be sent. False if the hold has been cancelled.
    pub(super) fn open(
        &mut self,
        slot: &Slot,
        request: &Acquire,
        basis: &Basis,
        now: Stamp,
    ) -> bool {
        if self.tombs.contains_key(&request.hold) {
            return false;
        }
        self.sweep(now);
        let entry = self.open.entry(request.hold.clone());
        let fresh = || Open {
            slot: slot.clone(),
            basis: basis.clone(),
            sent: now,
            tried: now,
            session: names::mark(request.session.as_str()),
            ttl: request.ttl,
        };
        let open = entry.or_insert_with(fresh);
        open.tried = now;
        // On another basis the earlier write can no longer apply: nothing is left of it.
        if open.basis != *basis {
            *open = fresh();
        }
        true
    }

    /// The open write of a hold.
    pub(super) fn opened(&self, hold: &HoldId) -> Option<Open> {
        self.open.get(hold).cloned()
    }

    /// An open write certainly was not carried out, and will not be.
    pub(super) fn close(&mut self, hold: &HoldId) {
        self.open.remove(hold);
    }

    /// The try that was sent then was not carried out: nothing is open if there was no other.
    pub(super) fn close_only_try(&mut self, hold: &HoldId, sent: Stamp) {
        if self.open.get(hold).is_some_and(|open| open.sent == sent && open.tried == sent) {
            self.open.remove(hold);
        }
    }

    /// A hold is granted. False if it has been cancelled meanwhile: whoever cancelled it frees it.
    pub(super) fn grant(&mut self, hold: &HoldId, own: Own) -> bool {
        if self.tombs.contains_key(hold) {
            return false;
        }
        self.open.remove(hold);
        self.holds.insert(hold.clone(), own);
        true
    }

    /// A hold of this process.
    pub(super) fn own(&self, hold: &HoldId) -> Option<Own> {
        self.holds.get(hold).cloned()
    }

    /// A hold was extended.
    pub(super) fn extend(&mut self, hold: &HoldId, basis: Basis, extended: Stamp, ttl: Duration) {
        if let Some(own) = self.holds.get_mut(hold) {
            own.basis = basis;
            own.extended = later(own.extended, extended);
            own.ttl = ttl;
        }
    }

    /// A hold is over.
    pub(super) fn end(&mut self, hold: &HoldId) -> Option<Own> {
        self.open.remove(hold);
        self.holds.remove(hold)
    }

    /// The hold of this process that is written with this mark.
    pub(super) fn by_mark(&self, mark: &str) -> Option<HoldId> {
        self.holds.keys().find(|hold| names::mark(hold.as_str()) == mark).cloned()
    }

    /// Refuses a hold from now on.
    pub(super) fn bury(&mut self, hold: &HoldId, now: Stamp) {
        self.tombs.insert(hold.clone(), now);
    }

    /// Whether a hold is refused.
    pub(super) fn is_buried(&self, hold: &HoldId) -> bool {
        self.tombs.contains_key(hold)
    }

    fn sweep(&mut self, now: Stamp) {
        if self.holds.len() + self.open.len() + self.tombs.len() < SWEEP_AT {
            return;
        }
        self.holds.retain(|_, own| !own.is_over(now));
        self.open.retain(|_, open| open.may_be_left(now));
        // A request is in flight for seconds at most.
        self.tombs.retain(|_, since| now.since(*since) < Duration::from_secs(60));
    }
}

/// The later of two stamps of this process.
fn later(one: Stamp, other: Stamp) -> Stamp {
    if other.boot_ns > one.boot_ns { other } else { one }
}
