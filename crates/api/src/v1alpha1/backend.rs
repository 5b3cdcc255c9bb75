//! Backend: a Redis or Valkey that classes may live on.

use std::collections::BTreeMap;

use holdfast_core::Substrate;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A store for classes, named by their `spec.backend`. The backend `lease` needs no object.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "holdfast.dev",
    version = "v1alpha1",
    kind = "Backend",
    plural = "backends",
    shortname = "hfb",
    category = "holdfast",
    status = "BackendStatus",
    derive = "PartialEq",
    doc = "A Redis or Valkey that classes may live on, named by their spec.backend. The backend `lease` needs no object.",
    printcolumn(json_path = r#".status.conditions[?(@.type=="Ready")].status"#, name = "Ready", type_ = "string"),
    printcolumn(json_path = ".spec.redis.mode", name = "Mode", type_ = "string"),
    printcolumn(json_path = ".status.version", name = "Version", type_ = "string"),
    printcolumn(json_path = ".status.epoch.number", name = "Epoch", type_ = "integer"),
    printcolumn(json_path = r#".status.conditions[?(@.type=="EvictionSafe")].status"#, name = "EvictionSafe", type_ = "string"),
    printcolumn(json_path = r#".status.conditions[?(@.type=="Persistent")].status"#, name = "Persistent", type_ = "string"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    validation = Rule::new("!(self.metadata.name in ['lease', 'memory'])")
        .message("the names lease and memory are taken: they are built in"),
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("metadata.name must have at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct BackendSpec {
    /// The Redis or Valkey.
    pub redis: RedisSpec,
    /// Which namespaces may use it, by their labels. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<NamespaceSelector>,
}

/// How to reach a Redis or Valkey, 6.2 or later.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'Cluster' || !has(self.ack)")
        .message("mode Cluster has no ack: leave it out, or use Standalone or Sentinel"),
    validation = Rule::new("self.mode != 'Cluster' || self.database == 0")
        .message("a cluster has one database only: database must be 0"),
    validation = Rule::new("(self.mode == 'Sentinel') == has(self.sentinel)")
        .message("mode Sentinel needs sentinel.masterName, and only it has one"),
    validation = Rule::new("self.mode != 'Standalone' || self.addresses.size() == 1")
        .message("mode Standalone has exactly one address"),
    validation = Rule::new("self.mode != 'Redlock' || self.addresses.size() in [3, 5]")
        .message("mode Redlock has 3 or 5 addresses, of servers that know nothing of each other"),
    validation = Rule::new("self.mode != 'Redlock' || self.addresses.all(a, self.addresses.exists_one(b, b == a))")
        .message("mode Redlock needs different servers: an address is there twice"),
    validation = Rule::new("self.mode != 'Redlock' || !has(self.ack)")
        .message("mode Redlock has no ack: a majority of its servers has every grant")
)]
pub struct RedisSpec {
    /// `Standalone`: one server. `Sentinel`: the primary that Sentinels name. `Cluster`: a Redis
    /// Cluster, from Redis 7. `Redlock`: a majority of 3 or 5 servers that know nothing of each other;
    /// it keeps Locks only, without an order among those who wait.
    #[serde(default)]
    pub mode: RedisMode,
    /// `host:port` of the server; in mode Sentinel those of the Sentinels, as many as there are; in
    /// mode Cluster those of some servers, which tell of the others; in mode Redlock those of all.
    #[schemars(length(min = 1, max = 16), inner(length(min = 3, max = 261)))]
    pub addresses: Vec<String>,
    /// What the Sentinels watch; in mode Sentinel only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<SentinelSpec>,
    /// The database number.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1023))]
    pub database: u16,
    /// How to encrypt; absent: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// A Secret with `username` and `password` of a user that may administrate: it loads the
    /// function library and makes a user per namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
    /// Grants wait until replicas have acknowledged them; absent: until the primary has made them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<AckSpec>,
    /// `PerNamespaceUser` makes an ACL user per namespace, bound to its keys; `Shared` gives every
    /// sidecar the credentials of `credentialsSecretRef`'s user.
    #[serde(default)]
    pub tenancy: Tenancy,
}

/// What Sentinels watch. They must be reachable without a user, and name servers by addresses that
/// pods can reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SentinelSpec {
    /// The name that their configuration gives to the primary.
    #[schemars(length(min = 1, max = 253))]
    pub master_name: String,
}

