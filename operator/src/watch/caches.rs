//! The caches: all that the leader knows of the cluster. One may be behind what is true.

use std::{collections::BTreeSet, sync::Arc};

use holdfast_api::{
    bundle::BUNDLE_CONFIG_MAP,
    compile::Class,
    v1alpha1::{Backend, LeaderElection, Lock, RateLimit, Semaphore},
};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace},
        rbac::v1::{Role, RoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};

use super::triggers::Triggers;

/// The caches.
#[derive(Clone)]
pub struct Caches {
    /// Every Lock.
    pub locks: Store<Lock>,
    /// Every LeaderElection.
    pub elections: Store<LeaderElection>,
    /// Every Semaphore.
    pub semaphores: Store<Semaphore>,
    /// Every RateLimit.
    pub rate_limits: Store<RateLimit>,
    /// Every Backend.
    pub backends: Store<Backend>,
    /// Every namespace.
    pub namespaces: Store<Namespace>,
    /// Our Leases.
    pub leases: Store<Lease>,
    /// The bundles.
    pub bundles: Store<ConfigMap>,
    /// Our Roles.
    pub roles: Store<Role>,
    /// Our RoleBindings.
    pub bindings: Store<RoleBinding>,
}

impl Caches {
    /// Waits until every cache has all that there is.
    pub async fn complete(&self) -> anyhow::Result<()> {
        self.locks.wait_until_ready().await?;
        self.elections.wait_until_ready().await?;
        self.semaphores.wait_until_ready().await?;
        self.rate_limits.wait_until_ready().await?;
        self.backends.wait_until_ready().await?;
        self.namespaces.wait_until_ready().await?;
        self.leases.wait_until_ready().await?;
        self.bundles.wait_until_ready().await?;
        self.roles.wait_until_ready().await?;
        self.bindings.wait_until_ready().await?;
        Ok(())
    }

    /// The classes for which this holds.
    fn classes(&self, holds: impl Fn(&ObjectMeta, &str) -> bool) -> Vec<Class> {
        let locks = self.locks.state_filter(|lock| holds(lock.meta(), &lock.spec.backend));
        let elections = self.elections.state_filter(|one| holds(one.meta(), &one.spec.backend));
        let semaphores = self.semaphores.state_filter(|one| holds(one.meta(), &one.spec.backend));
        let limits = self.rate_limits.state_filter(|one| holds(one.meta(), &one.spec.backend));
        let locks = locks.iter().map(|lock| Class::Lock((**lock).clone()));
        let elections = elections.iter().map(|one| Class::LeaderElection((**one).clone()));
        let semaphores = semaphores.iter().map(|one| Class::Semaphore((**one).clone()));
        let limits = limits.iter().map(|one| Class::RateLimit((**one).clone()));
        locks.chain(elections).chain(semaphores).chain(limits).collect()
    }

    /// The classes of a namespace.
    pub fn classes_in(&self, namespace: &str) -> Vec<Class> {
        self.classes(|meta, _| meta.namespace.as_deref() == Some(namespace))
    }

    /// The classes on a backend.
    pub fn classes_on(&self, backend: &str) -> Vec<Class> {
        self.classes(|_, of| of == backend)
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.namespaces.get(&ObjectRef::new(name))
    }

    /// A Backend.
    pub fn backend(&self, name: &str) -> Option<Arc<Backend>> {
        self.backends.get(&ObjectRef::new(name))
    }

    /// The ConfigMap with a namespace's bundle.
    pub fn bundle(&self, namespace: &str) -> Option<Arc<ConfigMap>> {
        self.bundles.get(&ObjectRef::new(BUNDLE_CONFIG_MAP).within(namespace))
    }

    /// The namespaces that have classes on a backend.
    pub fn namespaces_on(&self, backend: &str) -> BTreeSet<String> {
        self.classes_on(backend).iter().map(Class::namespace).collect()
    }

    /// Everything that there is, once.
    pub fn trigger_all(&self, triggers: &Triggers) {
        for class in self.classes(|_, _| true) {
            triggers.class(class.kind(), &class.namespace(), &class.name());
            triggers.namespace(&class.namespace());
        }
        self.backends.state().iter().for_each(|backend| triggers.backend(&backend.name_any()));
        for bundle in self.bundles.state() {
            triggers.namespace(&bundle.namespace().unwrap_or_default());
        }
    }
}
