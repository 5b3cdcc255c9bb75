//! What the leader sees of the cluster: one watch per kind into a cache, and who must be looked at
//! when something changes.
//!
//! - Nothing is reconciled before every cache is complete ([`Caches::complete`]): a decision to
//!   create or delete is never made on half a list.
//! - A cache may be behind. What is decided on it is written under a condition, or is the same again.
//! - Of ConfigMaps only bundles are seen, of Leases, Roles and RoleBindings only ours. Secrets are
//!   not watched at all.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use futures::{StreamExt, future::BoxFuture};
use holdfast_api::{
    bundle::BUNDLE_CONFIG_MAP,
    names::{LABEL_CLASS, LABEL_KIND, LABEL_MANAGED},
    v1alpha1::{Backend, LeaderElection, Lock, RateLimit, Semaphore},
};
use holdfast_core::Kind;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace},
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, store::Writer},
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;

use crate::{controllers::lock::sightings::Sightings, pipeline::Controlled};

pub use caches::Caches;
pub use pods::Injected;
pub use triggers::{Queues, Triggers, requests};

mod caches;
mod pods;
mod triggers;

/// How many objects a list asks for at once.
const PAGE: u32 = 500;

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
    let (rate_limits, rate_limits_writer) = reflector::store();
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
        rate_limits,
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
        follow(client, all(), rate_limits_writer, on(&tell, Tell::class::<RateLimit>)),
        follow(client, all(), semaphores_writer, on(&tell, Tell::class::<Semaphore>)),
        follow(client, all(), backends_writer, on(&tell, Tell::backend)),
        follow(client, all(), namespaces_writer, on(&tell, Tell::namespace)),
        follow(client, ours(), leases_writer, move |change| t.lease(&s, &change)),
        follow(client, bundle, bundles_writer, on(&tell, Tell::bundle)),
        follow(client, ours(), roles_writer, on(&tell, Tell::access::<Role>)),
        follow(client, ours(), bindings_writer, on(&tell, Tell::access::<RoleBinding>)),
        Box::pin(pods::follow(client.clone(), triggers.clone(), injected.clone())),
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
