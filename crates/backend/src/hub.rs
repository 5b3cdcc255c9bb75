//! Where a store's pushes meet those who wait for them, inside one process.
//!
//! Every hold that this process asked for has an entry here from before the first request is sent
//! until nobody cares any more. The entry also counts: while a hold has another user in this process
//! (a retry of the same request, or the hold already being used), withdrawing one of them must not
//! withdraw the hold.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::pending,
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
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    // Names of holds are random or digests: nobody can choose them to collide.
    of: HashMap<HoldId, Users, RandomState>,
    /// How many users there have been: each is known by its number.
    users: u64,
}

/// The users of one hold. Hardly ever more than one: that one needs no list.
enum Users {
    One(Slot),
    Many(Vec<Slot>),
}

/// One user of a hold. Small: ten thousand holds must not cost a channel each.
struct Slot {
    user: u64,
    /// The newest push that nobody has taken: a later one replaces an earlier one, since each says
    /// how things stand now.
    pending: Option<Push>,
    listener: Option<Listener>,
}

/// Who is told of a push. Most users never wait for one: they need no place to wait at.
enum Listener {
    Waiter(Arc<Notify>),
    Diverted(Diverted),
}

/// The receiving end of one user of a hold. Dropping it ends the entry.
pub struct Inbox {
    hub: Arc<Hub>,
    hold: HoldId,
    user: u64,
}

impl Hub {
    /// An empty hub.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Enters one more user of a hold. Do this before the first request that may grant it.
    pub fn register(self: &Arc<Self>, hold: &HoldId) -> Inbox {
        let mut slots = lock(&self.slots);
        slots.users += 1;
        let user = slots.users;
        let slot = Slot { user, pending: None, listener: None };
        match slots.of.entry(hold.clone()) {
            Entry::Vacant(entry) => drop(entry.insert(Users::One(slot))),
            Entry::Occupied(entry) => {
                let (hold, users) = entry.remove_entry();
                slots.of.insert(hold, users.with(slot));
            }
        }
        Inbox { hub: self.clone(), hold: hold.clone(), user }
    }

    /// Delivers a push to every user of a hold; whether there was one.
    pub fn send(&self, hold: &HoldId, push: Push) -> bool {
        let mut slots = lock(&self.slots);
        let Some(users) = slots.of.get_mut(hold) else { return false };
        for slot in users.as_mut_slice() {
            slot.deliver(hold, push.clone());
        }
        true
    }

    /// How many users a hold has.
    pub fn users(&self, hold: &HoldId) -> usize {
        lock(&self.slots).of.get_mut(hold).map_or(0, |users| users.as_mut_slice().len())
    }
}

impl Users {
    fn as_mut_slice(&mut self) -> &mut [Slot] {
        match self {
            Users::One(slot) => std::slice::from_mut(slot),
            Users::Many(slots) => slots,
        }
    }

    fn with(self, slot: Slot) -> Self {
        match self {
            Users::One(first) => Users::Many(vec![first, slot]),
            Users::Many(mut slots) => {
                slots.push(slot);
                Users::Many(slots)
            }
        }
    }

    /// Those that are left, if any.
    fn without(self, user: u64) -> Option<Self> {
        match self {
            Users::One(only) => (only.user != user).then_some(Users::One(only)),
            Users::Many(mut slots) => {
                slots.retain(|slot| slot.user != user);
                (!slots.is_empty()).then_some(Users::Many(slots))
            }
        }
    }
}

impl Slot {
    /// Where to wait for a push.
    fn place(&mut self) -> Arc<Notify> {
        match self.listener.get_or_insert_with(|| Listener::Waiter(Arc::default())) {
            Listener::Waiter(place) => place.clone(),
            // Its pushes go elsewhere for good.
            Listener::Diverted(_) => Arc::default(),
        }
    }

    fn deliver(&mut self, hold: &HoldId, push: Push) {
        if self.pending == Some(Push::Lost) {
            // What is lost stays lost, whatever other connections bring of before.
            return;
        }
        match &self.listener {
            // A closed channel means that its reader is shutting down: nobody to tell.
            Some(Listener::Diverted(to)) => drop(to.send((hold.clone(), push))),
            Some(Listener::Waiter(place)) => {
                self.pending = Some(push);
                place.notify_one();
            }
            None => self.pending = Some(push),
        }
    }
}

impl Inbox {
    /// The next push. Safe to drop and call again.
    pub async fn recv(&mut self) -> Push {
        loop {
            let next = self.with_slot(|slot| slot.pending.take().ok_or_else(|| slot.place()));
            match next {
                Some(Ok(push)) => return push,
                Some(Err(place)) => place.notified().await,
                None => pending().await,
            }
        }
    }

    /// Sends this and every later push to a shared channel, as long as the inbox lives: so that
    /// many holds need one reader, not one task each.
    pub fn divert(&self, to: &Diverted) {
        self.with_slot(|slot| {
            slot.listener = Some(Listener::Diverted(to.clone()));
            if let Some(push) = slot.pending.take() {
                slot.deliver(&self.hold, push);
            }
        });
    }

    /// The hold this is about.
    pub fn hold(&self) -> &HoldId {
        &self.hold
    }

    /// The slot is there as long as the inbox is.
    fn with_slot<T>(&self, run: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        let mut slots = lock(&self.hub.slots);
        let users = slots.of.get_mut(&self.hold)?;
        users.as_mut_slice().iter_mut().find(|slot| slot.user == self.user).map(run)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut slots = lock(&self.hub.slots);
        // Hardly ever is there another user, for whom to put the entry back.
        if let Some((hold, users)) = slots.of.remove_entry(&self.hold)
            && let Some(left) = users.without(self.user)
        {
            slots.of.insert(hold, left);
        }
    }
}

/// Locks a mutex whose data stays valid even if a holder of it panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
