//! The substrates, as the operator uses them for pods: Leases through the leader's own client, each
//! Redis by one connection and one subscription per namespace with such pods.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_api::{
    bundle::{Bundle, BundleClass},
    v1alpha1::backend::{RedisMode, RedisSpec},
};
use holdfast_backend::{
    lease::LeaseSemaphores,
    redis::{Ack, KnownEpoch, RedisLocks, RedisSemaphores, Redlocks},
};
use holdfast_core::{Kind, Substrate, lock::LockBackend};
use tokio::sync::watch;

use super::Gates;
use crate::{
    context::{Context, lock},
    stores::known_epoch,
};

/// The Redis servers of namespaces with pods that hold.
#[derive(Default)]
pub struct Stores(Mutex<HashMap<(String, String), Made>>);

struct Made {
    spec: RedisSpec,
    epoch: watch::Sender<Option<KnownEpoch>>,
    kept: Kept,
}

/// What a Redis keeps.
#[derive(Clone)]
struct Kept {
    locks: Arc<dyn LockBackend>,
    /// A majority of servers has none.
    permits: Option<Arc<dyn LockBackend>>,
}

impl Stores {
    /// Where a class of a namespace's bundle lives, with the epoch of now.
    ///
    /// # Errors
    /// A sentence, when it cannot be reached at all.
    pub fn get(
        &self,
        gates: &Gates,
        bundle: &Bundle,
        class: &BundleClass,
    ) -> Result<Arc<dyn LockBackend>, String> {
        let (ctx, name) = (&gates.ctx, &class.backend);
        let there = bundle.backends.get(name);
        let is_of_permits = class.config.kind() == Kind::Semaphore;
        match there.map_or(Substrate::Lease, |backend| backend.substrate) {
            Substrate::Lease if is_of_permits => Ok(LeaseSemaphores::beside(&ctx.leases)),
            Substrate::Lease => Ok(ctx.leases.clone()),
            Substrate::Memory => Err("its backend is in the memory of each process".into()),
            Substrate::Redis | Substrate::Redlock => {
                let epoch = there.and_then(|backend| backend.epoch.clone()).map(known_epoch);
                let kept = self.redis(gates, &bundle.namespace, name, epoch)?;
                if !is_of_permits {
                    return Ok(kept.locks);
                }
                kept.permits.ok_or_else(|| "its backend keeps no permits".into())
            }
        }
    }

    fn redis(
        &self,
        gates: &Gates,
        namespace: &str,
        name: &str,
        epoch: Option<KnownEpoch>,
    ) -> Result<Kept, String> {
        let ctx: &Context = &gates.ctx;
        let backend = ctx.caches.backend(name);
        let backend = backend.ok_or_else(|| format!("there is no Backend \"{name}\" any more"))?;
        let spec = &backend.spec.redis;
        let key = (name.to_owned(), namespace.to_owned());
        let mut all = lock(&self.0);
        if let Some(made) = all.get(&key).filter(|made| made.spec == *spec) {
            made.epoch.send_if_modified(|known| {
                let changed = *known != epoch;
                *known = epoch;
                changed
            });
            return Ok(made.kept.clone());
        }
        // Connections for namespaces that are gone.
        all.retain(|(_, namespace), _| ctx.caches.namespace(namespace).is_some());
        let store = ctx.stores.get(&backend).map_err(|error| error.to_string())?;
        let config = store.config.clone().with_ack(spec.ack.map(|ack| Ack {
            replicas: ack.replicas,
            timeout: Duration::from_millis(ack.timeout_ms.into()),
        }));
        let (sender, receiver) = watch::channel(epoch);
        let (session, hub) = (gates.session.clone(), gates.hub.clone());
        let kept = if spec.mode == RedisMode::Redlock {
            let who = (session, hub, gates.clock.clone());
            let locks = Redlocks::connect(&config, &spec.addresses, namespace, who, &receiver);
            Kept { locks: locks.map_err(|error| error.to_string())?, permits: None }
        } else {
            let locks = RedisLocks::connect(config, namespace, session, hub, receiver);
            let locks = locks.map_err(|error| error.to_string())?;
            Kept { permits: Some(RedisSemaphores::beside(locks.clone())), locks }
        };
        all.insert(key, Made { spec: spec.clone(), epoch: sender, kept: kept.clone() });
        Ok(kept)
    }
}
