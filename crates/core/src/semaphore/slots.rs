//! Slots: the permits of a semaphore that lives on Leases. Each permit *is* one Lease, so nobody
//! counts: what can be held at once is what there is.
//!
//! - No plan lets more slots be than the class has permits, unless more are held already.
//! - No plan takes a slot away that is held: a change of the limit revokes nothing.
//! - While more are held than there may be, all of them are *closed*: their holds go on, and nobody
//!   is granted one after them.
//! - Held slots stay where they are; the others fill up from the lowest number, so that a sidecar
//!   that knows the limit knows where to look.

use std::collections::{BTreeMap, BTreeSet};

/// The most permits of one key.
pub const MAX_SLOTS: u32 = 64;
/// The most slots of one class, over all of its keys: each is an object in etcd.
pub const MAX_LEASES: u32 = 256;

/// A slot as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// It is there, and nobody holds it.
    Free,
    /// It is there, and somebody holds it (or it is on its way out and has not gone yet).
    Held {
        /// Whether it is closed.
        closed: bool,
    },
    /// It is there, free and closed.
    Closed,
    /// Somebody deleted it while it was held, and its holder may still believe in it.
    Missed,
}

/// What is to be done about the slots of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotPlan {
    /// To be created, unheld.
    pub create: Vec<u32>,
    /// To be deleted, on the condition that they are as they were seen.
    pub delete: Vec<u32>,
    /// To be closed.
    pub close: Vec<u32>,
    /// To be opened again.
    pub open: Vec<u32>,
}

/// Brings the slots of one key to what `permits` wants. What cannot be done before something else
/// is gone is left to the next plan.
pub fn plan(permits: u32, there: &BTreeMap<u32, SlotState>) -> SlotPlan {
    use SlotState::{Closed, Held, Missed};
    let most = permits.min(MAX_SLOTS) as usize;
    let such = |is: fn(SlotState) -> bool| {
        there.iter().filter(move |(_, state)| is(**state)).map(|(number, _)| *number)
    };
    let kept: BTreeSet<u32> = such(|state| matches!(state, Held { .. } | Missed)).collect();
    let is_over = kept.len() > most;
    let mut wanted = kept;
    for number in 0..permits.min(MAX_SLOTS) {
        if wanted.len() >= most {
            break;
        }
        wanted.insert(number);
    }
    // Not even for a moment more than there may be: a slot that is to go still counts.
    let room = most.saturating_sub(there.len());
    let create = wanted.iter().filter(|number| !there.contains_key(number)).take(room);
    let delete = there.keys().filter(|number| !wanted.contains(number));
    let close = such(|state| state == Held { closed: false }).filter(|_| is_over);
    let reopen = such(|state| matches!(state, Held { closed: true } | Closed));
    let open = reopen.filter(|number| there.len() <= most && wanted.contains(number));
    SlotPlan {
        create: create.copied().collect(),
        delete: delete.copied().collect(),
        close: close.collect(),
        open: open.collect(),
    }
}

