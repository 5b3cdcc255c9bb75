//! Who must be looked at: a queue per controller.

use std::convert::Infallible;

use futures::{Stream, StreamExt, channel::mpsc};
use holdfast_api::v1alpha1::{Backend, LeaderElection, Lock, RateLimit, Semaphore};
use holdfast_core::Kind;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Resource,
    runtime::{controller::ReconcileRequest, reflector::ObjectRef},
};

/// Where to say that something must be looked at. Saying it twice costs nothing.
#[derive(Clone)]
pub struct Triggers {
    locks: mpsc::UnboundedSender<ObjectRef<Lock>>,
    elections: mpsc::UnboundedSender<ObjectRef<LeaderElection>>,
    semaphores: mpsc::UnboundedSender<ObjectRef<Semaphore>>,
    rate_limits: mpsc::UnboundedSender<ObjectRef<RateLimit>>,
    backends: mpsc::UnboundedSender<ObjectRef<Backend>>,
    namespaces: mpsc::UnboundedSender<ObjectRef<Namespace>>,
}

/// What must be looked at, for each controller.
pub struct Queues {
    /// Locks.
    pub locks: mpsc::UnboundedReceiver<ObjectRef<Lock>>,
    /// LeaderElections.
    pub elections: mpsc::UnboundedReceiver<ObjectRef<LeaderElection>>,
    /// Semaphores.
    pub semaphores: mpsc::UnboundedReceiver<ObjectRef<Semaphore>>,
    /// RateLimits.
    pub rate_limits: mpsc::UnboundedReceiver<ObjectRef<RateLimit>>,
    /// Backends.
    pub backends: mpsc::UnboundedReceiver<ObjectRef<Backend>>,
    /// Namespaces.
    pub namespaces: mpsc::UnboundedReceiver<ObjectRef<Namespace>>,
}

/// A queue in the form that kube's applier wants.
pub fn requests<K>(
    queue: mpsc::UnboundedReceiver<ObjectRef<K>>,
) -> impl Stream<Item = Result<ReconcileRequest<K>, Infallible>>
where
    K: Resource<DynamicType = ()>,
{
    queue.map(|object| Ok(ReconcileRequest::from(object)))
}

impl Triggers {
    /// The triggers and the queues behind them.
    pub fn new() -> (Triggers, Queues) {
        let (locks, locks_queue) = mpsc::unbounded();
        let (elections, elections_queue) = mpsc::unbounded();
        let (semaphores, semaphores_queue) = mpsc::unbounded();
        let (rate_limits, rate_limits_queue) = mpsc::unbounded();
        let (backends, backends_queue) = mpsc::unbounded();
        let (namespaces, namespaces_queue) = mpsc::unbounded();
        let queues = Queues {
            locks: locks_queue,
            elections: elections_queue,
            semaphores: semaphores_queue,
            rate_limits: rate_limits_queue,
            backends: backends_queue,
            namespaces: namespaces_queue,
        };
        (Triggers { locks, elections, semaphores, rate_limits, backends, namespaces }, queues)
    }

    /// Look at a class. A closed queue means that this replica no longer leads.
    pub fn class(&self, kind: Kind, namespace: &str, name: &str) {
        match kind {
            Kind::Lock => {
                let _ = self.locks.unbounded_send(ObjectRef::new(name).within(namespace));
            }
            Kind::LeaderElection => {
                let _ = self.elections.unbounded_send(ObjectRef::new(name).within(namespace));
            }
            Kind::Semaphore => {
                let _ = self.semaphores.unbounded_send(ObjectRef::new(name).within(namespace));
            }
            Kind::RateLimit => {
                let _ = self.rate_limits.unbounded_send(ObjectRef::new(name).within(namespace));
            }
        }
    }

    /// Look at a Backend.
    pub fn backend(&self, name: &str) {
        let _ = self.backends.unbounded_send(ObjectRef::new(name));
    }

    /// Look at a namespace: its bundle, Roles and users.
    pub fn namespace(&self, name: &str) {
        let _ = self.namespaces.unbounded_send(ObjectRef::new(name));
    }
}
