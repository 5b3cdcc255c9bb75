//! The slots of a semaphore on Leases: how they are seen, and what is to be done about them. Pure. The
//! rules are [`holdfast_core::semaphore::slots`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_backend::lease::names;
use holdfast_core::{
    Key, Kind,
    semaphore::slots::{MAX_SLOTS, SlotState, plan},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;

use super::{Planned, SOON, Valid};
use crate::controllers::lock::sightings::Sightings;

impl Valid {
    /// The slots of a key among the Leases of its class, by their numbers.
    pub fn slots_of<'a>(
        &self,
        key: &Key,
        leases: &'a [Arc<Lease>],
    ) -> BTreeMap<u32, &'a Arc<Lease>> {
        let number = |lease: &Lease| names::slot_number(&self.class.name, key, &lease.name_any());
        leases.iter().filter_map(|lease| Some((number(lease)?, lease))).collect()
    }

    /// The numbers of the slots of a key that are to be. What is to be closed, opened, and looked at
    /// again goes to the plan; those that there are and are not named here are to go.
    pub(super) fn plan_slots(
        &self,
        key: &Key,
        leases: &[Arc<Lease>],
        sightings: &Sightings,
        planned: &mut Planned,
    ) -> Vec<u32> {
        let permits = self.lock.as_ref().map_or(0, |lock| lock.permits);
        let mut there = BTreeMap::new();
        // An expiry is told by nobody.
        let mut soonest = None;
        let mut held = |left: Duration| {
            soonest = Some(soonest.map_or(left, |known: Duration| known.min(left)));
        };
        let found = self.slots_of(key, leases);
        for (number, lease) in &found {
            let closed = is_closed(lease);
            let left = sightings.look(&self.namespace, &lease.name_any()).map(|look| look.left);
            let state = match left.unwrap_or_default() {
                // On its way out.
                _ if lease.metadata.deletion_timestamp.is_some() => SlotState::Missed,
                Duration::ZERO if closed => SlotState::Closed,
                Duration::ZERO => SlotState::Free,
                left => {
                    held(left);
                    SlotState::Held { closed }
                }
            };
            there.insert(*number, state);
        }
        for number in (0..MAX_SLOTS).filter(|number| !found.contains_key(number)) {
            let name = names::slot_name(Kind::Semaphore, &self.class.name, key, number);
            let left = sightings.absent_for(&self.namespace, &name);
            if !left.is_zero() {
                held(left);
                there.insert(number, SlotState::Missed);
            }
        }
        let steps = plan(permits, &there);
        let lease = |number: &u32| found.get(number).map(|lease| (*lease).clone());
        planned.close.extend(steps.close.iter().filter_map(lease));
        planned.open.extend(steps.open.iter().filter_map(lease));
        if !there.keys().copied().eq(0..permits) {
            let again = soonest.unwrap_or(SOON).max(SOON);
            planned.again = Some(planned.again.map_or(again, |known| known.min(again)));
        }
        let kept = found.keys().filter(|number| !steps.delete.contains(number)).copied();
        kept.chain(steps.create).collect()
    }
}

/// Whether nothing is granted on a Lease after its hold.
fn is_closed(lease: &Lease) -> bool {
    lease.annotations().get(names::CLOSED).is_some_and(|closed| closed == "true")
}
