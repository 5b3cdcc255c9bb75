//! What the leader sees of the cluster: one watch per kind into a cache, and who must be looked at
//! when something changes.
//!
//! - Nothing is reconciled before every cache is complete ([`Caches::complete`]): a decision to
//!   create or delete is never made on half a list.
//! - A cache may be behind. What is decided on it is written under a condition, or is the same again.
//! - Of ConfigMaps only bundles are seen, of Leases, Roles and RoleBindings only ours. Secrets are
//!   not watched at all.

use std::{collections::BTreeSet, convert::Infallible, fmt::Debug, hash::Hash, sync::Arc};

use futures::{Stream, StreamExt, channel::mpsc, future::BoxFuture};
use holdfast_api::{
    bundle::BUNDLE_CONFIG_MAP,
    compile::Class,
    names::{LABEL_CLASS, LABEL_KIND, LABEL_MANAGED},
    v1alpha1::{Backend, LeaderElection, Lock, Semaphore},
};
use holdfast_core::Kind;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Pod},
    rbac::v1::{Role, RoleBinding},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        controller::ReconcileRequest,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;

use crate::{
    admission::inject::INJECTED_LABEL, controllers::lock::sightings::Sightings,
    pipeline::Controlled,
};

/// How many objects a list asks for at once.
const PAGE: u32 = 500;

/// The caches.
#[derive(Clone)]
pub struct Caches {
    /// Every Lock.
    pub locks: Store<Lock>,
    /// Every LeaderElection.
    pub elections: Store<LeaderElection>,
    /// Every Semaphore.
    pub semaphores: Store<Semaphore>,
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

/// Where to say that something must be looked at. Saying it twice costs nothing.
#[derive(Clone)]
pub struct Triggers {
    locks: mpsc::UnboundedSender<ObjectRef<Lock>>,
    elections: mpsc::UnboundedSender<ObjectRef<LeaderElection>>,
    semaphores: mpsc::UnboundedSender<ObjectRef<Semaphore>>,
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
        let (backends, backends_queue) = mpsc::unbounded();
        let (namespaces, namespaces_queue) = mpsc::unbounded();
        let queues = Queues {
            locks: locks_queue,
            elections: elections_queue,
            semaphores: semaphores_queue,
            backends: backends_queue,
            namespaces: namespaces_queue,
        };
        (Triggers { locks, elections, semaphores, backends, namespaces }, queues)
    }

