//! Where a store's pushes meet those who wait for them, inside one process.
//!
//! Every hold that this process asked for has an entry here from before the first request is sent
//! until nobody cares any more. The entry also counts: while a hold has another user in this process
//! (a retry of the same request, or the hold already being used), withdrawing one of them must not
//! withdraw the hold.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use foldhash::fast::RandomState;
use holdfast_core::{HoldId, lock::Push};
use tokio::sync::{Notify, mpsc};

/// A channel that many holds' pushes can be diverted to.
pub type Diverted = mpsc::UnboundedSender<(HoldId, Push)>;

/// The entries of all holds of this process.
#[derive(Default)]
pub struct Hub {
    // Names of holds are random or digests: nobody can choose them to collide.
    slots: Mutex<HashMap<HoldId, Users, RandomState>>,
}

/// The users of one hold. Hardly ever more than one: that one needs no list.
#[derive(Clone)]
enum Users {
    One(Arc<Slot>),
    Many(Vec<Arc<Slot>>),
}

/// One user of a hold. Small: ten thousand holds must not cost a channel each.
#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
    arrived: Notify,
}

#[derive(Default)]
struct SlotState {
    /// The newest push that nobody has taken: a later one replaces an earlier one, since each says
    /// how things stand now.
    pending: Option<Push>,
    diverted: Option<Diverted>,
}

/// The receiving end of one user of a hold. Dropping it ends the entry.
pub struct Inbox {
    hub: Arc<Hub>,
    hold: HoldId,
    slot: Arc<Slot>,
}

impl Hub {
    /// An empty hub.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Enters one more user of a hold. Do this before the first request that may grant it.
    pub fn register(self: &Arc<Self>, hold: &HoldId) -> Inbox {
        let slot = Arc::new(Slot::default());
        match lock(&self.slots).entry(hold.clone()) {
            Entry::Vacant(entry) => drop(entry.insert(Users::One(slot.clone()))),
            Entry::Occupied(mut entry) => entry.get_mut().add(slot.clone()),
        }
        Inbox { hub: self.clone(), hold: hold.clone(), slot }
    }

    /// Delivers a push to every user of a hold; whether there was one.
    pub fn send(&self, hold: &HoldId, push: Push) -> bool {
        let Some(users) = lock(&self.slots).get(hold).cloned() else { return false };
        for slot in users.as_slice() {
            let mut state = lock(&slot.state);
            match &state.diverted {
                // A closed channel means that its reader is shutting down: nobody to tell.
                Some(to) => drop(to.send((hold.clone(), push.clone()))),
                None => {
                    state.pending = Some(push.clone());
                    slot.arrived.notify_one();
                }
            }
        }
        true
    }

    /// How many users a hold has.
    pub fn users(&self, hold: &HoldId) -> usize {
        lock(&self.slots).get(hold).map_or(0, |users| users.as_slice().len())
    }
}

impl Users {
    fn as_slice(&self) -> &[Arc<Slot>] {
        match self {
            Users::One(slot) => std::slice::from_ref(slot),
            Users::Many(slots) => slots,
        }
    }

    fn add(&mut self, slot: Arc<Slot>) {
        match self {
            Users::One(first) => *self = Users::Many(vec![first.clone(), slot]),
            Users::Many(slots) => slots.push(slot),
        }
    }

    /// Whether any are left.
    fn remove(&mut self, slot: &Arc<Slot>) -> bool {
        match self {
            Users::One(only) => !Arc::ptr_eq(only, slot),
            Users::Many(slots) => {
                slots.retain(|other| !Arc::ptr_eq(other, slot));
                !slots.is_empty()
            }
        }
    }
}

impl Inbox {
    /// The next push. Safe to drop and call again.
    pub async fn recv(&mut self) -> Push {
        loop {
            if let Some(push) = lock(&self.slot.state).pending.take() {
                return push;
            }
            self.slot.arrived.notified().await;
        }
    }

    /// Sends this and every later push to a shared channel, as long as the inbox lives: so that
    /// many holds need one reader, not one task each.
    pub fn divert(&self, to: &Diverted) {
        let mut state = lock(&self.slot.state);
        if let Some(push) = state.pending.take() {
            drop(to.send((self.hold.clone(), push)));
        }
        state.diverted = Some(to.clone());
    }

    /// The hold this is about.
    pub fn hold(&self) -> &HoldId {
        &self.hold
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut slots = lock(&self.hub.slots);
        if let Entry::Occupied(mut entry) = slots.entry(self.hold.clone())
            && !entry.get_mut().remove(&self.slot)
        {
            entry.remove();
        }
    }
}

/// Locks a mutex whose data stays valid even if a holder of it panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_user_of_a_hold_is_told_and_the_last_one_ends_the_entry() {
        let hub = Hub::new();
        let hold = HoldId::random();
        let (mut first, second) = (hub.register(&hold), hub.register(&hold));
        assert!(hub.send(&hold, Push::Lost));
        assert_eq!(first.recv().await, Push::Lost);
        drop(first);
        let (to, mut from) = mpsc::unbounded_channel();
        second.divert(&to);
        assert_eq!(from.recv().await, Some((hold.clone(), Push::Lost)));
        hub.send(&hold, Push::Requeue);
        assert_eq!(from.recv().await, Some((hold.clone(), Push::Requeue)));
        drop(second);
        assert_eq!(hub.users(&hold), 0);
        assert!(!hub.send(&hold, Push::Lost));
    }
}
