//! Epochs: the incarnations of a store. Whoever grants must know which one it is in.
//!
//! Where there is an operator, it keeps epochs in etcd and only it raises them. [`LocalEpoch`] does
//! it for `holdfast dev`, where nobody else is there to: it keeps the number in the store itself.
//!
//! Invariant: a number is never opened for two runs of a store between which data may have been
//! lost. The clock is a floor below every number, so that a flush together with a restart of this
//! process cannot lower it.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_core::{BackendError, clock::Backoff, lock::Consistency};
use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{
    admin::{replication_field, section},
    client::Client,
    config::RedisConfig,
    keys,
};
use crate::hub::lock;

/// What is known of the epoch of a namespace in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownEpoch {
    /// Its number: the high bits of every fence.
    pub number: u64,
    /// The run of the primary that it was opened for; empty where `runs` says it of each server.
    pub replid: String,
    /// Whether strict classes may grant in it. Closed in quarantine. Of several servers, whether
    /// they may on one at least.
    pub open: bool,
    /// The servers, where there are several that can lose their data apart.
    pub runs: Vec<KnownRun>,
}

impl KnownEpoch {
    /// As one of the servers has it.
    pub(super) fn of(&self, server: &str) -> Option<KnownEpoch> {
        let run = self.runs.iter().find(|run| run.server == server)?;
        Some(KnownEpoch::of_one(self.number, run.replid.clone(), run.open))
    }

    /// Of one server.
    pub const fn of_one(number: u64, replid: String, open: bool) -> Self {
        KnownEpoch { number, replid, open, runs: Vec::new() }
    }

    /// The epoch to act in, and how sure scripts are to be of it: strict or best effort.
    pub(super) fn to_act_in(
        known: Option<&Self>,
        consistency: Consistency,
    ) -> Result<(&Self, &'static str), BackendError> {
        match (consistency, known) {
            // Without a number there is no fence, however little is asked.
            (_, None) => Err(BackendError::Epoch),
            // Of servers that this version does not know how to tell.
            (_, Some(epoch)) if epoch.replid.is_empty() && epoch.runs.is_empty() => {
                Err(BackendError::Epoch)
            }
            (Consistency::Strict, Some(epoch)) if !epoch.open => Err(BackendError::Epoch),
            (Consistency::Strict, Some(epoch)) => Ok((epoch, "s")),
            (Consistency::BestEffort, Some(epoch)) => Ok((epoch, "b")),
        }
    }

    /// What scripts are told of it: the run of the one server, or ':' and those of a cluster that are
    /// open, with the places of their markers. See `lua/prelude.lua`.
    pub(super) fn runs_of_scripts(&self) -> Cow<'_, str> {
        if self.runs.is_empty() {
            return Cow::Borrowed(&self.replid);
        }
        let mut text = String::with_capacity(64 * self.runs.len());
        for run in self.runs.iter().filter(|run| run.open) {
            text.push_str(if text.is_empty() { ":" } else { "," });
            for part in [&run.replid, ":", &run.tags.join("+")] {
                text.push_str(part);
            }
        }
        // Never the empty text, which would be the run of one server.
        Cow::Owned(if text.is_empty() { ":".to_owned() } else { text })
    }
}

/// What is known of one server in an epoch of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRun {
    /// Its node id in a cluster, else its address.
    pub server: String,
    /// The run of the server that is trusted.
    pub replid: String,
    /// What the names of its markers end in; empty for the plain one.
    pub tags: Vec<String>,
    /// Whether strict classes may grant on it.
    pub open: bool,
}

/// How often the store is looked at. A development store on this machine does not mind.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Seconds of an hour: the unit of the floor. Numbers last until the year 2209.
const HOUR: u64 = 3_600;
/// 2025-01-01 in hours since 1970.
const FIRST_HOUR: u64 = 482_136;

/// Sets the marker unless somebody else has moved it meanwhile.
/// KEYS: marker, run. ARGV: the marker as it was read (empty for none), the new number, the replid.
const RAISE: &str = "\
local now = redis.call('GET', KEYS[1]) or ''
if now ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[2] .. ' ' .. ARGV[3])
return 1";

/// Keeps the epoch of one namespace, as long as it lives.
pub struct LocalEpoch {
    known: watch::Receiver<Option<KnownEpoch>>,
    failed: Arc<Mutex<Option<String>>>,
    _keeper: AbortOnDropHandle<()>,
}

struct Keeper {
    client: Client,
    marker: String,
    run: String,
    quarantine: Duration,
    known: watch::Sender<Option<KnownEpoch>>,
    failed: Arc<Mutex<Option<String>>>,
}

