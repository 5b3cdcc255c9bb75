//! A look at one key, and at every key of a class that is held or waited for.

use std::future::Future;

use futures::future::try_join_all;
use holdfast_core::{
    Address, BackendError, ClassName, Fence, HoldId, Key, Kind,
    lock::{HolderView, LockView, redlock::Seen},
};

use super::{
    RedisLocks,
    keys::{self, ObjectKeys},
    reply::{Reply, unexpected},
    scripts::Transition,
};

/// How many waiters a view names.
pub(super) const NAMES_IN_VIEW: &str = "10";

/// How many keys are read at once in a list.
const LIST_AT_ONCE: usize = 32;
/// The most rounds of SCAN that a list takes, a thousand names each.
const SCAN_ROUNDS: usize = 1_000;

impl RedisLocks {
    pub(super) async fn view(&self, at: &Address) -> Result<LockView, BackendError> {
        Ok(self.seen(at).await?.view)
    }

    /// A view, and whose hold it shows.
    pub(super) async fn seen(&self, at: &Address) -> Result<Seen, BackendError> {
        let names = ObjectKeys::new(at);
        let (record, queue, waiters) = (names.record(), names.queue(), names.waiters());
        let keys = [record.as_str(), &queue, &waiters];
        let reply = self.client.call(Transition::LockQuery, &keys, &[NAMES_IN_VIEW]).await?;
        let mut reply = Reply::new(reply);
        let (seq, epoch, waiters) = (reply.number()?, reply.number()?, reply.count()?);
        let queue = reply.names()?;
        let fence = Fence::compose(epoch, seq).map_err(unexpected)?;
        let (mut holder, mut hold) = (None, None);
        if !reply.is_empty() {
            let (name, ttl, held_for) = (reply.name()?, reply.millis()?, reply.millis()?);
            holder = Some(HolderView { holder: name, fence, ttl, held_for, permits: 1 });
            hold = Some(HoldId::new(reply.text()?).map_err(unexpected)?);
        }
        let (others, held) = (Vec::new(), u32::from(holder.is_some()));
        let last_fence = (seq > 0).then_some(fence);
        let view = LockView { holder, others, holds: held, used: held, waiters, queue, last_fence };
        Ok(Seen { hold, view })
    }

    /// At most `limit` keys of a class that are in use, as `view` shows them.
    pub(super) async fn look<F>(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
        limit: usize,
        view: impl Fn(Address) -> F,
    ) -> Result<Vec<(Key, LockView)>, BackendError>
    where
        F: Future<Output = Result<LockView, BackendError>>,
    {
        let pattern = format!("{}*{}", keys::class_stem(namespace, kind, class), keys::RECORD);
        let mut found = Vec::new();
        for node in self.client.primaries().await? {
            let mut cursor = 0u64;
            for _ in 0..SCAN_ROUNDS {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1_000);
                let (next, names): (u64, Vec<String>) = node.run(&scan).await?;
                let addresses: Vec<Address> =
                    names.iter().filter_map(|name| keys::parse_record(name)).collect();
                for addresses in addresses.chunks(LIST_AT_ONCE) {
                    // One write for all of them.
                    let views = try_join_all(addresses.iter().cloned().map(&view)).await?;
                    let pairs = addresses.iter().map(|at| at.key.clone()).zip(views);
                    found.extend(
                        pairs.filter(|(_, view)| view.holder.is_some() || view.waiters > 0),
                    );
                }
                cursor = next;
                if cursor == 0 || found.len() >= limit {
                    break;
                }
            }
        }
        // SCAN may name a key twice.
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found.dedup_by(|(a, _), (b, _)| a == b);
        found.truncate(limit);
        Ok(found)
    }
}