    /// Look at a class. A closed queue means that this replica no longer leads.
    pub fn class(&self, kind: Kind, namespace: &str, name: &str) {
        match kind {
            Kind::Lock => {
                let _ = self.locks.unbounded_send(ObjectRef::new(name).within(namespace));
            }
            // Nothing of it is reconciled yet: it exists in `holdfast dev` only.
            Kind::RateLimit => {}
            Kind::Semaphore => {
                let _ = self.semaphores.unbounded_send(ObjectRef::new(name).within(namespace));
            }
            Kind::LeaderElection => {
                let _ = self.elections.unbounded_send(ObjectRef::new(name).within(namespace));
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

impl Caches {
    /// Waits until every cache has all that there is.
    pub async fn complete(&self) -> anyhow::Result<()> {
        self.locks.wait_until_ready().await?;
        self.elections.wait_until_ready().await?;
        self.semaphores.wait_until_ready().await?;
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
        let of = |election: &LeaderElection| holds(election.meta(), &election.spec.backend);
        let elections = self.elections.state_filter(of);
        let locks = locks.iter().map(|lock| Class::Lock((**lock).clone()));
        let elections = elections.iter().map(|one| Class::LeaderElection((**one).clone()));
        let of = |semaphore: &Semaphore| holds(semaphore.meta(), &semaphore.spec.backend);
        let semaphores = self.semaphores.state_filter(of);
        let semaphores = semaphores.iter().map(|one| Class::Semaphore((**one).clone()));
        locks.chain(elections).chain(semaphores).collect()
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

/// What a watch tells.
enum Change<'a, K> {
    /// An object is there, new or changed.
    There(&'a K),
    /// An object is gone.
    Gone(&'a K),
    /// The list was read anew: anything may have changed.
    Anew,
}

/// Starts the watches. The futures run for ever; dropping them ends the watches.
pub fn start(
    client: &Client,
    triggers: &Triggers,
    sightings: &Arc<Sightings>,
    injected: &Arc<Injected>,
) -> (Caches, Vec<BoxFuture<'static, ()>>) {
    let (locks, locks_writer) = reflector::store();
    let (elections, elections_writer) = reflector::store();
    let (semaphores, semaphores_writer) = reflector::store();
    let (backends, backends_writer) = reflector::store();
    let (namespaces, namespaces_writer) = reflector::store();
    let (leases, leases_writer) = reflector::store();
    let (bundles, bundles_writer) = reflector::store();
    let (roles, roles_writer) = reflector::store();
    let (bindings, bindings_writer) = reflector::store();
    let caches = Caches {
        locks,
        elections,
        semaphores,
        backends,
        namespaces,
        leases,
        bundles,
        roles,
        bindings,
    };
    let all = || watcher::Config::default().page_size(PAGE);
    let ours = || all().labels(&format!("{LABEL_MANAGED}=true"));
    let bundle = all().fields(&format!("metadata.name={BUNDLE_CONFIG_MAP}"));
    let tell = Tell { caches: caches.clone(), to: triggers.clone() };
    let (t, s) = (tell.clone(), sightings.clone());
    let watches: Vec<BoxFuture<'static, ()>> = vec![
        follow(client, all(), locks_writer, on(&tell, Tell::class::<Lock>)),
        follow(client, all(), elections_writer, on(&tell, Tell::class::<LeaderElection>)),
        follow(client, all(), semaphores_writer, on(&tell, Tell::class::<Semaphore>)),
        follow(client, all(), backends_writer, on(&tell, Tell::backend)),
        follow(client, all(), namespaces_writer, on(&tell, Tell::namespace)),
        follow(client, ours(), leases_writer, move |change| t.lease(&s, &change)),
        follow(client, bundle, bundles_writer, on(&tell, Tell::bundle)),
        follow(client, ours(), roles_writer, on(&tell, Tell::access::<Role>)),
        follow(client, ours(), bindings_writer, on(&tell, Tell::access::<RoleBinding>)),
        Box::pin(follow_injected(client.clone(), triggers.clone(), injected.clone())),
    ];
    (caches, watches)
}

fn on<K>(tell: &Tell, with: fn(&Tell, &Change<'_, K>)) -> impl Fn(Change<'_, K>) + use<K> {
    let tell = tell.clone();
    move |change| with(&tell, &change)
}

/// Keeps one cache, and says what changed after the cache has it.
fn follow<K>(
    client: &Client,
    config: watcher::Config,
    writer: Writer<K>,
    on_change: impl Fn(Change<'_, K>) + Send + 'static,
) -> BoxFuture<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    let stream =
        watcher(Api::<K>::all(client.clone()), config).default_backoff().modify(|object| {
            // Nobody reads these, and they are most of an object.
            object.managed_fields_mut().clear();
        });
    Box::pin(reflector::reflector(writer, stream).for_each(move |event| {
        match event {
            Ok(watcher::Event::Apply(object)) => on_change(Change::There(&object)),
            Ok(watcher::Event::Delete(object)) => on_change(Change::Gone(&object)),
            // The cache is complete only at the end of the list.
            Ok(watcher::Event::InitDone) => on_change(Change::Anew),
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Err(error) => {
                let kind = K::kind(&());
                tracing::debug!(%error, %kind, "a watch was interrupted; it goes on");
            }
        }
        std::future::ready(())
    }))
}

/// Which objects a change concerns.
#[derive(Clone)]
struct Tell {
    caches: Caches,
    to: Triggers,
}

impl Tell {
    fn class<K: Controlled>(&self, change: &Change<'_, K>) {
        match change {
            Change::There(class) | Change::Gone(class) => {
                let namespace = class.namespace().unwrap_or_default();
                self.to.class(K::KIND, &namespace, &class.name_any());
                self.to.namespace(&namespace);
            }
            Change::Anew => self.caches.trigger_all(&self.to),
        }
    }

    fn backend(&self, change: &Change<'_, Backend>) {
        let name = match change {
            Change::There(backend) | Change::Gone(backend) => backend.name_any(),
            Change::Anew => return self.caches.trigger_all(&self.to),
        };
        self.to.backend(&name);
        // Also those that were told that there is no such Backend.
        for class in self.caches.classes_on(&name) {
            self.to.class(class.kind(), &class.namespace(), &class.name());
            self.to.namespace(&class.namespace());
        }
    }

    fn namespace(&self, change: &Change<'_, Namespace>) {
        match change {
            Change::There(namespace) => {
                // Labels decide which backends it may use; its end decides what is let go.
                self.to.namespace(&namespace.name_any());
                self.classes_of(&namespace.name_any());
            }
            Change::Gone(_) => {}
            Change::Anew => self.caches.trigger_all(&self.to),
        }
    }

    fn lease(&self, sightings: &Sightings, change: &Change<'_, Lease>) {
        match change {
            Change::There(lease) if !sightings.see(lease) => {}
            Change::There(lease) => {
                self.owner_of(lease.meta().namespace.as_deref(), lease.labels());
            }
            Change::Gone(lease) => {
                sightings.forget(lease);
                self.owner_of(lease.meta().namespace.as_deref(), lease.labels());
            }
            Change::Anew => {
                sightings.see_all(&self.caches.leases.state());
                self.caches.trigger_all(&self.to);
            }
        }
    }

    fn bundle(&self, change: &Change<'_, ConfigMap>) {
        match change {
            Change::There(bundle) | Change::Gone(bundle) => {
                let namespace = bundle.namespace().unwrap_or_default();
                self.to.namespace(&namespace);
                self.classes_of(&namespace);
            }
            Change::Anew => self.caches.trigger_all(&self.to),
        }
    }

    fn access<K: Resource<DynamicType = ()>>(&self, change: &Change<'_, K>) {
        match change {
            Change::There(object) | Change::Gone(object) => {
                self.to.namespace(&object.namespace().unwrap_or_default());
            }
            Change::Anew => self.caches.trigger_all(&self.to),
        }
    }

    fn classes_of(&self, namespace: &str) {
        for class in self.caches.classes_in(namespace) {
            self.to.class(class.kind(), namespace, &class.name());
        }
    }

    fn owner_of(
        &self,
        namespace: Option<&str>,
        labels: &std::collections::BTreeMap<String, String>,
    ) {
        let (Some(kind), Some(class)) = (labels.get(LABEL_KIND), labels.get(LABEL_CLASS)) else {
            return;
        };
        if let Some(kind) = Kind::ALL.iter().find(|known| known.singular() == kind) {
            self.to.class(*kind, namespace.unwrap_or_default(), class);
        }
    }
}

/// The namespaces in which sidecars are: those need a bundle even while nothing is declared, so that
/// a sidecar does not have to guess whether it may not read it or there is none.
#[derive(Default)]
pub struct Injected(std::sync::Mutex<BTreeSet<String>>);

impl Injected {
    /// Whether sidecars have been seen in a namespace.
    pub fn contains(&self, namespace: &str) -> bool {
        crate::context::lock(&self.0).contains(namespace)
    }
}

/// Learns where sidecars are, from the labels of pods only.
async fn follow_injected(client: Client, triggers: Triggers, injected: Arc<Injected>) {
    let config =
        watcher::Config::default().labels(&format!("{INJECTED_LABEL}=true")).page_size(PAGE);
    let pods = Api::<PartialObjectMeta<Pod>>::all(client);
    let pods = watcher(pods, config).default_backoff();
    pods.for_each(|event| {
        if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event {
            let namespace = pod.namespace().unwrap_or_default();
            if crate::context::lock(&injected.0).insert(namespace.clone()) {
                triggers.namespace(&namespace);
            }
        }
        std::future::ready(())
    })
    .await;
}
