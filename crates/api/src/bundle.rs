//! The bundle: everything the sidecars of one namespace need to know, in one object.
//!
//! The operator compiles the classes of a namespace into it and stores it in the ConfigMap
//! [`BUNDLE_CONFIG_MAP`] under the key [`BUNDLE_KEY`]; `holdfast dev` compiles the same YAML to the
//! same type in memory. It holds no secret: every ServiceAccount of the namespace may read it.

use std::collections::BTreeMap;

use holdfast_core::{
    ClassName, Guarantee, Key, Kind, Substrate,
    election::ElectionConfig,
    lock::{LockConfig, redlock::majority},
    ratelimit::RateLimitConfig,
    semaphore::SemaphoreConfig,
    supports,
};
use serde::{Deserialize, Serialize};

/// The ConfigMap that carries the bundle, one per namespace.
pub const BUNDLE_CONFIG_MAP: &str = "holdfast-bundle";
/// The key of the bundle's JSON in the ConfigMap's data.
pub const BUNDLE_KEY: &str = "bundle.json";
/// The version of the format. A sidecar keeps its last good bundle when it meets a newer one.
pub const BUNDLE_FORMAT: u32 = 1;
/// The name of the built-in backend on Leases; no Backend object may have it.
pub const LEASE_BACKEND: &str = "lease";
/// The name of the built-in backend of `holdfast dev`.
pub const MEMORY_BACKEND: &str = "memory";

/// All classes of a namespace, and the backends they live on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// [`BUNDLE_FORMAT`].
    pub format: u32,
    /// The namespace.
    pub namespace: String,
    /// SHA-256 of everything else: two bundles are equal if their hashes are.
    pub hash: String,
    /// The classes, sorted by kind and name.
    pub classes: Vec<BundleClass>,
    /// The backends that the classes name, by name.
    pub backends: BTreeMap<String, BundleBackend>,
}

/// One class, validated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleClass {
    /// Its name.
    pub name: ClassName,
    /// The backend it lives on: a key of [`Bundle::backends`].
    pub backend: String,
    /// What it is configured to do.
    pub config: ClassConfig,
    /// Who may use it; empty for every ServiceAccount of the namespace.
    pub access: Vec<AccessRule>,
}

/// The configuration of a class, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClassConfig {
    /// A Lock.
    Lock(LockConfig),
    /// A LeaderElection.
    LeaderElection(ElectionConfig),
    /// A RateLimit.
    RateLimit(RateLimitConfig),
    /// A Semaphore.
    Semaphore(SemaphoreConfig),
}

impl ClassConfig {
    /// Which primitive this configures.
    pub const fn kind(&self) -> Kind {
        match self {
            ClassConfig::Lock(_) => Kind::Lock,
            ClassConfig::LeaderElection(_) => Kind::LeaderElection,
            ClassConfig::RateLimit(_) => Kind::RateLimit,
            ClassConfig::Semaphore(_) => Kind::Semaphore,
        }
    }

    /// The lock that its holds are of, on a substrate; `None` for a kind that has no holds.
    pub fn lock(&self, on: Substrate) -> Option<LockConfig> {
        match self {
            ClassConfig::Lock(config) => Some(config.clone()),
            ClassConfig::LeaderElection(config) => Some(config.lock(on)),
            ClassConfig::RateLimit(_) => None,
            ClassConfig::Semaphore(config) => Some(config.lock()),
        }
    }
}

/// Which ServiceAccounts may do what on which keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessRule {
    /// Names of ServiceAccounts of the class's namespace.
    pub service_accounts: Vec<String>,
    /// What they may do; empty for everything.
    pub verbs: Vec<Verb>,
    /// Only keys that start with this; empty for all.
    pub key_prefix: String,
}

/// What can be permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// Acquire, renew and release.
    Acquire,
    /// Query.
    Read,
    /// Take from another by force.
    ForceRelease,
}

