//! For how long the operator has seen each Lease as it is: the only way to tell that a hold has
//! expired, since no time in a Lease may be compared with a clock of ours.
//!
//! A Lease that was deleted by hand while it was held is remembered until its hold has run out:
//! until then it is not created again, for its holder may still believe in it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_backend::lease::names;
use holdfast_core::{
    Clock, Fence, SystemClock,
    lock::record::{Record, Sighting},
};
use k8s_openapi::{
    api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::ResourceExt;

use crate::context::lock;

/// The Leases as they were seen.
#[derive(Default)]
pub struct Sightings(Mutex<HashMap<Name, Seen>>);

type Name = (String, String);

struct Seen {
    sighting: Sighting,
    shape: Shape,
    holder: String,
    gone: bool,
}

/// All of a Lease that decisions depend on, but for the time of its last renewal.
#[derive(PartialEq)]
struct Shape {
    record: Record,
    labels: BTreeMap<String, String>,
    owners: Vec<OwnerReference>,
    finalizers: Vec<String>,
}

/// A Lease at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// The pod that holds it, or held it last.
    pub holder: String,
    /// The record.
    pub record: Record,
    /// Until the hold counts as expired; zero for an unheld Lease.
    pub left: Duration,
}

impl Look {
    /// Whether somebody holds it now. A released hold that stands for its minimal time does not
    /// count: nobody acts on it.
    pub fn is_held(&self) -> bool {
        !self.left.is_zero() && !self.record.released
    }
}

impl Sightings {
    /// Notes a Lease as it is now. Whether there is anything to be done about it: of a renewal,
    /// which is most of what happens, there is not. Whoever waits for an expiry looks again then.
    pub fn see(&self, lease: &Lease) -> bool {
        let now = SystemClock.now();
        let (record, holder) = read(lease);
        let shape = Shape {
            record: Record { renewal: String::new(), ..record.clone() },
            labels: lease.labels().clone(),
            owners: lease.owner_references().to_vec(),
            finalizers: lease.finalizers().to_vec(),
        };
        let mut all = lock(&self.0);
        match all.get_mut(&name(lease)) {
            Some(seen) => {
                seen.sighting.see(record, now);
                seen.holder = holder;
                let changed = seen.gone || seen.shape != shape;
                (seen.gone, seen.shape) = (false, shape);
                changed
            }
            None => {
                let sighting = Sighting::new(record, now);
                all.insert(name(lease), Seen { sighting, shape, holder, gone: false });
                true
            }
        }
    }

    /// Notes that a Lease is gone.
    pub fn forget(&self, lease: &Lease) {
        let mut all = lock(&self.0);
        if let Some(seen) = all.get_mut(&name(lease)) {
            seen.gone = true;
            // Draining is done by whoever deletes in good order.
            if seen.sighting.record().terminating || seen.sighting.record().mark.is_none() {
                all.remove(&name(lease));
            }
        }
    }

    /// Notes all Leases that there are; others are gone.
    pub fn see_all(&self, leases: &[Arc<Lease>]) {
        for lease in leases {
            self.see(lease);
        }
        let there: HashSet<Name> = leases.iter().map(|lease| name(lease)).collect();
        let now = SystemClock.now();
        lock(&self.0).retain(|name, seen| {
            seen.gone |= !there.contains(name);
            !seen.gone || !seen.sighting.left(now, Duration::ZERO).is_zero()
        });
    }

    /// A Lease as it is now.
    pub fn look(&self, namespace: &str, name: &str) -> Option<Look> {
        self.find(namespace, name).filter(|(_, gone)| !gone).map(|(look, _)| look)
    }

    /// For how much longer a deleted Lease must stay away, because its hold has not run out.
    pub fn absent_for(&self, namespace: &str, name: &str) -> Duration {
        match self.find(namespace, name) {
            Some((look, true)) => look.left,
            _ => Duration::ZERO,
        }
    }

    fn find(&self, namespace: &str, name: &str) -> Option<(Look, bool)> {
        let all = lock(&self.0);
        let seen = all.get(&(namespace.to_owned(), name.to_owned()))?;
        let left = seen.sighting.left(SystemClock.now(), Duration::ZERO);
        let (holder, record) = (seen.holder.clone(), seen.sighting.record().clone());
        Some((Look { holder, record, left }, seen.gone))
    }
}

fn name(lease: &Lease) -> Name {
    (lease.namespace().unwrap_or_default(), lease.name_any())
}

/// What a Lease says, and who holds it, for people.
fn read(lease: &Lease) -> (Record, String) {
    let spec = lease.spec.clone().unwrap_or_default();
    let note = |name: &str| lease.annotations().get(name);
    // The identity has a part of the hold's mark in it: no two holds have the same.
    let identity = spec.holder_identity.unwrap_or_default();
    let holder = identity.rsplit_once('_').map_or(identity.as_str(), |(pod, _)| pod).to_owned();
    let record = Record {
        uid: lease.uid().unwrap_or_default(),
        mark: (!identity.is_empty()).then_some(identity),
        fence: note(names::FENCE).and_then(|text| text.parse::<Fence>().ok()),
        duration: Duration::from_secs(spec.lease_duration_seconds.unwrap_or(1).max(1) as u64),
        renewal: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
        released: note(names::RELEASED).is_some_and(|text| text == "true"),
        terminating: lease.metadata.deletion_timestamp.is_some(),
    };
    (record, holder)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_lease(holder: &str, seconds: u32) -> Lease {
        serde_json::from_value(json!({
            "metadata": {"name": "l", "namespace": "n", "uid": "u"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds},
        }))
        .unwrap()
    }

    #[test]
    fn a_lease_that_was_deleted_while_held_stays_away_until_its_hold_has_run_out() {
        let sightings = Sightings::default();
        assert!(sightings.see(&mk_lease("pod-1_0123456789abcdef", 30)));
        assert!(!sightings.see(&mk_lease("pod-1_0123456789abcdef", 30)), "nothing happened");
        let look = sightings.look("n", "l").unwrap();
        assert!(look.is_held() && look.holder == "pod-1" && look.left.as_secs() >= 29);
        sightings.forget(&mk_lease("pod-1_0123456789abcdef", 30));
        assert_eq!(sightings.look("n", "l"), None);
        assert!(sightings.absent_for("n", "l").as_secs() >= 29);

        assert!(sightings.see(&mk_lease("", 1)));
        assert!(!sightings.look("n", "l").unwrap().is_held());
        sightings.forget(&mk_lease("", 1));
        assert!(sightings.absent_for("n", "l").is_zero());
    }
}
