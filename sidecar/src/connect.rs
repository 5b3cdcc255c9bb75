//! Clients of backends: made when a bundle first names one, kept while it says the same of it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_api::bundle::{BundleBackend, Epoch, EpochRun, RedisAddress};
use holdfast_backend::{
    hub::Hub,
    lease::{LeaseClient, LeaseLocks, LeaseSemaphores},
    limiter::Limiter,
    memory::{MemoryLocks, MemoryRateLimits, MemorySemaphores},
    redis::{
        Ack, CredentialSource, Credentials, KnownEpoch, KnownRun, LocalEpoch, RedisConfig,
        RedisLocks, RedisRateLimits, RedisSemaphores, Redlocks, Sentinels,
        client::Client as RedisClient,
    },
    waiter::LockClient,
};
use holdfast_core::{Clock, SessionId, Substrate, lock::LockBackend};
use tokio::sync::watch;

use crate::snapshot::Connect;

/// Makes clients for one session.
pub struct Backends {
    namespace: Arc<str>,
    session: SessionId,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    leases: Option<LeaseClient>,
    credentials: Option<PathBuf>,
    made: Mutex<HashMap<String, Made>>,
}

/// A client, and what it was made from.
struct Made {
    substrate: Substrate,
    redis: Option<RedisAddress>,
    epoch: Option<watch::Sender<Option<KnownEpoch>>>,
    locks: Arc<LockClient>,
    /// `None` where semaphores cannot be.
    semaphores: Option<Arc<LockClient>>,
    /// `None` where rate limits cannot be.
    rate_limits: Option<Arc<Limiter>>,
}

/// What one Redis keeps, over one connection.
struct OnRedis {
    locks: Arc<LockClient>,
    semaphores: Arc<LockClient>,
    limits: Arc<Limiter>,
}

impl Backends {
    /// No clients yet. Without `leases` there is no API server to reach; `credentials` is where the
    /// Redis credentials of the namespace are mounted.
    pub fn new(
        namespace: Arc<str>,
        session: SessionId,
        hub: Arc<Hub>,
        clock: Arc<dyn Clock>,
        leases: Option<LeaseClient>,
        credentials: Option<PathBuf>,
    ) -> Self {
        let made = Mutex::default();
        Backends { namespace, session, hub, clock, leases, credentials, made }
    }

    /// Keeps the epoch by this process itself: for a Redis that no operator looks after. The client
    /// is used for every class whose backend has this name.
    ///
    /// # Errors
    /// A sentence, when the URL cannot be used.
    pub fn adopt_redis(
        &self,
        name: &str,
        url: &str,
        quarantine: Duration,
    ) -> Result<LocalEpoch, String> {
        let config = RedisConfig::from_url(url)?;
        let epoch = LocalEpoch::start(config.clone(), &self.namespace, quarantine)
            .map_err(|error| error.to_string())?;
        let OnRedis { locks, semaphores, limits } = self.redis(config, epoch.known())?;
        let made = Made {
            substrate: Substrate::Redis,
            redis: None,
            epoch: None,
            locks,
            semaphores: Some(semaphores),
            rate_limits: Some(limits),
        };
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), made);
        Ok(epoch)
    }

    fn client(&self, backend: Arc<dyn LockBackend>) -> Arc<LockClient> {
        LockClient::new(backend, self.hub.clone(), self.clock.clone(), self.session.clone())
    }

    /// Locks, semaphores and rate limits of one Redis share one connection.
    fn redis(
        &self,
        config: RedisConfig,
        epoch: watch::Receiver<Option<KnownEpoch>>,
    ) -> Result<OnRedis, String> {
        let (session, hub) = (self.session.clone(), self.hub.clone());
        let shared = Arc::new(RedisClient::new(config));
        let locks = RedisLocks::with_client(shared.clone(), &self.namespace, session, hub, epoch)
            .map_err(|error| error.to_string())?;
        let limits = RedisRateLimits::with_client(shared, &self.namespace)
            .map_err(|error| error.to_string())?;
        let limits = Limiter::new(limits, self.clock.clone());
        let semaphores = self.client(RedisSemaphores::beside(locks.clone()));
        Ok(OnRedis { locks: self.client(locks), semaphores, limits })
    }

    fn make(&self, name: &str, backend: &BundleBackend) -> Result<Made, String> {
        let (substrate, redis, mut epoch) = (backend.substrate, backend.redis.clone(), None);
        let mut store = || {
            let address = redis.as_ref().ok_or("the bundle does not say where it is")?;
            let source = self.credentials.as_ref().map(|dir| read_credentials(dir, name));
            let (known, receiver) = watch::channel(mk_epoch(backend.epoch.as_ref()));
            epoch = Some(known);
            Ok::<_, String>((mk_config(address, source)?, address, receiver))
        };
        let (locks, semaphores, rate_limits) = match substrate {
            Substrate::Memory => {
                let limits = MemoryRateLimits::new(self.clock.clone());
                let semaphores = MemorySemaphores::new(self.hub.clone(), self.clock.clone());
                let locks = MemoryLocks::new(self.hub.clone(), self.clock.clone());
                let limits = Limiter::new(limits, self.clock.clone());
                (self.client(locks), Some(self.client(semaphores)), Some(limits))
            }
            Substrate::Lease => {
                let leases = self.leases.clone();
                let leases = leases.ok_or("there is no API server to reach from here")?;
                let locks = LeaseLocks::new(leases, self.hub.clone(), self.clock.clone());
                let semaphores = LeaseSemaphores::beside(&locks);
                (self.client(locks), Some(self.client(semaphores)), None)
            }
            Substrate::Redis => {
                let (config, _, known) = store()?;
                let OnRedis { locks, semaphores, limits } = self.redis(config, known)?;
                (locks, Some(semaphores), Some(limits))
            }
            Substrate::Redlock => {
                let (config, address, known) = store()?;
                let who = (self.session.clone(), self.hub.clone(), self.clock.clone());
                let (addresses, namespace) = (&address.addresses, &self.namespace);
                let locks = Redlocks::connect(&config, addresses, namespace, who, &known);
                (self.client(locks.map_err(|error| error.to_string())?), None, None)
            }
        };
        Ok(Made { substrate, redis, epoch, locks, semaphores, rate_limits })
    }
}

