//! When each hold is due.
//!
//! Most holds end long before anything is due. To take each one's timer out of an ordered table then
//! costs more than all else that is done in this process to release it. So timers that do not count
//! any more stay, until they come first or outnumber the others.

use std::{cmp::Reverse, collections::BinaryHeap};

use holdfast_core::HoldId;

/// So many that do not count are never too many.
const SPARE: usize = 64;

/// A boot time, and the hold that is due then.
pub(super) type Timer = (u64, HoldId);

/// The timers of all holds, and some that do not count any more: which ones, their holds know.
#[derive(Default)]
pub(super) struct Timers(BinaryHeap<Reverse<Timer>>);

impl Timers {
    /// Sets one for one of so many holds. Its hold's earlier one must not count any more.
    pub(super) fn set(&mut self, timer: Timer, holds: usize, counts: impl Fn(&Timer) -> bool) {
        self.0.push(Reverse(timer));
        if self.0.len() > 2 * holds + SPARE {
            self.0.retain(|Reverse(timer)| counts(timer));
        }
    }

    /// The earliest that counts.
    pub(super) fn first(&mut self, counts: impl Fn(&Timer) -> bool) -> Option<Timer> {
        while let Some(Reverse(timer)) = self.0.peek() {
            if counts(timer) {
                return Some(timer.clone());
            }
            self.0.pop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_earliest_of_those_that_count_comes_first() {
        let mut timers = Timers::default();
        let [a, b] = [HoldId::random(), HoldId::random()];
        let mut due: HashMap<HoldId, u64> = HashMap::new();
        for (at, hold) in [(5, &a), (7, &b), (9, &a)] {
            due.insert(hold.clone(), at);
            timers.set((at, hold.clone()), 2, |(at, hold)| due.get(hold) == Some(at));
        }
        let first = |timers: &mut Timers, due: &HashMap<HoldId, u64>| {
            timers.first(|(at, hold)| due.get(hold) == Some(at))
        };
        assert_eq!(first(&mut timers, &due), Some((7, b.clone())), "a was put off");
        assert_eq!(first(&mut timers, &due), Some((7, b.clone())), "and b still is the first");
        due.remove(&b);
        assert_eq!(first(&mut timers, &due), Some((9, a.clone())));
        due.remove(&a);
        assert_eq!(first(&mut timers, &due), None);
    }

    #[test]
    fn those_that_do_not_count_are_never_many_and_no_other_is_lost() {
        let mut timers = Timers::default();
        let held: Vec<HoldId> = (0..10).map(|_| HoldId::random()).collect();
        let counts = |(_, hold): &Timer| held.contains(hold);
        for (at, hold) in (1..).zip(&held) {
            timers.set((at, hold.clone()), held.len(), counts);
        }
        for at in 0..10_000 {
            timers.set((at, HoldId::random()), held.len(), counts);
            assert!(timers.0.len() <= 2 * held.len() + SPARE);
        }
        assert_eq!(timers.first(counts), Some((1, held[0].clone())));
        timers.0.retain(|Reverse(timer)| counts(timer));
        assert_eq!(timers.0.len(), held.len());
    }
}