/// What the store says.
struct Seen {
    replid: String,
    marker: Option<String>,
    run: Option<String>,
}

impl LocalEpoch {
    /// Learns the epoch of `namespace`, and raises it whenever the store may have lost data. Holds
    /// from before may still be trusted then, so a raised epoch opens after `quarantine`: the
    /// longest time to live, or zero where a development server need not be that careful.
    ///
    /// # Errors
    /// When the configuration cannot be used at all. A store that is down is waited for.
    pub fn start(
        config: RedisConfig,
        namespace: &str,
        quarantine: Duration,
    ) -> Result<Self, BackendError> {
        config.open()?;
        let (sender, known) = watch::channel(None);
        let failed = Arc::new(Mutex::new(None));
        let keeper = Keeper {
            failed: failed.clone(),
            client: Client::new(config),
            marker: keys::marker(namespace),
            run: keys::marker_run(namespace),
            quarantine,
            known: sender,
        };
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeper.run()));
        Ok(LocalEpoch { known, failed, _keeper: keeper })
    }

    /// What is known, now and later: for [`RedisLocks::connect`](super::RedisLocks::connect).
    pub fn known(&self) -> watch::Receiver<Option<KnownEpoch>> {
        self.known.clone()
    }

    /// Why the store could not be looked at, the last time that it could not.
    pub fn failed(&self) -> Option<String> {
        lock(&self.failed).clone()
    }

    /// Waits until an epoch is open, at most so long; whether one is.
    pub async fn opened(&self, within: Duration) -> bool {
        let mut known = self.known.clone();
        let is_open = |known: &Option<KnownEpoch>| known.as_ref().is_some_and(|k| k.open);
        matches!(tokio::time::timeout(within, known.wait_for(is_open)).await, Ok(Ok(_)))
    }
}

impl Keeper {
    async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let delay = match self.look().await {
                Ok(()) => {
                    backoff.reset();
                    LOOK_EVERY
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot learn the store's epoch");
                    *lock(&self.failed) = Some(error.to_string());
                    backoff.next_delay()
                }
            };
            sleep(delay).await;
        }
    }

    async fn look(&self) -> Result<(), BackendError> {
        let seen = self.see().await?;
        let marked = seen.marker.as_deref().and_then(|text| text.parse::<u64>().ok());
        let run = marked.map(|number| format!("{number} {}", seen.replid));
        // The marker is good when it was set in this run of the store, by this process or another.
        if let (Some(number), true) = (marked, run == seen.run) {
            self.tell(KnownEpoch::of_one(number, seen.replid, true));
            return Ok(());
        }
        let before = self.known.borrow().as_ref().map(|known| known.number);
        let number = [marked, before].into_iter().flatten().max().map_or(0, |n| n + 1).max(floor());
        if marked.is_some() || before.is_some() {
            tracing::warn!(number, "the store may have lost data: a new epoch");
            self.tell(KnownEpoch::of_one(number, seen.replid.clone(), false));
            sleep(self.quarantine).await;
        }
        self.raise(&seen, number).await
    }

    /// Opens a number, unless another process has moved the marker: the next look tells.
    async fn raise(&self, seen: &Seen, number: u64) -> Result<(), BackendError> {
        let mut command = redis::cmd("EVAL");
        command.arg(RAISE).arg(2).arg(&self.marker).arg(&self.run);
        command.arg(seen.marker.as_deref().unwrap_or_default()).arg(number).arg(&seen.replid);
        if self.client.run::<u64>(&command).await? == 1 {
            self.tell(KnownEpoch::of_one(number, seen.replid.clone(), true));
        }
        Ok(())
    }

    async fn see(&self) -> Result<Seen, BackendError> {
        let cluster = section(&self.client, "cluster").await?;
        if cluster.get("cluster_enabled").is_some_and(|enabled| enabled == "1") {
            return Err(BackendError::Unavailable(
                "it is part of a cluster, and only the operator keeps the epoch of one; name a \
                 server that stands alone"
                    .into(),
            ));
        }
        let info = section(&self.client, "replication").await?;
        let mut command = redis::cmd("MGET");
        command.arg(&self.marker).arg(&self.run);
        let (marker, run) = self.client.run(&command).await?;
        Ok(Seen { replid: replication_field(&info)?, marker, run })
    }

    fn tell(&self, epoch: KnownEpoch) {
        self.known.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&epoch);
            *known = Some(epoch);
            changed
        });
    }
}

fn floor() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    (now.unwrap_or_default().as_secs() / HOUR).saturating_sub(FIRST_HOUR).max(1)
}