impl Connect for Backends {
    fn locks(&self, name: &str, backend: &BundleBackend) -> Result<Arc<LockClient>, String> {
        if let (Substrate::Lease, Some(leases)) = (backend.substrate, &self.leases) {
            leases.share_watches(backend.share_watch);
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match made.get(name) {
            Some(there) if there.substrate == backend.substrate && there.redis == backend.redis => {
                if let Some(sender) = &there.epoch {
                    sender.send_if_modified(|known| {
                        let next = mk_epoch(backend.epoch.as_ref());
                        let changed = *known != next;
                        *known = next;
                        changed
                    });
                }
                Ok(there.locks.clone())
            }
            // Another address: holds of the old client keep it until they end.
            _ => {
                let there = self.make(name, backend)?;
                let locks = there.locks.clone();
                made.insert(name.into(), there);
                Ok(locks)
            }
        }
    }

    fn semaphores(&self, name: &str, backend: &BundleBackend) -> Result<Arc<LockClient>, String> {
        self.locks(name, backend)?;
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let semaphores = made.get(name).and_then(|made| made.semaphores.clone());
        semaphores.ok_or_else(|| format!("backend \"{name}\" cannot keep semaphores"))
    }

    fn rate_limits(&self, name: &str, backend: &BundleBackend) -> Result<Arc<Limiter>, String> {
        self.locks(name, backend)?;
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let limits = made.get(name).and_then(|made| made.rate_limits.clone());
        limits.ok_or_else(|| format!("backend \"{name}\" cannot keep rate limits"))
    }
}

fn mk_epoch(epoch: Option<&Epoch>) -> Option<KnownEpoch> {
    epoch.map(|epoch| KnownEpoch {
        number: epoch.number,
        replid: epoch.replid.clone(),
        open: epoch.open,
        runs: epoch.runs.iter().map(mk_run).collect(),
    })
}

fn mk_run(run: &EpochRun) -> KnownRun {
    KnownRun {
        server: run.server.clone(),
        replid: run.replid.clone(),
        tags: run.tags.clone(),
        open: run.open,
    }
}

fn mk_config(
    address: &RedisAddress,
    credentials: Option<CredentialSource>,
) -> Result<RedisConfig, String> {
    let first = address.addresses.first().ok_or("the bundle names no address of it")?;
    let config = match &address.master_name {
        None if address.cluster => RedisConfig::from_seeds(&address.addresses)?,
        None => RedisConfig::new(first)?,
        Some(master_name) => RedisConfig::from_sentinels(Sentinels {
            addresses: address.addresses.clone(),
            master_name: master_name.clone(),
        })?,
    };
    let mut config = config.with_database(address.database);
    config = config.with_ack(address.ack.map(|ack| Ack {
        replicas: ack.replicas,
        timeout: Duration::from_millis(ack.timeout_ms.into()),
    }));
    if address.tls {
        config = config.with_tls(address.ca.clone().map(String::into_bytes));
    }
    Ok(match credentials {
        Some(source) => config.with_credentials(source),
        None => config,
    })
}

/// Reads `<backend>.username` and `<backend>.password` before each connection: the kubelet replaces
/// the files when the operator rotates them.
fn read_credentials(dir: &Path, backend: &str) -> CredentialSource {
    let file = |part: &str| dir.join(format!("{backend}.{part}"));
    let (username, password) = (file("username"), file("password"));
    Arc::new(move || {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map(|text| text.trim_end().to_owned()).map_err(|error| {
                let why = "the operator has not provided the credentials yet";
                format!("{why} ({}: {error})", path.display())
            })
        };
        Ok(Credentials { username: Some(read(&username)?), password: Some(read(&password)?) })
    })
}
