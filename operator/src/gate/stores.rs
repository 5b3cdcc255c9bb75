//! The substrates, as the operator uses them for pods: Leases through the leader's own client, each
//! Redis by one connection and one subscription per namespace with such pods.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_api::{
    bundle::{Bundle, BundleClass},
    v1alpha1::backend::RedisSpec,
};
use holdfast_backend::{
    hub::Hub,
    lease::LeaseSemaphores,
    redis::{Ack, KnownEpoch, RedisLocks, RedisSemaphores},
};
use holdfast_core::{Kind, SessionId, Substrate, lock::LockBackend};
use tokio::sync::watch;

use crate::context::{Context, lock};

/// The Redis servers of namespaces with pods that hold.
#[derive(Default)]
pub struct Stores(Mutex<HashMap<(String, String), Made>>);

struct Made {
    spec: RedisSpec,
    epoch: watch::Sender<Option<KnownEpoch>>,
    locks: Arc<RedisLocks>,
    permits: Arc<RedisSemaphores>,
}

impl Stores {
    /// Where a class of a namespace's bundle lives, with the epoch of now. Pushes to `session` go to
    /// `hub`.
    ///
    /// # Errors
    /// A sentence, when it cannot be reached at all.
    pub fn get(
        &self,
        ctx: &Context,
        bundle: &Bundle,
        class: &BundleClass,
        hub: &Arc<Hub>,
        session: &SessionId,
    ) -> Result<Arc<dyn LockBackend>, String> {
        let name = &class.backend;
        let there = bundle.backends.get(name);
        match there.map_or(Substrate::Lease, |backend| backend.substrate) {
            Substrate::Lease => Ok(match class.config.kind() {
                Kind::Semaphore => LeaseSemaphores::beside(&ctx.leases),
                Kind::Lock | Kind::LeaderElection | Kind::RateLimit => ctx.leases.clone(),
            }),
            Substrate::Memory => Err("its backend is in the memory of each process".into()),
            Substrate::Redis => {
                let epoch = there.and_then(|backend| backend.epoch.clone());
                let epoch = epoch.map(|epoch| KnownEpoch {
                    number: epoch.number,
                    replid: epoch.replid,
                    open: epoch.open,
                });
                let kind = class.config.kind();
                self.redis(ctx, &bundle.namespace, name, epoch, (hub, session)).map(|made| {
                    let (locks, permits) = made;
                    match kind {
                        Kind::Semaphore => permits as Arc<dyn LockBackend>,
                        Kind::Lock | Kind::LeaderElection | Kind::RateLimit => locks,
                    }
                })
            }
        }
    }

    fn redis(
        &self,
        ctx: &Context,
        namespace: &str,
        name: &str,
        epoch: Option<KnownEpoch>,
        (hub, session): (&Arc<Hub>, &SessionId),
    ) -> Result<(Arc<RedisLocks>, Arc<RedisSemaphores>), String> {
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
            return Ok((made.locks.clone(), made.permits.clone()));
        }
        // Connections for namespaces that are gone.
        all.retain(|(_, namespace), _| ctx.caches.namespace(namespace).is_some());
        let store = ctx.stores.get(&backend).map_err(|error| error.to_string())?;
        let config = store.config.clone().with_ack(spec.ack.map(|ack| Ack {
            replicas: ack.replicas,
            timeout: Duration::from_millis(ack.timeout_ms.into()),
        }));
        let (sender, receiver) = watch::channel(epoch);
        let locks = RedisLocks::connect(config, namespace, session.clone(), hub.clone(), receiver);
        let locks = locks.map_err(|error| error.to_string())?;
        let permits = RedisSemaphores::beside(locks.clone());
        let made = Made {
            spec: spec.clone(),
            epoch: sender,
            locks: locks.clone(),
            permits: permits.clone(),
        };
        all.insert(key, made);
        Ok((locks, permits))
    }
}
