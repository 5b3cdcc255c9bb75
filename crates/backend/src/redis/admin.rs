//! The operator's side of a store: what it is, its library, epoch markers, and the end of a class.
//! Users are in [`users`](super::users).

use std::collections::HashMap;

use holdfast_core::{BackendError, ClassName, Kind};

use super::{
    client::{Client, library_load},
    config::RedisConfig,
    keys,
    scripts::Scripts,
};

/// Names that one round of a purge looks at.
const SCAN_COUNT: usize = 1_000;
/// Names that one script of a purge deletes, so that no script is slow.
const PURGE_AT_ONCE: usize = 200;

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
    /// `noeviction` is the only one that keeps holds and fences.
    pub maxmemory_policy: String,
    /// Whether a restart keeps what was written (append-only file).
    pub aof_enabled: bool,
    /// How many replicas follow.
    pub connected_replicas: u32,
    /// Whether it is part of a cluster, which is not supported yet.
    pub cluster_enabled: bool,
}

/// A store with the rights to look after it.
pub struct RedisAdmin {
    pub(super) client: Client,
}

impl RedisAdmin {
    /// Looks after the store at `config`; connects when first used, and again when it must.
    ///
    /// # Errors
    /// When the configuration cannot be used at all.
    pub fn connect(config: &RedisConfig) -> Result<Self, BackendError> {
        config.open()?;
        Ok(RedisAdmin { client: Client::new(config.clone()) })
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
            maxmemory_policy: text("maxmemory_policy"),
            aof_enabled: text("aof_enabled") == "1",
            connected_replicas: text("connected_slaves").parse().unwrap_or(0),
            cluster_enabled: text("cluster_enabled") == "1",
        })
    }

    /// Loads this version's function library next to those of other versions. Does nothing where
    /// it is loaded, or where the server has no Functions (it then runs the same scripts by hash).
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn load_library(&self) -> Result<(), BackendError> {
        match self.client.run::<String>(&library_load(Scripts::shared())).await {
            Ok(_) => Ok(()),
            Err(BackendError::Internal(text)) if text.contains("already exists") => Ok(()),
            Err(BackendError::Unavailable(text)) if text.contains("unknown command") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Unloads the libraries of all other versions of ours; whoever still runs one loads it again
    /// if it may. Call it when a roll-out is over.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn unload_other_libraries(&self) -> Result<u32, BackendError> {
        let mut list = redis::cmd("FUNCTION");
        list.arg("LIST").arg("LIBRARYNAME").arg("holdfast_*");
        let libraries: Vec<HashMap<String, redis::Value>> = self.client.run(&list).await?;
        let mut unloaded = 0;
        for mut library in libraries {
            let Some(name) = library.remove("library_name") else { continue };
            let name: String = redis::from_redis_value(name).map_err(super::reply::unexpected)?;
            if name != Scripts::shared().library() {
                self.client.run::<()>(redis::cmd("FUNCTION").arg("DELETE").arg(name)).await?;
                unloaded += 1;
            }
        }
        Ok(unloaded)
    }

    /// The epoch that a namespace is marked with, if it is.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn marker(&self, namespace: &str) -> Result<Option<u64>, BackendError> {
        let text: Option<String> =
            self.client.run(redis::cmd("GET").arg(keys::marker(namespace))).await?;
        // A marker that is no number is as good as none: the scripts refuse both.
        Ok(text.and_then(|text| text.parse().ok()))
    }

    /// Marks a namespace with an epoch: from now on transitions of that epoch, and of no other, are
    /// carried out. Never lowers a marker.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`]; [`BackendError::Epoch`] when a later epoch is marked already.
    pub async fn open_epoch(&self, namespace: &str, number: u64) -> Result<(), BackendError> {
        const OPEN: &str = "\
            local now = tonumber(redis.call('GET', KEYS[1]) or '0') or 0\n\
            if now > tonumber(ARGV[1]) then return 0 end\n\
            redis.call('SET', KEYS[1], ARGV[1])\n\
            return 1";
        let mut command = redis::cmd("EVAL");
        command.arg(OPEN).arg(1).arg(keys::marker(namespace)).arg(number);
        match self.client.run::<u64>(&command).await? {
            1 => Ok(()),
            _ => Err(BackendError::Epoch),
        }
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
        let (mut top, mut cursor) = (0, 0u64);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN_COUNT);
            let (next, names): (u64, Vec<String>) = self.client.run(&scan).await?;
            for names in names.chunks(PURGE_AT_ONCE) {
                let mut purge = redis::cmd("EVAL");
                purge.arg(PURGE).arg(names.len()).arg(names).arg(keys::RECORD);
                top = top.max(self.client.run(&purge).await?);
            }
            cursor = next;
            if cursor == 0 {
                return Ok(top);
            }
        }
    }
}

/// One section of INFO.
pub(super) async fn section(
    client: &Client,
    name: &str,
) -> Result<HashMap<String, String>, BackendError> {
    let text: String = client.run(redis::cmd("INFO").arg(name)).await?;
    let pairs = text.lines().filter_map(|line| line.trim_end().split_once(':'));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// The name of the primary's run.
pub(super) fn replication_field(info: &HashMap<String, String>) -> Result<String, BackendError> {
    let replid = info.get("master_replid").filter(|id| !id.is_empty()).cloned();
    replid.ok_or_else(|| {
        BackendError::Unavailable("the store's INFO does not show a master_replid".into())
    })
}
