//! The servers of a store that has several, one administrator's connection each.

use std::{collections::BTreeSet, sync::Arc};

use futures::future::join_all;
use holdfast_api::v1alpha1::backend::RedisMode;
use holdfast_backend::redis::{
    ClusterView, RedisAdmin,
    slots::{Slots, slot_of},
    topology::Node,
};
use holdfast_core::{BackendError, ClassName, Kind, lock::redlock};

use super::Store;
use crate::context::lock;

/// One server.
#[derive(Clone)]
pub struct Member {
    /// Its name in an epoch's runs: its node id in a cluster, else its address.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// To look after it.
    pub admin: Arc<RedisAdmin>,
    /// Its slots; `None` of a server that has none.
    slots: Option<Slots>,
}

impl Member {
    /// Whether the slot of a hash tag is on it.
    pub fn has(&self, tag: &str) -> bool {
        self.slots.as_ref().is_some_and(|slots| slots.contains(slot_of(tag)))
    }

    /// Where its markers are to be, if they are at `kept` now.
    pub fn places(&self, kept: &[String]) -> Vec<String> {
        self.slots.as_ref().map(|slots| slots.places(kept)).unwrap_or_default()
    }
}

/// All servers there are.
#[derive(Clone)]
pub struct Members {
    /// Those that have the data.
    pub primaries: Vec<Member>,
    /// Those that may take over.
    pub replicas: Vec<Member>,
    /// Whether they serve at all.
    pub is_ok: bool,
}

impl Store {
    /// The servers there are now.
    ///
    /// # Errors
    /// When none of them says.
    pub async fn members(&self) -> Result<Members, BackendError> {
        let members = match self.spec.mode {
            RedisMode::Cluster => self.cluster().await?,
            RedisMode::Standalone | RedisMode::Sentinel | RedisMode::Redlock => {
                let named = self.spec.addresses.iter().map(|address| {
                    let node = Node { id: address.clone(), address: address.clone() };
                    self.member(&node, None)
                });
                let primaries = named.collect::<Result<_, _>>()?;
                Members { primaries, replicas: Vec::new(), is_ok: true }
            }
        };
        let mut known: BTreeSet<_> = members.all().map(|member| member.address.clone()).collect();
        // Those that are named may have other names in the cluster.
        known.extend(self.spec.addresses.iter().cloned());
        lock(&self.nodes).retain(|address, _| known.contains(address));
        *lock(&self.members) = Some(members.clone());
        Ok(members)
    }

    /// The servers there were at the last look.
    ///
    /// # Errors
    /// As of [`Store::members`], which is asked when there was none.
    pub async fn known_members(&self) -> Result<Members, BackendError> {
        let known = lock(&self.members).clone();
        match known {
            Some(members) => Ok(members),
            None => self.members().await,
        }
    }

    /// Deletes all that a class has, and returns the highest fence sequence that it ever granted. Where
    /// a majority decides, it is enough that a majority answers: what is left elsewhere grants nothing.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn purge_class(
        &self,
        namespace: &str,
        kind: Kind,
        class: &ClassName,
    ) -> Result<u64, BackendError> {
        if self.spec.mode != RedisMode::Redlock {
            return self.admin.purge_class(namespace, kind, class).await;
        }
        let members = self.members().await?.primaries;
        let purges = members.iter().map(|member| {
            let purge = member.admin.purge_class(namespace, kind, class);
            async { Some(purge.await) }
        });
        let purged: Vec<Option<Result<u64, BackendError>>> = join_all(purges).await;
        match redlock::done(&purged, true) {
            Some(Err(error)) => Err(error),
            _ => Ok(purged.into_iter().flatten().flatten().max().unwrap_or(0)),
        }
    }

    /// Every server is asked, and who has heard of the newest change is believed: one that was cut
    /// off has not.
    async fn cluster(&self) -> Result<Members, BackendError> {
        let mut asked: BTreeSet<String> = self.spec.addresses.iter().cloned().collect();
        asked.extend(lock(&self.nodes).keys().cloned());
        let views = join_all(asked.iter().map(|address| self.view(address))).await;
        let (mut best, mut why) = (None::<ClusterView>, None);
        for view in views {
            let rank = |view: &ClusterView| (view.is_ok, view.epoch);
            match view {
                Ok(view) if best.as_ref().is_none_or(|best| rank(best) < rank(&view)) => {
                    best = Some(view);
                }
                Ok(_) => {}
                Err(error) => why = Some(error),
            }
        }
        let Some(view) = best else {
            return Err(why.unwrap_or_else(|| BackendError::Unavailable("no address".into())));
        };
        let (mut primaries, mut replicas) = (Vec::new(), Vec::new());
        for shard in &view.topology.shards {
            primaries.push(self.member(&shard.primary, Some(shard.slots.clone()))?);
            for replica in &shard.replicas {
                replicas.push(self.member(replica, None)?);
            }
        }
        Ok(Members { primaries, replicas, is_ok: view.is_ok })
    }

    async fn view(&self, address: &str) -> Result<ClusterView, BackendError> {
        self.node(address)?.cluster(address).await
    }

    fn member(&self, node: &Node, slots: Option<Slots>) -> Result<Member, BackendError> {
        let (name, address) = (node.id.clone(), node.address.clone());
        Ok(Member { admin: self.node(&address)?, name, address, slots })
    }

    fn node(&self, address: &str) -> Result<Arc<RedisAdmin>, BackendError> {
        let mut nodes = lock(&self.nodes);
        if let Some(there) = nodes.get(address) {
            return Ok(there.clone());
        }
        let node = Arc::new(RedisAdmin::connect(&self.config.at(address)?)?);
        nodes.insert(address.to_owned(), node.clone());
        Ok(node)
    }
}

impl Members {
    /// Primaries and replicas.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.primaries.iter().chain(&self.replicas)
    }
}
