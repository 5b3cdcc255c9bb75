//! How many keys of a rate limit are at a limit: the operator's look, which charges nothing.

use holdfast_core::{BackendError, ClassName, Kind, ratelimit::Policy};

use super::{admin::RedisAdmin, keys, reply::Reply, scripts::Transition};

/// Names that one round of the scan looks at.
const SCAN_COUNT: usize = 1_000;
/// Rounds of one look, so that a store with many other keys is not scanned for ever.
const SCAN_ROUNDS: usize = 1_000;
/// Keys that are asked about at once, over the one connection.
const AT_ONCE: usize = 50;

impl RedisAdmin {
    /// How many keys of a class would be refused a cost of 1 now, among the first `at_most` that
    /// the store names. A key that nobody used for a while has no record, and is at no limit.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn limited(
        &self,
        namespace: &str,
        class: &ClassName,
        policy: &Policy,
        at_most: usize,
    ) -> Result<u32, BackendError> {
        let names = self.rate_records(namespace, class, at_most).await?;
        let mut limited = 0;
        for names in names.chunks(AT_ONCE) {
            let asked = names.iter().map(|name| self.refuses(name, policy));
            let answers = futures::future::try_join_all(asked).await?;
            limited += answers.into_iter().filter(|refused| *refused).count() as u32;
        }
        Ok(limited)
    }

    async fn rate_records(
        &self,
        namespace: &str,
        class: &ClassName,
        at_most: usize,
    ) -> Result<Vec<String>, BackendError> {
        let stem = keys::class_stem(namespace, Kind::RateLimit, class);
        let pattern = format!("{stem}*{}", keys::RATE);
        let mut found = Vec::new();
        for node in self.client.primaries().await? {
            let mut cursor = 0u64;
            for _ in 0..SCAN_ROUNDS {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN_COUNT);
                let (next, names): (u64, Vec<String>) = node.run(&scan).await?;
                found.extend(names);
                cursor = next;
                if cursor == 0 || found.len() >= at_most {
                    break;
                }
            }
        }
        // SCAN may name a key twice.
        found.sort();
        found.dedup();
        found.truncate(at_most);
        Ok(found)
    }

    async fn refuses(&self, name: &str, policy: &Policy) -> Result<bool, BackendError> {
        let args = [policy.token.as_str(), "1", "p", "0", "0"];
        let reply = self.client.call(Transition::RatelimitCheck, &[name], &args).await?;
        Ok(Reply::new(reply).signed()? != 1)
    }
}
