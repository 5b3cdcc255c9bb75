//! What became of holds that are no more, for those who ask late: a second release, a retry.
//!
//! Bounded: the oldest are forgotten first. Whoever asks about a forgotten one is told that the hold
//! is not there, which is true.

use std::{collections::HashMap, hash::BuildHasher, mem};

use foldhash::{fast, quality};

/// How many are remembered at least; twice as many at most.
const CAPACITY: usize = 4_096;

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
///
/// In two generations: when the younger is full, the older is forgotten as a whole. To forget them
/// one by one would cost every release two more lines of memory that no cache has.
#[derive(Default)]
pub struct Ended {
    names: quality::RandomState,
    young: Ends,
    old: Ends,
}

type Ends = HashMap<u64, End, fast::RandomState>;

impl Ended {
    /// Remembers an end. The first one counts.
    pub fn note(&mut self, hold: &str, end: End) {
        let hold = self.names.hash_one(hold);
        if self.find(hold).is_some() {
            return;
        }
        if self.young.len() >= CAPACITY {
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(hold, end);
    }

    /// How a hold ended, if it is remembered.
    pub fn get(&self, hold: &str) -> Option<End> {
        self.find(self.names.hash_one(hold))
    }

    fn find(&self, hold: u64) -> Option<End> {
        self.young.get(&hold).or_else(|| self.old.get(&hold)).copied()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_core::HoldId;

    use super::*;

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let mut ended = Ended::default();
        let holds: Vec<HoldId> = (0..=2 * CAPACITY).map(|_| HoldId::random()).collect();
        for (i, hold) in holds.iter().enumerate() {
            ended.note(hold.as_str(), End::Released);
            ended.note(hold.as_str(), End::Expired);
            let newest = &holds[(i + 1).saturating_sub(CAPACITY)];
            assert_eq!(ended.get(newest.as_str()), Some(End::Released), "the first end counts");
            assert!(ended.young.len() + ended.old.len() <= 2 * CAPACITY);
        }
        assert_eq!(ended.get(holds[0].as_str()), None);
    }
}