/// How many replicas must have a grant before it is answered. A grant that fewer have is undone and
/// refused. It narrows what a failover can lose; it does not make it nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AckSpec {
    /// How many replicas.
    #[schemars(range(min = 1, max = 8))]
    pub replicas: u8,
    /// How long they may take, in milliseconds.
    #[serde(default = "default_ack_timeout_ms")]
    #[schemars(range(min = 10, max = 5000))]
    pub timeout_ms: u32,
}

const fn default_ack_timeout_ms() -> u32 {
    500
}

/// Encryption.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// PEM certificates of the authorities to trust. Absent: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// A Secret in a namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name, in the operator's own namespace: the operator reads Secrets nowhere else.
    pub name: String,
}

/// How the servers are arranged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RedisMode {
    /// One server.
    #[default]
    Standalone,
    /// A primary that Sentinels name.
    Sentinel,
    /// A sharded cluster.
    Cluster,
    /// Independent servers and a majority.
    Redlock,
}

impl RedisMode {
    /// What keeps the state of a class on servers that are arranged so.
    pub const fn substrate(self) -> Substrate {
        match self {
            RedisMode::Standalone | RedisMode::Sentinel | RedisMode::Cluster => Substrate::Redis,
            RedisMode::Redlock => Substrate::Redlock,
        }
    }

    /// Whether there are several servers that can lose their data apart.
    pub const fn has_several_servers(self) -> bool {
        match self {
            RedisMode::Standalone | RedisMode::Sentinel => false,
            RedisMode::Cluster | RedisMode::Redlock => true,
        }
    }
}

/// How namespaces are kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Tenancy {
    /// One ACL user per namespace.
    #[default]
    PerNamespaceUser,
    /// One user for all.
    Shared,
}

/// Namespaces by label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSelector {
    /// Labels that a namespace must have.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready` first, then what makes locks unsafe: `EvictionSafe`, `Persistent`, `Replicated`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// The server's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The server's role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The incarnation of its data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<EpochStatus>,
    /// For how many seconds a hold on it may still be believed in: the longest time to live of its
    /// classes, now or a moment ago. A quarantine is as long, and a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_ttl_seconds: Option<u64>,
}

/// The incarnation of a store's data. Fences of a later one are higher than any of an earlier one.
#[derive(Clone, Debug, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochStatus {
    /// Grows whenever data may have been lost.
    pub number: u64,
    /// The replication id it was opened for; empty where `runs` says it of each server.
    pub replid: String,
    /// When grants may be made again: the holds of the epoch before have run out by then. Of several
    /// servers, the last one to be opened.
    pub not_before: Time,
    /// Whether it has been opened; of several servers, at least one.
    #[serde(default)]
    pub open: bool,
    /// The servers, where there are several that can lose their data apart: the primaries of a
    /// cluster, the servers of a Redlock. All share one number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["server".to_string()]))]
    pub runs: Vec<RunStatus>,
}

/// The incarnation of one server's data, in an epoch of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunStatus {
    /// The server: its node id in a cluster, else its address.
    pub server: String,
    /// The replication id it is trusted under.
    pub replid: String,
    /// What the names of its markers end in: hash tags, one of a slot each that is on the server.
    /// Empty for the one marker of a server without slots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// When grants may be made on it again.
    pub not_before: Time,
    /// Whether it has been opened.
    #[serde(default)]
    pub open: bool,
}
