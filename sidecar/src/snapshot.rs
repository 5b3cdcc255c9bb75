//! What the bundle says, in the form that requests need: read without locks, replaced whole.

use std::{collections::HashMap, sync::Arc, time::Duration};

use foldhash::fast::RandomState;
use holdfast_api::{
    bundle::{AccessRule, Bundle, BundleBackend, BundleClass, ClassConfig},
    load::did_you_mean,
};
use holdfast_backend::{limiter::Limiter, waiter::LockClient};
use holdfast_core::{
    Address, ClassName, Holder, Key, Kind,
    lock::{Keys, LockConfig},
};
use holdfast_wire::Code;

pub use self::ratelimit::RateLimitClass;
use crate::{
    error::Failure,
    metrics::{ClassMetrics, Metrics},
};

mod ratelimit;

/// A class whose holds are locks, ready to serve.
pub struct LockClass {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ClassName,
    /// The backend's name.
    pub backend: String,
    /// What its grants promise.
    pub guarantee: String,
    /// Its configuration.
    pub config: Arc<LockConfig>,
    /// How long after its last renewal a hold of it is trusted at most, however long the store keeps
    /// it; `None` where its time to live decides alone.
    pub renew_deadline: Option<Duration>,
    /// The key of requests that name none.
    pub default_key: Key,
    /// Who may use it.
    pub access: Vec<AccessRule>,
    /// Where it lives.
    pub client: Arc<LockClient>,
    /// Its metrics.
    pub metrics: ClassMetrics,
}

/// A LeaderElection class, ready to serve.
pub struct ElectionClass {
    /// What a term is a hold of.
    pub term: Arc<LockClass>,
    /// How long to stand back after a resignation.
    pub retry: Duration,
    /// The pod that is to lead, if one is named.
    pub transfer_to: Option<Holder>,
}

/// The one key of a class with one, else `default`.
fn default_key(config: &LockConfig) -> Key {
    match &config.keys {
        Keys::Fixed(keys) if keys.len() == 1 => keys[0].clone(),
        Keys::Fixed(_) | Keys::Any => Key::default_key(),
    }
}

impl LockClass {
    /// `None`, with a warning, when its backend cannot be had.
    fn of(
        class: &BundleClass,
        backend: &BundleBackend,
        connect: &dyn Connect,
        metrics: &Metrics,
    ) -> Option<Arc<Self>> {
        let client = match class.config.kind() {
            Kind::Semaphore => connect.semaphores(&class.backend, backend),
            Kind::Lock | Kind::LeaderElection | Kind::RateLimit => {
                connect.locks(&class.backend, backend)
            }
        };
        let unserved =
            |why: &String| tracing::warn!(class = %class.name, why, "class is not served");
        let client = client.inspect_err(unserved).ok()?;
        let kind = class.config.kind();
        let config = class.config.lock(client.backend().substrate())?;
        let renew_deadline = match &class.config {
            ClassConfig::LeaderElection(election) => Some(election.renew_deadline()),
            ClassConfig::Lock(_) | ClassConfig::Semaphore(_) | ClassConfig::RateLimit(_) => None,
        };
        Some(Arc::new(LockClass {
            kind,
            name: class.name.clone(),
            backend: class.backend.clone(),
            guarantee: client.backend().guarantee().to_string(),
            renew_deadline,
            default_key: default_key(&config),
            config: Arc::new(config),
            access: class.access.clone(),
            client,
            metrics: metrics.class(kind.name(), class.name.as_str()),
        }))
    }

    /// 422, with the keys that there are.
    pub fn no_such_key(&self, key: &Key) -> Failure {
        let known: Vec<&str> = match &self.config.keys {
            Keys::Fixed(keys) => keys.iter().map(Key::as_str).collect(),
            Keys::Any => Vec::new(),
        };
        let mut hint = did_you_mean(key.as_str(), known.iter().copied());
        if hint.is_empty() {
            hint.push('.');
        }
        let shown: String = known.join(", ").chars().take(200).collect();
        let why = format!(
            "{} \"{}\" has no key \"{key}\"{hint} Its keys are fixed by spec.keys: {shown}",
            self.kind, self.name
        );
        Failure::new(Code::KeyNotAllowed, why)
    }
}

/// Classes of one kind. Only the bundle adds to them: the hash need not withstand what requests name.
pub type ByName<T> = HashMap<String, Arc<T>, RandomState>;

/// Everything the bundle declares.
#[derive(Default)]
pub struct Snapshot {
    /// The bundle's hash.
    pub hash: String,
    /// The Lock classes by name.
    pub locks: ByName<LockClass>,
    /// The LeaderElection classes by name.
    pub elections: ByName<ElectionClass>,
    /// The Semaphore classes by name.
    pub semaphores: ByName<LockClass>,
    /// The RateLimit classes by name.
    pub rate_limits: ByName<RateLimitClass>,
}

