//! The Redis servers that Backends name: one administrator's connection and one observer's each,
//! made anew when the Backend says something else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_api::{
    bundle::Epoch,
    v1alpha1::{
        Backend,
        backend::{RedisMode, RedisSpec},
    },
};
use holdfast_backend::{
    hub::Hub,
    redis::{
        Credentials, KnownEpoch, KnownRun, RedisAdmin, RedisConfig, RedisLocks, RedisSemaphores,
        Redlocks, Sentinels,
    },
};
use holdfast_core::{
    Address, BackendError, ClassName, Key, Kind, SessionId, SystemClock,
    lock::{Consistency, Fairness, Keys, LockBackend, LockConfig, LockView},
    ratelimit::Policy,
};
use kube::ResourceExt;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::context::lock;

pub mod members;

/// Keys of a class that are looked at.
const KEYS: usize = 1_000;
/// Somebody may unload our library; loading one that is there does nothing.
const SEE_TO_LIBRARY: Duration = Duration::from_secs(30);

/// A Redis.
pub struct Store {
    spec: RedisSpec,
    /// How it is reached.
    pub config: RedisConfig,
    /// To look after it.
    pub admin: RedisAdmin,
    observer: Arc<dyn LockBackend>,
    /// `None` where semaphores cannot be.
    permits: Option<Arc<RedisSemaphores>>,
    credentials: Arc<Mutex<Credentials>>,
    /// The runs of servers that have our library, by the server's name.
    library_in: Mutex<HashMap<String, (String, Instant)>>,
    /// Connections to the servers of a store that has several, by address.
    nodes: Mutex<HashMap<String, Arc<RedisAdmin>>>,
    /// The servers that there were lately.
    members: Mutex<Option<members::Members>>,
    /// A look at a class may scan all names of the store: one at a time.
    looks: Semaphore,
}

/// All of them, by the name of their Backend.
#[derive(Default)]
pub struct Stores(Mutex<HashMap<String, Arc<Store>>>);

impl Stores {
    /// The store of a Backend.
    ///
    /// # Errors
    /// When its address cannot be used at all.
    pub fn get(&self, backend: &Backend) -> Result<Arc<Store>, BackendError> {
        let mut all = lock(&self.0);
        if let Some(there) = all.get(&backend.name_any())
            && there.spec == backend.spec.redis
        {
            return Ok(there.clone());
        }
        let store = Arc::new(Store::new(&backend.spec.redis)?);
        all.insert(backend.name_any(), store.clone());
        Ok(store)
    }

    /// Closes the connections to a store.
    pub fn forget(&self, backend: &str) {
        lock(&self.0).remove(backend);
    }
}

impl Store {
    fn new(spec: &RedisSpec) -> Result<Self, BackendError> {
        let address = spec.addresses.first().map_or("", String::as_str);
        let credentials = Arc::new(Mutex::new(Credentials::default()));
        let source = credentials.clone();
        let config = match &spec.sentinel {
            None if spec.mode == RedisMode::Cluster => RedisConfig::from_seeds(&spec.addresses),
            None => RedisConfig::new(address),
            Some(sentinel) => RedisConfig::from_sentinels(Sentinels {
                addresses: spec.addresses.clone(),
                master_name: sentinel.master_name.clone(),
            }),
        };
        let mut config = config
            .map_err(BackendError::Unavailable)?
            .with_database(i64::from(spec.database))
            .with_credentials(Arc::new(move || Ok(lock(&source).clone())));
        if let Some(tls) = &spec.tls {
            config = config.with_tls(tls.ca.clone().map(String::into_bytes));
        }
        let (_, no_epoch) = watch::channel(None);
        // Looking needs no epoch and no namespace of its own.
        let (session, hub) = (SessionId::random(), Hub::new());
        let (observer, permits): (Arc<dyn LockBackend>, _) = match spec.mode {
            RedisMode::Redlock => {
                let who = (session, hub, Arc::new(SystemClock) as _);
                (Redlocks::connect(&config, &spec.addresses, "", who, &no_epoch)?, None)
            }
            RedisMode::Standalone | RedisMode::Sentinel | RedisMode::Cluster => {
                let locks = RedisLocks::connect(config.clone(), "", session, hub, no_epoch)?;
                (locks.clone(), Some(RedisSemaphores::beside(locks)))
            }
        };
        Ok(Store {
            spec: spec.clone(),
            admin: RedisAdmin::connect(&config)?,
            config,
            permits,
            observer,
            credentials,
            library_in: Mutex::default(),
            nodes: Mutex::default(),
            members: Mutex::default(),
            looks: Semaphore::new(1),
        })
    }