/// In what order a contender tries the slots: from a place of its own on, so that contenders meet
/// each other rarely while there is room.
pub fn order(seed: u64, permits: u32) -> impl Iterator<Item = u32> {
    let slots = permits.clamp(1, MAX_SLOTS);
    let first = (seed % u64::from(slots)) as u32;
    (0..slots).map(move |i| (first + i) % slots)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{SlotState::*, *};

    const HELD: SlotState = Held { closed: false };
    const SHUT: SlotState = Held { closed: true };

    fn mk_plan(permits: u32, there: &[(u32, SlotState)]) -> [Vec<u32>; 4] {
        let SlotPlan { create, delete, close, open } =
            plan(permits, &there.iter().copied().collect());
        [create, delete, close, open]
    }

    #[test]
    fn more_permits_are_created_and_fewer_are_deleted_where_nobody_holds() {
        let none = Vec::<u32>::new;
        assert_eq!(mk_plan(3, &[]), [vec![0, 1, 2], none(), none(), none()]);
        assert_eq!(mk_plan(3, &[(0, HELD), (1, Free)]), [vec![2], none(), none(), none()]);
        let all_free = [(0, Free), (1, Free), (2, Free)];
        assert_eq!(mk_plan(1, &all_free), [none(), vec![1, 2], none(), none()]);
        // A held one stays, and so another must go, or there would be two for one permit.
        let one_held = [(0, Free), (1, Free), (2, HELD)];
        assert_eq!(mk_plan(1, &one_held), [none(), vec![0, 1], none(), none()]);
        assert_eq!(mk_plan(2, &one_held), [none(), vec![1], none(), none()]);
        // The surplus one has ended: first it goes, then its place is filled.
        assert_eq!(mk_plan(2, &[(0, HELD), (3, Free)]), [none(), vec![3], none(), none()]);
        assert_eq!(mk_plan(2, &[(0, HELD)]), [vec![1], none(), none(), none()]);
        // Deleted by hand under its holder: it counts until the holder stops to believe in it.
        assert_eq!(mk_plan(2, &[(0, Missed), (1, Free)]), [none(), none(), none(), none()]);
    }

    #[test]
    fn while_more_are_held_than_there_may_be_all_are_closed() {
        let none = Vec::<u32>::new;
        let over = [(0, HELD), (1, HELD), (2, SHUT)];
        assert_eq!(mk_plan(2, &over), [none(), none(), vec![0, 1], none()]);
        // One has ended: it goes, and only then are the others opened.
        let ended = [(0, Closed), (1, SHUT), (2, SHUT)];
        assert_eq!(mk_plan(2, &ended), [none(), vec![0], none(), none()]);
        assert_eq!(mk_plan(2, &ended[1..]), [none(), none(), none(), vec![1, 2]]);
        assert_eq!(mk_plan(4, &ended), [vec![3], none(), none(), vec![0, 1, 2]]);
    }

    #[test]
    fn every_contender_tries_every_slot_once_from_a_place_of_its_own() {
        assert_eq!(order(7, 5).collect::<Vec<_>>(), [2, 3, 4, 0, 1]);
        assert_eq!(order(u64::MAX, 1).collect::<Vec<_>>(), [0]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Grant(usize),
        End(usize),
        Resize(u32),
        /// A plan is made, and as many of its steps are carried out before the operator dies.
        Operate(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0usize..64).prop_map(Step::Grant),
            3 => (0usize..64).prop_map(Step::End),
            1 => (1u32..12).prop_map(Step::Resize),
            3 => (0usize..8).prop_map(Step::Operate),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Contenders take any open slot that there is, whatever limit they know of. Still no grant
        /// is made above the limit once the operator has carried out one plan for it.
        #[test]
        fn what_there_is_bounds_what_is_held(steps in steps()) {
            let (mut there, mut permits, mut settled) = (BTreeMap::new(), 3, false);
            let nth = |there: &BTreeMap<u32, SlotState>, n: usize, is: fn(SlotState) -> bool| {
                let found: Vec<u32> =
                    there.iter().filter(|(_, state)| is(**state)).map(|(n, _)| *n).collect();
                (!found.is_empty()).then(|| found[n % found.len()])
            };
            let held = |there: &BTreeMap<u32, SlotState>| {
                there.values().filter(|state| matches!(state, Held { .. })).count()
            };
            for step in steps {
                match step {
                    Step::Grant(n) => if let Some(slot) = nth(&there, n, |state| state == Free) {
                        there.insert(slot, HELD);
                        prop_assert!(!settled || held(&there) <= permits as usize);
                    },
                    Step::End(n) => {
                        if let Some(slot) = nth(&there, n, |s| matches!(s, Held { .. })) {
                            let shut = there.insert(slot, Free) == Some(SHUT);
                            there.insert(slot, if shut { Closed } else { Free });
                        }
                    }
                    Step::Resize(to) => (permits, settled) = (to, false),
                    Step::Operate(many) => {
                        let planned = plan(permits, &there);
                        let (before, were) = (held(&there), there.len());
                        settled |= many >= operate(&mut there, &planned, many);
                        prop_assert_eq!(held(&there), before, "a plan took a hold away");
                        prop_assert!(there.len() <= were.max(permits as usize));
                    }
                }
            }
            // Left alone, and with all holds ended, the plans come to rest at the lowest numbers.
            for state in there.values_mut() {
                *state = if *state == SHUT { Closed } else { Free };
            }
            for _ in 0..4 {
                let planned = plan(permits, &there);
                operate(&mut there, &planned, usize::MAX);
            }
            prop_assert!(there.keys().copied().eq(0..permits));
            prop_assert!(there.values().all(|state| *state == Free));
        }
    }

    /// Carries out the first so many steps of a plan; returns how many it has.
    fn operate(there: &mut BTreeMap<u32, SlotState>, plan: &SlotPlan, many: usize) -> usize {
        let closing = plan.close.iter().map(|n| (*n, Some(SHUT)));
        let deleting = plan.delete.iter().map(|n| (*n, None));
        let creating = plan.create.iter().map(|n| (*n, Some(Free)));
        let opening =
            plan.open.iter().map(|n| (*n, Some(if there[n] == Closed { Free } else { HELD })));
        let opening: Vec<_> = opening.collect();
        let all: Vec<_> = closing.chain(deleting).chain(opening).chain(creating).collect();
        for (number, state) in all.iter().take(many) {
            match state {
                Some(state) => there.insert(*number, *state),
                None => there.remove(number),
            };
        }
        all.len()
    }
}
