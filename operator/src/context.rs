//! What reconciliations share during one term of leadership. Nothing in it outlives the term: the
//! next leader starts from what the API server says.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_backend::lease::LeaseLocks;
use holdfast_core::{Address, Fence};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder},
};

use crate::{
    args::ControlArgs,
    controllers::{
        backend::{Doubts, Longest, Quarantines},
        bundle::Published,
        election::{routing::Routes, transfer::Transfers},
        lock::sightings::Sightings,
        tenants::Users,
    },
    floors::Floors,
    gate::lines::Lines,
    metrics::Metrics,
    status::Pace,
    stores::Stores,
    watch::{Caches, Injected, Triggers},
};

/// The pod and the key that an Event is about, if it is about a hold.
pub type Pod = Option<(String, String)>;

/// Everything that a reconciliation may use.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The operator's own namespace.
    pub namespace: String,
    /// The flags.
    pub args: ControlArgs,
    /// What is seen of the cluster.
    pub caches: Caches,
    /// Where to ask for another look.
    pub triggers: Triggers,
    /// Where sidecars are.
    pub injected: Arc<Injected>,
    /// How long Leases have been as they are.
    pub sightings: Arc<Sightings>,
    /// The bundles, parsed.
    pub published: Published,
    /// Locks on Leases: to release by force.
    pub leases: Arc<LeaseLocks>,
    /// The Redis servers.
    pub stores: Stores,
    /// The users of namespaces that have been seen to.
    pub users: Users,
    /// For how long holds on each Backend may still be believed in.
    pub longest: Longest,
    /// Epochs that must be raised.
    pub doubts: Doubts,
    /// How long servers whose data is in doubt stay closed.
    pub quarantines: Quarantines,
    /// What deleted classes and backends left behind.
    pub floors: Floors,
    /// Ways to leaders that are as they should be.
    pub routes: Routes,
    /// Leaderships that are to change hands.
    pub transfers: Transfers,
    /// Gated pods, in the order in which they ask.
    pub lines: Lines,
    /// Holds that were taken by force.
    pub forced: Forced,
    /// When a status may be written again.
    pub pace: Pace,
    /// Writes Events, the same ones as a series.
    pub recorder: Recorder,
    /// The metrics.
    pub metrics: Metrics,
}

impl Context {
    /// Writes an Event about an object. Events are for people: one that cannot be written is logged
    /// and stops nothing.
    ///
    /// The same reason about the same object and pod again is one Event with a count.
    pub async fn tell<K>(&self, about: &K, kind: EventType, reason: &str, note: String, pod: Pod)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        // With a version in it no two Events would be about the same object.
        let about = ObjectReference { resource_version: None, ..about.object_ref(&()) };
        let secondary = pod.map(|(pod, key)| ObjectReference {
            kind: Some("Pod".into()),
            namespace: about.namespace.clone(),
            name: Some(pod),
            field_path: Some(key),
            ..ObjectReference::default()
        });
        let event = Event {
            type_: kind,
            reason: reason.into(),
            note: Some(note),
            action: reason.into(),
            secondary,
        };
        self.metrics.wrote("event");
        if let Err(error) = self.recorder.publish(&event, &about).await {
            tracing::debug!(%error, reason, "could not write an Event");
        }
    }
}

/// Releases by force in this term.
#[derive(Default)]
pub struct Forced {
    /// Holds that were taken: their end is told already.
    told: Mutex<VecDeque<(Address, Fence)>>,
    /// What was written down to be meant, and has not been tried yet.
    untried: Mutex<HashSet<String>>,
}

impl Forced {
    /// How many are remembered: they are asked for within seconds.
    const KEPT: usize = 1_000;

    /// Notes one.
    pub fn note(&self, at: &Address, fence: Fence) {
        let mut all = lock(&self.told);
        all.push_back((at.clone(), fence));
        if all.len() > Self::KEPT {
            all.pop_front();
        }
    }

    /// Whether a hold was one.
    pub fn contains(&self, at: &Address, fence: Fence) -> bool {
        lock(&self.told).iter().any(|(known, of)| known == at && *of == fence)
    }

    /// Notes that this has been written down.
    pub fn begin(&self, meant: String) {
        let mut all = lock(&self.untried);
        // Of objects that were deleted before they were tried: to forget one costs a word in an Event.
        if all.len() >= Self::KEPT {
            all.clear();
        }
        all.insert(meant);
    }

    /// Whether this is the first try, for certain. From now on none is.
    pub fn is_first_try(&self, meant: &str) -> bool {
        lock(&self.untried).remove(meant)
    }
}

/// The guard of a mutex. Nothing here panics while it holds one.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
