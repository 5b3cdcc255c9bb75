//! Requests whose outcome on a server is not known (yet).
//!
//! Invariant: as long as a request for a hold is open on a server, that server is not asked to vote for
//! the hold again. Else what takes the old request back could take the new vote with it, after it was
//! counted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_core::{Address, BackendError, Fence, HoldId, clock::Backoff, lock::LockConfig};
use tokio::time::{Instant, sleep};

use super::Inner;
use crate::hub::lock;

/// Entries beyond which old ones are looked for and forgotten; then beyond twice what is left.
const SWEEP_AT: usize = 1_024;
/// Nothing of a request is left anywhere after so many times to live, and at least this time.
const SETTLE_FOR_TTLS: u32 = 3;
const SETTLE_FOR: Duration = Duration::from_secs(3);
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// The open requests.
#[derive(Default)]
pub(super) struct Open(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    since: HashMap<(HoldId, usize), Instant>,
    sweep_at: usize,
}

impl Open {
    /// A request is about to be sent, or to be taken back.
    pub(super) fn begin(&self, hold: &HoldId, server: usize) {
        let mut all = lock(&self.0);
        if all.since.len() >= all.sweep_at.max(SWEEP_AT) {
            all.since.retain(|_, since| since.elapsed() < FORGET_AFTER);
            all.sweep_at = 2 * all.since.len();
        }
        all.since.insert((hold.clone(), server), Instant::now());
    }

    /// Its outcome is known.
    pub(super) fn end(&self, hold: &HoldId, server: usize) {
        lock(&self.0).since.remove(&(hold.clone(), server));
    }

    /// Whether there is one.
    pub(super) fn is_open(&self, hold: &HoldId, server: usize) -> bool {
        lock(&self.0).since.contains_key(&(hold.clone(), server))
    }
}

impl Inner {
    /// Takes a vote back in the background, with whatever it takes.
    pub(super) async fn take_back(
        self: &Arc<Self>,
        server: usize,
        (at, config): (&Address, &LockConfig),
        hold: &HoldId,
        fence: Fence,
    ) {
        match self.servers[server].unvote(at, config, hold, fence).await {
            Ok(()) => self.open.end(hold, server),
            Err(_) => self.settle(server, at, config, hold),
        }
    }

    /// Cancels a request on a server.
    pub(super) async fn settle_once(
        &self,
        server: usize,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError> {
        use holdfast_core::lock::LockBackend;
        self.servers[server].cancel(at, config, hold).await?;
        self.open.end(hold, server);
        Ok(())
    }

    /// Cancels a request on a server until it has answered, in the background.
    pub(super) fn settle(
        self: &Arc<Self>,
        server: usize,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) {
        let (inner, at, config, hold) = (self.clone(), at.clone(), config.clone(), hold.clone());
        let lasting = Duration::from_millis(config.ttl_ms) * SETTLE_FOR_TTLS;
        let give_up = Instant::now() + lasting.max(SETTLE_FOR);
        tokio::spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
            while let Err(error) = inner.settle_once(server, &at, &config, &hold).await {
                if Instant::now() >= give_up {
                    // No vote of that server for this hold, until the entry is swept.
                    tracing::debug!(%at, %error, server, "a request could not be settled");
                    return;
                }
                sleep(backoff.next_delay()).await;
            }
        });
    }
}
