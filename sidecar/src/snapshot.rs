//! What the bundle says, in the form that requests need: read without locks, replaced whole.

use std::{collections::HashMap, sync::Arc};

use holdfast_api::{
    bundle::{AccessRule, Bundle, BundleBackend, ClassConfig},
    load::did_you_mean,
};
use holdfast_backend::waiter::LockClient;
use holdfast_core::{
    ClassName, Key, Kind,
    lock::{Keys, LockConfig},
    ratelimit::RateLimitBackend,
};
use holdfast_wire::Code;

pub use self::ratelimit::RateLimitClass;
use crate::{
    error::Failure,
    metrics::{ClassMetrics, Metrics},
};

mod ratelimit;

/// A Lock class, ready to serve.
pub struct LockClass {
    /// Its name.
    pub name: ClassName,
    /// The backend's name.
    pub backend: String,
    /// What its grants promise.
    pub guarantee: String,
    /// Its configuration.
    pub config: Arc<LockConfig>,
    /// The key of requests that name none.
    pub default_key: Key,
    /// Who may use it.
    pub access: Vec<AccessRule>,
    /// Where it lives.
    pub client: Arc<LockClient>,
    /// Its metrics.
    pub metrics: ClassMetrics,
}

/// The one key of a class with one, else `default`.
fn default_key(config: &LockConfig) -> Key {
    match &config.keys {
        Keys::Fixed(keys) if keys.len() == 1 => keys[0].clone(),
        Keys::Fixed(_) | Keys::Any => Key::default_key(),
    }
}

impl LockClass {
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
            "Lock \"{}\" has no key \"{key}\"{hint} Its keys are fixed by spec.keys: {shown}",
            self.name
        );
        Failure::new(Code::KeyNotAllowed, why)
    }
}

/// Everything the bundle declares.
#[derive(Default)]
pub struct Snapshot {
    /// The bundle's hash.
    pub hash: String,
    /// The Lock classes by name.
    pub locks: HashMap<String, Arc<LockClass>>,
    /// The RateLimit classes by name.
    pub rate_limits: HashMap<String, Arc<RateLimitClass>>,
}

/// Makes clients of backends. Implemented where the connections are made.
pub trait Connect: Send + Sync {
    /// The client of a backend, made at the first call for its name and address.
    ///
    /// # Errors
    /// A sentence, when this process cannot reach such a backend at all.
    fn locks(&self, name: &str, backend: &BundleBackend) -> Result<Arc<LockClient>, String>;

    /// The rate limits on a backend.
    ///
    /// # Errors
    /// As [`Connect::locks`].
    fn rate_limits(
        &self,
        name: &str,
        backend: &BundleBackend,
    ) -> Result<Arc<dyn RateLimitBackend>, String>;
}

impl Snapshot {
    /// A snapshot of a bundle. A class whose backend cannot be had is left out with a warning.
    pub fn new(bundle: &Bundle, connect: &dyn Connect, metrics: &Metrics) -> Self {
        let (mut locks, mut rate_limits) = (HashMap::new(), HashMap::new());
        for class in &bundle.classes {
            let Some(backend) = bundle.backends.get(&class.backend) else {
                tracing::warn!(class = %class.name, backend = class.backend, "no such backend");
                continue;
            };
            match &class.config {
                ClassConfig::RateLimit(config) => {
                    match connect.rate_limits(&class.backend, backend) {
                        Ok(client) => {
                            let class = RateLimitClass::new(class, config, client, metrics);
                            rate_limits.insert(class.name.to_string(), Arc::new(class));
                        }
                        Err(why) => tracing::warn!(class = %class.name, why, "class is not served"),
                    }
                }
                ClassConfig::Lock(config) => match connect.locks(&class.backend, backend) {
                    Ok(client) => {
                        let name = class.name.as_str();
                        let class = LockClass {
                            name: class.name.clone(),
                            backend: class.backend.clone(),
                            guarantee: client.backend().guarantee().to_string(),
                            default_key: default_key(config),
                            config: Arc::new(config.clone()),
                            access: class.access.clone(),
                            client,
                            metrics: metrics.class(Kind::Lock.name(), name),
                        };
                        locks.insert(class.name.to_string(), Arc::new(class));
                    }
                    Err(why) => tracing::warn!(class = %class.name, why, "class is not served"),
                },
            }
        }
        Snapshot { hash: bundle.hash.clone(), locks, rate_limits }
    }

    /// The Lock class of a name.
    ///
    /// # Errors
    /// 404, with the nearest name that there is.
    pub fn lock(&self, name: &str) -> Result<&Arc<LockClass>, Failure> {
        self.locks.get(name).ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            let hint = did_you_mean(&shown, self.locks.keys().map(String::as_str));
            Failure::new(Code::ClassNotFound, format!("there is no Lock \"{shown}\" here{hint}"))
        })
    }
}
