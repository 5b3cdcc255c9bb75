//! Whose turn it is among the waiters of this process: one task per Lease, only while somebody waits.
//!
//! The task holds one watch, by name, for all of them, and makes a request only when the record says
//! that the lock is free: after a release at once, after an expiry with some jitter, since every
//! process with waiters counts the same record. It then writes for the *first* of its queue; the
//! write is conditional, so of all processes one wins. A process that lost a race waits a little
//! longer before the next one.
//!
//! A watch that has died silently is found out by the record's own expiry: the conditional write
//! fails, and the record is read anew.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use holdfast_core::{
    Address, BackendError,
    clock::Backoff,
    lock::{Acquire, Grant, Push, record::Verdict},
};
use tokio::{sync::Notify, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{
    client::{Fault, Seen},
    grant::{Inner, Taken, call_budget, name_of},
    names,
    record::Snapshot,
};
use crate::hub::lock;

/// The API server ends a watch, or says that nothing happened, more often than this.
const SILENCE: Duration = Duration::from_secs(255);
/// The longest pause between two tries while the API server does not answer.
const RETRY_CAP: Duration = Duration::from_secs(2);
/// The longest pause of a process that keeps losing races.
const LOSER_CAP_MS: u64 = 64;

/// Serves the waiters of a Lease until there are none.
pub(super) async fn serve(inner: Arc<Inner>, at: Address) {
    let changed = lock(&inner.local).place(&at).changed.clone();
    let _watch = AbortOnDropHandle::new(tokio::spawn(watch(inner.clone(), at.clone())));
    let backoff = Backoff::new(Duration::from_millis(50), RETRY_CAP);
    let mut turn = Turn { inner, at, changed, backoff, lost_races: 0 };
    while let Some(head) = turn.head() {
        turn.step(&head).await;
    }
}

struct Turn {
    inner: Arc<Inner>,
    at: Address,
    changed: Arc<Notify>,
    backoff: Backoff,
    lost_races: u32,
}

impl Turn {
    /// The first who still waits; None ends the service. Who has nobody left to tell is dropped.
    fn head(&self) -> Option<Acquire> {
        let mut local = lock(&self.inner.local);
        let place = local.place(&self.at);
        place.queue.retain(|waiter| self.inner.hub.users(&waiter.hold) > 0);
        let head = place.queue.front().cloned();
        // Under one lock with looking: who comes later starts the next service.
        place.served = head.is_some();
        head
    }

    /// Waits for something to happen, and takes the lock for the head if it is free.
    async fn step(&mut self, head: &Acquire) {
        let Some((seen, verdict)) = self.look(head) else {
            return self.read_again(head).await;
        };
        let outcome = match verdict {
            Verdict::Held { left } => {
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep(left + jitter(seen.record.duration)) => {}
                }
                return;
            }
            Verdict::Terminating => {
                self.send_away();
                return;
            }
            Verdict::Mine => self.inner.adopt(&self.at, head, &seen).await,
            Verdict::Free => {
                if self.lost_races > 0 {
                    let cap = (4u64 << self.lost_races.min(5)).min(LOSER_CAP_MS);
                    sleep(Duration::from_millis(rand::random_range(0..=cap))).await;
                    // Another process may have been quicker, and the watch may have told.
                    if self.look(head).is_none_or(|(newer, _)| newer.basis != seen.basis) {
                        return;
                    }
                }
                self.inner.take(&self.at, head, &seen).await
            }
        };
        match outcome {
            Ok(Taken::Granted(grant, since)) => {
                (self.lost_races, self.backoff) =
                    (0, Backoff::new(Duration::from_millis(50), RETRY_CAP));
                self.hand_over(head, grant, since);
            }
            Ok(Taken::Raced) => {
                self.lost_races += 1;
                self.read_again(head).await;
            }
            // Its ticket is gone already.
            Ok(Taken::Cancelled) => {}
            Err(error) => {
                // An unknown outcome is settled by trying again on the same basis, or found out by
                // reading a newer one.
                tracing::debug!(at = %self.at, %error, "a waiter's turn could not be taken");
                sleep(self.backoff.next_delay()).await;
                self.read_again(head).await;
            }
        }
    }

    fn look(&self, head: &Acquire) -> Option<(Snapshot, Verdict)> {
        let (seen, sighting) = lock(&self.inner.local).seen(&self.at)?;
        let mark = names::mark(head.hold.as_str());
        let delay = Duration::from_millis(head.config.lock_delay_ms);
        Some((seen, sighting.verdict(self.inner.clock.now(), Some(&mark), delay)))
    }

    async fn read_again(&mut self, head: &Acquire) {
        match self.inner.read(&self.at, call_budget(&head.config)).await {
            Ok(seen) => self.inner.resolve(&head.hold, &seen),
            Err(BackendError::NotFound(_)) => self.send_away(),
            Err(error) => {
                tracing::debug!(at = %self.at, %error, "a Lease could not be read for its waiters");
                sleep(self.backoff.next_delay()).await;
            }
        }
    }

    fn hand_over(&self, head: &Acquire, grant: Grant, since: holdfast_core::Stamp) {
        lock(&self.inner.local).leave(&self.at, &head.hold);
        let push = Push::Granted { grant, since: Some(since) };
        if !self.inner.hub.send(&head.hold, push) {
            // Whoever waited went away in this very moment, and found only a ticket to withdraw.
            let (inner, at, head) = (self.inner.clone(), self.at.clone(), head.clone());
            tokio::spawn(async move {
                let ended = inner.end(&at, &head.config, &head.hold, Duration::ZERO).await;
                if let Err(error) = ended {
                    tracing::warn!(%at, %error, "a hold that nobody waited for could not be freed");
                }
            });
        }
    }

    /// The Lease is gone or going: those who wait ask again and are told so.
    fn send_away(&self) {
        let waiters = std::mem::take(&mut lock(&self.inner.local).place(&self.at).queue);
        for waiter in waiters {
            self.inner.hub.send(&waiter.hold, Push::Requeue);
        }
    }
}