    /// Uses other credentials from the next connection on.
    pub fn set_credentials(&self, credentials: Credentials) {
        *lock(&self.credentials) = credentials;
    }

    /// Sees to it that this run of a server has our function library.
    ///
    /// # Errors
    /// When the server does not answer, or does not let us.
    pub async fn ensure_library(
        &self,
        server: &str,
        admin: &RedisAdmin,
        run: &str,
    ) -> Result<(), BackendError> {
        let is_there = lock(&self.library_in)
            .get(server)
            .is_some_and(|(known, at)| known == run && at.elapsed() < SEE_TO_LIBRARY);
        if !is_there {
            admin.load_library().await?;
            let known = (run.to_owned(), Instant::now());
            lock(&self.library_in).insert(server.to_owned(), known);
        }
        Ok(())
    }

    /// The keys of a class that are held or waited for.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn look(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
        config: &LockConfig,
    ) -> Result<Vec<(Key, LockView)>, BackendError> {
        let _turn = self.looks.acquire().await;
        let observer: &dyn LockBackend = match kind {
            Kind::Semaphore => self.permits.as_deref().ok_or_else(|| {
                BackendError::NotFound("semaphores on a Backend of mode Redlock".into())
            })?,
            Kind::Lock | Kind::LeaderElection | Kind::RateLimit => &*self.observer,
        };
        let Keys::Fixed(keys) = &config.keys else {
            return observer.list(kind, namespace, class, config, KEYS).await;
        };
        let mut found = Vec::new();
        for key in keys {
            let at = Address {
                kind,
                namespace: namespace.into(),
                class: class.clone(),
                key: key.clone(),
            };
            let view = observer.query(&at, config).await?;
            if view.holder.is_some() || view.waiters > 0 {
                found.push((key.clone(), view));
            }
        }
        Ok(found)
    }

    /// How many keys of a rate limit are at a limit, among the first `at_most`.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn limited(
        &self,
        namespace: &str,
        class: &ClassName,
        policy: &Policy,
        at_most: usize,
    ) -> Result<u32, BackendError> {
        let _turn = self.looks.acquire().await;
        self.admin.limited(namespace, class, policy, at_most).await
    }

    /// Whether any key of a class is held: for how much longer at the least.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn held(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
    ) -> Result<Option<Duration>, BackendError> {
        let views = self.look(kind, namespace, class, &any_key()).await?;
        Ok(views.into_iter().filter_map(|(_, view)| Some(view.holder?.ttl)).min())
    }
}

/// An epoch, as the namespace's sidecars were told of it.
pub fn known_epoch(epoch: Epoch) -> KnownEpoch {
    let runs = epoch.runs.into_iter().map(|run| KnownRun {
        server: run.server,
        replid: run.replid,
        tags: run.tags,
        open: run.open,
    });
    let (number, replid, open) = (epoch.number, epoch.replid, epoch.open);
    KnownEpoch { number, replid, open, runs: runs.collect() }
}

/// A configuration that lets every key be looked at.
fn any_key() -> LockConfig {
    LockConfig {
        generation: 0,
        ttl_ms: 1_000,
        max_hold_ms: 0,
        min_hold_ms: 0,
        lock_delay_ms: 0,
        permits: 1,
        max_per_holder: 0,
        keys: Keys::Any,
        max_waiters: 0,
        fairness: Fairness::Fifo,
        consistency: Consistency::Strict,
        fence_floor: holdfast_core::Fence::new(0),
    }
}
