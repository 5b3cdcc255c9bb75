//! What became of holds that are no more, for those who ask late: a second release, a retry.
//!
//! Bounded: the oldest is forgotten first. Whoever asks about a forgotten one is told that the hold
//! is not there, which is true.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::BuildHasher,
};

use foldhash::{fast, quality};

/// How many are remembered.
const CAPACITY: usize = 16_384;

/// How a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By its holder.
    Released,
    /// Its deadline passed, or the store no longer had it.
    Expired,
    /// It was taken by force.
    Forced,
    /// The app's container ended.
    AppEnded,
    /// It never was: its caller gave the request up. Another try has a hold of its own.
    GivenUp,
}

impl End {
    /// What to tell a holder that comes late.
    pub const fn sentence(self) -> &'static str {
        match self {
            End::Released => "the hold was released before",
            End::Expired => "the hold expired: another may hold the lock now",
            End::Forced => "the hold was taken by force: another may hold the lock now",
            End::GivenUp => "the request was given up by its caller",
            End::AppEnded => "the hold ended with the app's container that had acquired it",
        }
    }
}

/// The ends of the newest holds that ended. Hashes and not names: the table must not keep thousands
/// of small allocations alive between those that come and go. A name that was never here shares its
/// hash with one of them once in a million billion look-ups.
#[derive(Default)]
pub struct Ended {
    names: quality::RandomState,
    ends: HashMap<u64, End, fast::RandomState>,
    order: VecDeque<u64>,
}

impl Ended {
    /// Remembers an end. The first one counts.
    pub fn note(&mut self, hold: &str, end: End) {
        let hold = self.names.hash_one(hold);
        match self.ends.entry(hold) {
            Entry::Occupied(_) => return,
            Entry::Vacant(entry) => drop(entry.insert(end)),
        }
        if self.order.len() >= CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.ends.remove(&oldest);
        }
        self.order.push_back(hold);
    }

    /// How a hold ended, if it is remembered.
    pub fn get(&self, hold: &str) -> Option<End> {
        self.ends.get(&self.names.hash_one(hold)).copied()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_core::HoldId;

    use super::*;

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let mut ended = Ended::default();
        let holds: Vec<HoldId> = (0..=CAPACITY).map(|_| HoldId::random()).collect();
        for hold in &holds {
            ended.note(hold.as_str(), End::Released);
            ended.note(hold.as_str(), End::Expired);
        }
        assert_eq!(ended.get(holds[0].as_str()), None);
        assert_eq!(ended.get(holds[1].as_str()), Some(End::Released), "the first end counts");
        assert_eq!((ended.ends.len(), ended.order.len()), (CAPACITY, CAPACITY));
    }
}
