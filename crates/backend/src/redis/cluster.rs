//! The servers of a Redis Cluster: a connection to each, and which of them has a name.
//!
//! The `redis` crate has a client for clusters. It is not used, because its number of retries is one
//! for all reasons: with none it follows no redirection, and with some it sends a request again whose
//! connection broke, though it may have been carried out.
//!
//! Invariant: a request is sent again only when a server has said that it was *not* carried out, or
//! when it never left. All else is the caller's to settle.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::future::{FutureExt, select_ok};
use holdfast_core::{BackendError, clock::Backoff};
use redis::Value;
use tokio::time::{Instant, sleep};

use super::{
    client::Client,
    config::{RedisConfig, Seeds, parse_address},
    errors::{self, Meaning},
    request::{Failure, Request},
    scripts::Scripts,
    slots::{SLOTS, slot_of},
    topology::{Topology, mk_address},
};
use crate::hub::lock;

/// Servers that are asked at once which there are: one that is away must not keep the others waiting.
const ASK_AT_ONCE: usize = 3;
/// The least time between two questions.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Redirections that are followed without a pause.
const HOPS_AT_ONCE: u32 = 3;
/// A slot that nobody is known to have.
const NOBODY: u16 = u16::MAX;

/// Which server has each slot.
struct Map {
    /// By slot, an index into `addresses`.
    owners: Vec<u16>,
    addresses: Vec<String>,
}

/// The servers of a cluster.
pub(super) struct Cluster {
    config: RedisConfig,
    seeds: Arc<Seeds>,
    scripts: &'static Scripts,
    map: Mutex<Option<Arc<Map>>>,
    /// Whether somebody has seen that the map is not true any more.
    is_stale: AtomicBool,
    asked: tokio::sync::Mutex<Option<Instant>>,
    turn: AtomicUsize,
    nodes: Mutex<HashMap<String, Arc<Client>>>,
}

/// Where a request goes next.
enum Next {
    /// To the owner of its slot.
    Owner,
    /// To a server that was named, and whether only this once.
    Named(String, bool),
}

impl Cluster {
    /// The cluster that a configuration names, if it names one.
    pub(super) fn of(config: &RedisConfig, scripts: &'static Scripts) -> Option<Self> {
        let seeds = config.seeds()?.clone();
        Some(Cluster {
            config: config.clone(),
            seeds,
            scripts,
            map: Mutex::default(),
            is_stale: AtomicBool::new(false),
            asked: tokio::sync::Mutex::default(),
            turn: AtomicUsize::new(0),
            nodes: Mutex::default(),
        })
    }

    /// How many connections have been made so far, to servers that are still there.
    pub(super) fn connects(&self) -> u64 {
        lock(&self.nodes).values().map(|node| node.connects()).sum()
    }

    /// Clients of all primaries.
    pub(super) async fn primaries(&self) -> Result<Vec<Arc<Client>>, BackendError> {
        self.is_stale.store(true, Relaxed);
        let map = self.map().await?;
        map.addresses.iter().map(|address| self.node(address)).collect()
    }

    /// Sends a request about a name to the server that has it, following redirections and waiting out
    /// what a cluster says while it changes, for as long as an answer may take.
    pub(super) async fn follow(
        &self,
        name: &str,
        request: Request<'_>,
    ) -> Result<Value, BackendError> {
        let (slot, until) = (slot_of(name), Instant::now() + self.config.response_timeout);
        let mut waits = Backoff::new(Duration::from_millis(5), Duration::from_millis(100));
        let (mut next, mut hops) = (Next::Owner, 0);
        loop {
            let (address, once) = match next {
                Next::Owner => match self.owner(slot).await {
                    Ok(address) => (address, false),
                    Err(error) if !is_passing(&error) || Instant::now() >= until => {
                        return Err(error);
                    }
                    Err(_) => {
                        sleep(waits.next_delay()).await;
                        next = Next::Owner;
                        continue;
                    }
                },
                Next::Named(address, once) => (address, once),
            };
            let node = self.node(&address)?;
            let failure = match node.carry_out(request, once).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let redirected = match &failure {
                Failure::Sent(error) => errors::redirect(error),
                Failure::Unsent(_) | Failure::Final(_) => None,
            };
            if let Some((named, once)) = redirected {
                let (host, port) = named.rsplit_once(':').unwrap_or((named, ""));
                let port = port.parse().unwrap_or_default();
                next = Next::Named(mk_address(host, port, &address), once);
                // ASK is about this request only.
                if !once {
                    self.is_stale.store(true, Relaxed);
                }
                if Instant::now() >= until {
                    return Err(failure.into());
                }
                hops += 1;
                // Servers that do not agree yet send it to and fro.
                if hops > HOPS_AT_ONCE {
                    sleep(waits.next_delay()).await;
                }
                continue;
            }
            let may_pass = match &failure {
                Failure::Unsent(error) => is_passing(error),
                Failure::Final(_) => false,
                Failure::Sent(error) => match errors::meaning(error) {
                    // Gone, or slow: nobody knows what became of the request.
                    None => {
                        self.is_stale.store(true, Relaxed);
                        false
                    }
                    Some(Meaning::WrongServer) => true,
                    _ => matches!(error.code(), Some("TRYAGAIN" | "CLUSTERDOWN" | "LOADING")),
                },
            };
            if !may_pass || Instant::now() >= until {
                return Err(failure.into());
            }
            self.is_stale.store(true, Relaxed);
            sleep(waits.next_delay()).await;
            next = Next::Owner;
        }
    }