/// A backend as the sidecar needs it. Credentials are files (see the sidecar's flags), never here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleBackend {
    /// What kind of store it is.
    pub substrate: Substrate,
    /// Where it is, when it is a Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisAddress>,
    /// The incarnation of its data, when it can lose some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// Whether sidecars may watch all Leases of the namespace, when that is what it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub share_watch: bool,
}

/// How to reach a Redis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisAddress {
    /// `host:port`, one for a standalone server; of the Sentinels, where they name the primary; of
    /// some servers of a cluster; of all servers, where a majority of them decides.
    pub addresses: Vec<String>,
    /// Whether it is a cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cluster: bool,
    /// What the Sentinels call the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master_name: Option<String>,
    /// Whether to use TLS.
    pub tls: bool,
    /// The PEM bundle of certificate authorities to trust; the system's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The database number.
    pub database: i64,
    /// Whether grants wait for replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<RedisAck>,
}

/// How many replicas must have a grant before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisAck {
    /// How many.
    pub replicas: u8,
    /// How long they may take.
    pub timeout_ms: u32,
}

/// An incarnation of a Redis's data, kept by the operator in etcd. See docs/guarantees.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Epoch {
    /// Grows whenever data may have been lost.
    pub number: u64,
    /// The `master_replid` it was opened for: a restart or a failover changes that. Empty where
    /// [`Epoch::runs`] says it of each server.
    pub replid: String,
    /// Whether the quarantine is over and grants may be made; of several servers, on one at least.
    pub open: bool,
    /// The servers, where there are several that can lose their data apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<EpochRun>,
}

/// The incarnation of one server's data, in an epoch of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochRun {
    /// The server: its node id in a cluster, else its address.
    pub server: String,
    /// The `master_replid` it is trusted under.
    pub replid: String,
    /// What the names of its markers end in; empty for the plain one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Whether its quarantine is over and grants may be made on it.
    pub open: bool,
}

impl Epoch {
    /// Whether grants may be made on a substrate: where a majority decides, on a majority.
    pub fn is_open_on(&self, substrate: Substrate) -> bool {
        let open = self.runs.iter().filter(|run| run.open).count();
        self.open && (substrate != Substrate::Redlock || open >= majority(self.runs.len()))
    }
}

/// Whether a ServiceAccount may do something on a key. No rules: everybody may.
pub fn permits(rules: &[AccessRule], account: &str, verb: Verb, key: &Key) -> bool {
    rules.is_empty()
        || rules.iter().any(|rule| {
            rule.service_accounts.iter().any(|name| name == account)
                && (rule.verbs.is_empty() || rule.verbs.contains(&verb))
                && key.as_str().starts_with(&rule.key_prefix)
        })
}

impl BundleBackend {
    /// One that needs no address.
    pub const fn of(substrate: Substrate) -> Self {
        BundleBackend { substrate, redis: None, epoch: None, share_watch: false }
    }

    /// What a class of a kind promises on it.
    ///
    /// # Errors
    /// A sentence for the user, when there is no such class.
    pub fn guarantee(&self, kind: Kind) -> Result<Guarantee, &'static str> {
        let ack = self.redis.as_ref().and_then(|redis| redis.ack);
        let servers = self.redis.as_ref().map(|redis| redis.addresses.len());
        Ok(match (supports(kind, self.substrate)?, ack) {
            (Guarantee::BestEffort, Some(ack)) => Guarantee::PrimaryAck(ack.replicas),
            (Guarantee::Majority(least), _) => {
                let of = servers.and_then(|servers| u8::try_from(servers).ok());
                Guarantee::Majority(of.unwrap_or(least))
            }
            (guarantee, _) => guarantee,
        })
    }
}

impl Bundle {
    /// The class of a kind and name.
    pub fn class(&self, kind: Kind, name: &str) -> Option<&BundleClass> {
        self.classes.iter().find(|class| class.config.kind() == kind && class.name.as_str() == name)
    }
}