/// Keeps the record up to date until dropped.
async fn watch(inner: Arc<Inner>, at: Address) {
    let mut backoff = Backoff::new(Duration::from_millis(100), RETRY_CAP);
    let mut from = None;
    loop {
        let version = from
            .take()
            .or_else(|| lock(&inner.local).seen(&at).map(|(seen, _)| seen.basis.version.clone()));
        // Without a version a watch begins with the object as it is.
        let version = version.unwrap_or_else(|| "0".to_owned());
        match follow(&inner, &at, &version, &mut from).await {
            Ok(()) => backoff.reset(),
            Err(fault) => {
                tracing::debug!(%at, ?fault, "a Lease's watch ended");
                // Perhaps the version is too old by now: begin again with the newest record.
                from = None;
                sleep(backoff.next_delay()).await;
                if inner.read(&at, RETRY_CAP).await.is_ok() {
                    backoff.reset();
                }
            }
        }
    }
}

/// One watch, until it ends. `from` is where the next one goes on.
async fn follow(
    inner: &Inner,
    at: &Address,
    version: &str,
    from: &mut Option<String>,
) -> Result<(), Fault> {
    let mut events = inner.client.watch(&at.namespace, &name_of(at), version).await?;
    loop {
        let event = match tokio::time::timeout(SILENCE, events.next()).await {
            Ok(Some(event)) => event?,
            Ok(None) => return Ok(()),
            Err(_) => return Err(Fault::Unavailable("the watch fell silent".into())),
        };
        let now = inner.clock.now();
        match event {
            Seen::Lease(lease) => match Snapshot::of(&lease) {
                Ok(seen) => {
                    *from = Some(seen.basis.version.clone());
                    lock(&inner.local).note(at, seen, now);
                }
                Err(error) => tracing::warn!(%at, %error, "a Lease that makes no sense"),
            },
            Seen::Deleted => {
                *from = None;
                lock(&inner.local).forget_record(at);
            }
            Seen::Bookmark(version) => *from = Some(version),
        }
    }
}

/// What a contender adds to an expiry: up to a twentieth of the duration, at most half a second.
fn jitter(duration: Duration) -> Duration {
    let most = (duration / 20).min(Duration::from_millis(500));
    most.mul_f64(rand::random())
}
