//! Every key of a class that is held or waited for: a scan, and a look at each.

use std::future::Future;

use futures::future::try_join_all;
use holdfast_core::{Address, BackendError, ClassName, Key, Kind, lock::LockView};

use super::{RedisLocks, keys};

/// How many keys are read at once in a list.
const LIST_AT_ONCE: usize = 32;
/// The most rounds of SCAN that a list takes, a thousand names each.
const SCAN_ROUNDS: usize = 1_000;

impl RedisLocks {
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