/// Makes clients of backends. Implemented where the connections are made.
pub trait Connect: Send + Sync {
    /// The client of a backend, made at the first call for its name and address.
    ///
    /// # Errors
    /// A sentence, when this process cannot reach such a backend at all.
    fn locks(&self, name: &str, backend: &BundleBackend) -> Result<Arc<LockClient>, String>;

    /// As [`Connect::locks`], for the semaphores on a backend.
    ///
    /// # Errors
    /// As [`Connect::locks`].
    fn semaphores(&self, name: &str, backend: &BundleBackend) -> Result<Arc<LockClient>, String>;

    /// The rate limits on a backend.
    ///
    /// # Errors
    /// As [`Connect::locks`].
    fn rate_limits(&self, name: &str, backend: &BundleBackend) -> Result<Arc<Limiter>, String>;
}

impl Snapshot {
    /// A snapshot of a bundle. A class whose backend cannot be had is left out with a warning.
    pub fn new(bundle: &Bundle, connect: &dyn Connect, metrics: &Metrics) -> Self {
        let mut snapshot = Snapshot { hash: bundle.hash.clone(), ..Snapshot::default() };
        for class in &bundle.classes {
            let Some(backend) = bundle.backends.get(&class.backend) else {
                tracing::warn!(class = %class.name, backend = class.backend, "no such backend");
                continue;
            };
            match &class.config {
                ClassConfig::Lock(_) => {
                    if let Some(lock) = LockClass::of(class, backend, connect, metrics) {
                        snapshot.locks.insert(class.name.to_string(), lock);
                    }
                }
                ClassConfig::Semaphore(_) => {
                    if let Some(semaphore) = LockClass::of(class, backend, connect, metrics) {
                        snapshot.semaphores.insert(class.name.to_string(), semaphore);
                    }
                }
                ClassConfig::LeaderElection(config) => {
                    if let Some(term) = LockClass::of(class, backend, connect, metrics) {
                        let retry = Duration::from_millis(config.retry_period_ms);
                        let transfer_to = config.transfer_to.clone();
                        let election = Arc::new(ElectionClass { term, retry, transfer_to });
                        snapshot.elections.insert(class.name.to_string(), election);
                    }
                }
                ClassConfig::RateLimit(config) => {
                    match connect.rate_limits(&class.backend, backend) {
                        Ok(client) => {
                            let limit = RateLimitClass::new(class, config, client, metrics);
                            snapshot.rate_limits.insert(class.name.to_string(), Arc::new(limit));
                        }
                        Err(why) => tracing::warn!(class = %class.name, why, "class is not served"),
                    }
                }
            }
        }
        snapshot
    }

    /// Every class whose holds are locks, of whatever kind.
    pub fn classes(&self) -> impl Iterator<Item = &Arc<LockClass>> {
        let terms = self.elections.values().map(|election| &election.term);
        self.locks.values().chain(terms).chain(self.semaphores.values())
    }

    /// The class that the holds at an address belong to.
    pub fn class_of(&self, at: &Address) -> Option<&Arc<LockClass>> {
        match at.kind {
            Kind::Lock => self.locks.get(at.class.as_str()),
            Kind::LeaderElection => self.elections.get(at.class.as_str()).map(|class| &class.term),
            Kind::Semaphore => self.semaphores.get(at.class.as_str()),
            Kind::RateLimit => None,
        }
    }

    /// The Lock class of a name.
    ///
    /// # Errors
    /// 404, with the nearest name that there is.
    pub fn lock(&self, name: &str) -> Result<&Arc<LockClass>, Failure> {
        self.locks.get(name).ok_or_else(|| no_such(Kind::Lock, name, self.locks.keys()))
    }

    /// The Semaphore class of a name.
    ///
    /// # Errors
    /// 404, with the nearest name that there is.
    pub fn semaphore(&self, name: &str) -> Result<&Arc<LockClass>, Failure> {
        let there = self.semaphores.get(name);
        there.ok_or_else(|| no_such(Kind::Semaphore, name, self.semaphores.keys()))
    }

    /// The LeaderElection class of a name.
    ///
    /// # Errors
    /// 404, with the nearest name that there is.
    pub fn election(&self, name: &str) -> Result<&Arc<ElectionClass>, Failure> {
        let there = self.elections.get(name);
        there.ok_or_else(|| no_such(Kind::LeaderElection, name, self.elections.keys()))
    }
}

fn no_such<'a>(kind: Kind, name: &str, known: impl Iterator<Item = &'a String>) -> Failure {
    let shown: String = name.chars().take(64).collect();
    let hint = did_you_mean(&shown, known.map(String::as_str));
    Failure::new(Code::ClassNotFound, format!("there is no {kind} \"{shown}\" here{hint}"))
}
