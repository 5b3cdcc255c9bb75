//! The operator's side of a store: what it is, its library, epoch markers, and the end of a class.
//! Users are in [`users`](super::users).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use holdfast_core::{BackendError, ClassName, Kind};
use redis::Value;

use super::{
    client::Client, config::RedisConfig, keys, reply::unexpected, request::library_load,
    scripts::Scripts, slots::slot_of, topology::Topology,
};

/// Names that one round of a purge looks at.
const SCAN_COUNT: usize = 1_000;
/// Names that one script of a purge deletes, so that no script is slow.
const PURGE_AT_ONCE: usize = 200;
/// How often a purge looks again until it finds nothing.
const PURGE_ROUNDS: usize = 5;

/// Deletes names and returns the highest fence sequence of the records among them: in one step, so
/// that no grant falls between reading and deleting.
const PURGE: &str = "\
local top = 0
for _, key in ipairs(KEYS) do
  if string.sub(key, -2) == ARGV[1] then
    local seq = string.match(redis.call('GET', key) or '', '^%d+ %d+ (%d+) ')
    top = math.max(top, tonumber(seq or 0))
  end
  redis.call('UNLINK', key)
end
return top";

/// What a store is, as far as the safety of locks goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// `7.0.15`; of Valkey, Valkey's own.
    pub version: String,
    /// Whether it is Valkey.
    pub valkey: bool,
    /// `master` or `slave`.
    pub role: String,
    /// Names the primary's run: another one means a restart or a failover.
    pub replid: String,
    /// The run of the primary that it was a replica of, if it was.
    pub took_over: Option<String>,
    /// `noeviction` is the only one that keeps holds and fences.
    pub maxmemory_policy: String,
    /// Whether a restart keeps what was written (append-only file).
    pub aof_enabled: bool,
    /// How many replicas follow.
    pub connected_replicas: u32,
    /// Whether it is part of a cluster.
    pub cluster_enabled: bool,
}

/// A cluster as one of its servers sees it.
#[derive(Clone, Debug)]
pub struct ClusterView {
    /// The servers.
    pub topology: Topology,
    /// Whether it is served at all: every slot has a primary, and most primaries are in touch.
    pub is_ok: bool,
    /// The cluster's own epoch: of two views the higher one is the newer.
    pub epoch: u64,
}

/// A store with the rights to look after it.
pub struct RedisAdmin {
    pub(super) client: Arc<Client>,
}

impl RedisAdmin {
    /// Looks after the store at `config`; connects when first used, and again when it must.
    ///
    /// # Errors
    /// When the configuration cannot be used at all.
    pub fn connect(config: &RedisConfig) -> Result<Self, BackendError> {
        config.open()?;
        Ok(RedisAdmin { client: Arc::new(Client::new(config.clone())) })
    }

    /// Asks the store what it is.
    ///
    /// # Errors
    /// Those of [`Client::run`]; so do the others here.
    pub async fn probe(&self) -> Result<Probe, BackendError> {
        let mut info = HashMap::new();
        for name in ["server", "replication", "memory", "persistence", "cluster"] {
            info.extend(section(&self.client, name).await?);
        }
        let text = |name: &str| info.get(name).cloned().unwrap_or_default();
        let valkey = info.get("server_name").is_some_and(|name| name == "valkey");
        Ok(Probe {
            version: text(if valkey { "valkey_version" } else { "redis_version" }),
            valkey,
            role: text("role"),
            replid: replication_field(&info)?,
            // Redis writes zeros where there was none.
            took_over: info
                .get("master_replid2")
                .filter(|id| id.chars().any(|digit| digit != '0'))
                .cloned(),
            maxmemory_policy: text("maxmemory_policy"),
            aof_enabled: text("aof_enabled") == "1",
            connected_replicas: text("connected_slaves").parse().unwrap_or(0),
            cluster_enabled: text("cluster_enabled") == "1",
        })
    }

    /// The cluster that the server is part of, as it sees it.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`]; an error of the server when it is part of none.
    pub async fn cluster(&self, address: &str) -> Result<ClusterView, BackendError> {
        let ask = async |what: &str| -> Result<Value, BackendError> {
            self.client.run(redis::cmd("CLUSTER").arg(what)).await
        };
        let topology = Topology::from_slots(ask("SLOTS").await?, address)?;
        let text = |value| redis::from_redis_value::<String>(value).map_err(unexpected);
        let info = pairs(&text(ask("INFO").await?)?);
        let epoch = info.get("cluster_current_epoch").and_then(|epoch| epoch.parse().ok());
        let is_ok = info.get("cluster_state").is_some_and(|state| state == "ok");
        Ok(ClusterView { topology, is_ok, epoch: epoch.unwrap_or(0) })
    }