    async fn owner(&self, slot: u16) -> Result<String, BackendError> {
        let map = self.map().await?;
        let owner = map.owners.get(usize::from(slot)).copied().unwrap_or(NOBODY);
        map.addresses.get(usize::from(owner)).cloned().ok_or_else(|| {
            self.is_stale.store(true, Relaxed);
            BackendError::Unavailable(format!("no server of the cluster has slot {slot}"))
        })
    }

    fn node(&self, address: &str) -> Result<Arc<Client>, BackendError> {
        let mut nodes = lock(&self.nodes);
        if let Some(node) = nodes.get(address) {
            return Ok(node.clone());
        }
        parse_address(address).map_err(BackendError::Unavailable)?;
        let node = Arc::new(Client::with_scripts(self.config.at(address)?, self.scripts));
        nodes.insert(address.to_owned(), node.clone());
        Ok(node)
    }

    /// The map, asked for anew if it is not true any more.
    async fn map(&self) -> Result<Arc<Map>, BackendError> {
        let known = lock(&self.map).clone();
        if let Some(map) = &known
            && !self.is_stale.load(Relaxed)
        {
            return Ok(map.clone());
        }
        let mut asked = self.asked.lock().await;
        // Another caller may have asked meanwhile; or it is too early to ask again.
        let known = lock(&self.map).clone();
        let is_early = asked.is_some_and(|at| at.elapsed() < ASK_EVERY);
        if let Some(map) = &known
            && (is_early || !self.is_stale.load(Relaxed))
        {
            return Ok(map.clone());
        }
        // What is seen from here on is news.
        self.is_stale.store(false, Relaxed);
        let answer = self.ask().boxed().await;
        *asked = Some(Instant::now());
        match (answer, known) {
            (Ok(topology), _) => Ok(self.learn(&topology)),
            (Err(_), Some(map)) => {
                self.is_stale.store(true, Relaxed);
                Ok(map)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Asks servers, some at a time, which there are. The first to answer is believed: whoever is
    /// wrong says so when a request comes, and another one is asked first the next time.
    async fn ask(&self) -> Result<Topology, BackendError> {
        let mut addresses = self.seeds.all();
        let turn = self.turn.fetch_add(1, Relaxed) % addresses.len().max(1);
        addresses.rotate_left(turn);
        let mut why = BackendError::Unavailable("no address of the cluster is known".into());
        for some in addresses.chunks(ASK_AT_ONCE) {
            match select_ok(some.iter().map(|address| self.view(address).boxed())).await {
                Ok((topology, _)) => return Ok(topology),
                Err(error) => why = error,
            }
        }
        // Whatever the request is: it has not been sent.
        Err(match why {
            BackendError::Unknown(why) => BackendError::Unavailable(why),
            other => other,
        })
    }

    async fn view(&self, address: &str) -> Result<Topology, BackendError> {
        let slots: Value = self.node(address)?.run(redis::cmd("CLUSTER").arg("SLOTS")).await?;
        let topology = Topology::from_slots(slots, address)?;
        if topology.shards.is_empty() {
            let why = format!("{address} knows of no slots: it is alone, or not in a cluster");
            return Err(BackendError::Unavailable(why));
        }
        Ok(topology)
    }

    fn learn(&self, topology: &Topology) -> Arc<Map> {
        let mut owners = vec![NOBODY; usize::from(SLOTS)];
        let mut addresses = Vec::new();
        for (index, shard) in topology.shards.iter().enumerate() {
            for (from, to) in shard.slots.ranges() {
                let range = usize::from(*from)..=usize::from(*to);
                if let Some(range) = owners.get_mut(range) {
                    range.fill(index as u16);
                }
            }
            addresses.push(shard.primary.address.clone());
        }
        let all: Vec<String> = topology.nodes().map(|node| node.address.clone()).collect();
        let named = self.seeds.named();
        lock(&self.nodes).retain(|address, _| all.contains(address) || named.contains(address));
        self.seeds.hear_of(all);
        let map = Arc::new(Map { owners, addresses });
        *lock(&self.map) = Some(map.clone());
        map
    }
}

/// Whether a server that was not reached may be by and by. A password that is wrong is not waited for.
fn is_passing(error: &BackendError) -> bool {
    matches!(error, BackendError::Unavailable(_))
}