    /// Loads this version's function library next to those of other versions. Does nothing where
    /// it is loaded, or where the server has no Functions (it then runs the same scripts by hash).
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn load_library(&self) -> Result<(), BackendError> {
        for node in self.client.primaries().await? {
            match node.run::<String>(&library_load(Scripts::shared())).await {
                Ok(_) => {}
                Err(BackendError::Internal(text)) if text.contains("already exists") => {}
                Err(BackendError::Unavailable(text)) if text.contains("unknown command") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Unloads the libraries of all other versions of ours; whoever still runs one loads it again
    /// if it may. Call it when a roll-out is over.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn unload_other_libraries(&self) -> Result<u32, BackendError> {
        let mut list = redis::cmd("FUNCTION");
        list.arg("LIST").arg("LIBRARYNAME").arg("holdfast_*");
        let libraries: Vec<HashMap<String, Value>> = self.client.run(&list).await?;
        let mut unloaded = 0;
        for mut library in libraries {
            let Some(name) = library.remove("library_name") else { continue };
            let name: String = redis::from_redis_value(name).map_err(unexpected)?;
            if name != Scripts::shared().library() {
                self.client.run::<()>(redis::cmd("FUNCTION").arg("DELETE").arg(name)).await?;
                unloaded += 1;
            }
        }
        Ok(unloaded)
    }

    /// Deletes all that a class has in the store, and returns the highest fence sequence it ever
    /// granted there: the floor of a class that is created again under its name.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`]. It may then have deleted a part; calling it again goes on, but
    /// does not know the fences of that part.
    pub async fn purge_class(
        &self,
        namespace: &str,
        kind: Kind,
        class: &ClassName,
    ) -> Result<u64, BackendError> {
        let pattern = format!("{}*", keys::class_stem(namespace, kind, class));
        let mut top = 0;
        // A name may have been moved, from a server that was not looked at yet to one that was.
        for _ in 0..PURGE_ROUNDS {
            let mut found = 0;
            for node in self.client.primaries().await? {
                let (count, highest) = self.purge(&node, &pattern).await?;
                (found, top) = (found + count, top.max(highest));
            }
            if found == 0 {
                break;
            }
        }
        Ok(top)
    }

    /// Deletes what one server names; how many names, and the highest fence sequence.
    async fn purge(&self, node: &Client, pattern: &str) -> Result<(usize, u64), BackendError> {
        let (mut found, mut top, mut cursor) = (0, 0, 0u64);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_COUNT);
            let (next, names): (u64, Vec<String>) = node.run(&scan).await?;
            found += names.len();
            for names in of_one_slot(names).iter().flat_map(|names| names.chunks(PURGE_AT_ONCE)) {
                let mut purge = redis::cmd("EVAL");
                purge.arg(PURGE).arg(names.len()).arg(names).arg(keys::RECORD);
                let name = names.first().map_or("", String::as_str);
                top = top.max(self.client.run_on(name, &purge).await?);
            }
            cursor = next;
            if cursor == 0 {
                return Ok((found, top));
            }
        }
    }
}

/// Names by their hash tags: a cluster takes no script with names of two slots.
fn of_one_slot(names: Vec<String>) -> Vec<Vec<String>> {
    let mut groups: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for name in names {
        groups.entry(slot_of(&name)).or_default().push(name);
    }
    groups.into_values().collect()
}

/// One section of INFO.
pub(super) async fn section(
    client: &Client,
    name: &str,
) -> Result<HashMap<String, String>, BackendError> {
    let text: String = client.run(redis::cmd("INFO").arg(name)).await?;
    Ok(pairs(&text))
}

fn pairs(text: &str) -> HashMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.trim_end().split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The name of the primary's run.
pub(super) fn replication_field(info: &HashMap<String, String>) -> Result<String, BackendError> {
    let replid = info.get("master_replid").filter(|id| !id.is_empty()).cloned();
    replid.ok_or_else(|| {
        BackendError::Unavailable("the store's INFO does not show a master_replid".into())
    })
}
