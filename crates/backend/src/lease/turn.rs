//! Whose turn it is among the waiters of this process: one task per key, only while somebody waits.
//!
//! The task holds one watch per Lease of the key, by name, for all of them, and makes a request only
//! when a record says that it is free: after a release at once, after an expiry with some jitter, since every
//! process with waiters counts the same record. It then writes for the *first* of its queue; the
//! write is conditional, so of all processes one wins. A process that lost a race waits a little
//! longer before the next one.
//!
//! A watch that has died silently is found out by the record's own expiry: the conditional write
//! fails, and the record is read anew.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use holdfast_core::{
    Address, BackendError, HoldId,
    clock::Backoff,
    lock::{Grant, LockConfig, Push, record::Verdict},
    semaphore::slots,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    client::{Fault, Seen},
    grant::{Inner, Taken, call_budget},
    line::Asking,
    local::Waiter,
    names,
    record::Snapshot,
    slot::{Known, News, Slot, older},
};
use crate::hub::lock;

/// The longest pause between two tries while the API server does not answer.
const RETRY_CAP: Duration = Duration::from_secs(2);
/// After how long a Lease that is missing is looked for, although its watch would tell: what found
/// that it was missing may have been behind the watch.
const MISSING: Duration = Duration::from_secs(30);
/// The version that a watch begins from with the object as it is; perhaps as it was a moment ago, but then
/// what has happened since is told, too.
const AS_IT_IS: &str = "0";
/// The longest pause of a process that keeps losing races.
const LOSER_CAP_MS: u64 = 64;

/// Serves the waiters of a key until there are none.
pub(super) async fn serve(inner: Arc<Inner>, at: Address) {
    let changed = lock(&inner.local).place(&at).changed.clone();
    let backoff = Backoff::new(Duration::from_millis(50), RETRY_CAP);
    let watches = BTreeMap::new();
    let mut turn = Turn { inner, at, changed, backoff, lost_races: 0, watches };
    while let Some(next) = turn.next() {
        turn.step(next).await;
    }
}

struct Turn {
    inner: Arc<Inner>,
    at: Address,
    changed: Arc<Notify>,
    backoff: Backoff,
    lost_races: u32,
    watches: BTreeMap<u32, AbortOnDropHandle<()>>,
}

/// Who may be granted next: the first who waits, and whose session is within its share.
struct Next {
    head: Waiter,
    /// None while all who wait have their shares.
    asking: Option<Asking>,
}

/// What the records say to a waiter.
enum Look {
    /// These are not known: they are to be read.
    Unknown(Vec<Slot>),
    Free(Slot, Snapshot),
    Mine(Slot, Snapshot),
    /// All are held; the first may be free after so long, of a hold of this duration.
    Held(Duration, Duration),
    /// All are gone or going.
    Gone,
}

impl Turn {
    /// The first who still waits; None ends the service. Who has nobody left to tell is dropped.
    fn next(&mut self) -> Option<Next> {
        let waiting = {
            let mut local = lock(&self.inner.local);
            let place = local.place(&self.at);
            place.queue.retain(|waiter| self.inner.hub.users(&waiter.request.hold) > 0);
            // Under one lock with looking: who comes later starts the next service.
            place.served = !place.queue.is_empty();
            place.queue.clone()
        };
        let mut with_their_share = Vec::new();
        for waiter in &waiting {
            let session = &waiter.request.session;
            if with_their_share.contains(&session) {
                continue;
            }
            self.watch_all(&waiter.request.config);
            if let Some(asking) = self.inner.ask(&self.at, &waiter.request, false) {
                return Some(Next { head: waiter.clone(), asking: Some(asking) });
            }
            with_their_share.push(session);
        }
        waiting.front().map(|head| Next { head: head.clone(), asking: None })
    }

    /// Watches every Lease that a class has.
    fn watch_all(&mut self, config: &LockConfig) {
        for number in 0..config.permits.clamp(1, slots::MAX_SLOTS) {
            let (inner, slot) = (&self.inner, Slot::of(&self.at, number));
            self.watches.entry(number).or_insert_with(|| {
                AbortOnDropHandle::new(tokio::spawn(watch(inner.clone(), slot)))
            });
        }
    }

    /// Waits for something to happen, and takes what is free for the head.
    async fn step(&mut self, next: Next) {
        let Next { head, asking } = next;
        let outcome = match self.look(&head) {
            Look::Unknown(slots) => return self.read(&slots, &head).await,
            Look::Gone => {
                self.send_away();
                return;
            }
            Look::Held(left, duration) => {
                drop(asking);
                return self.idle(left + jitter(duration)).await;
            }
            Look::Mine(slot, seen) => {
                let taken = self.inner.adopt(&slot, &head.request, &seen).await;
                (slot, taken)
            }
            Look::Free(..) if asking.is_none() => return self.idle(RETRY_CAP).await,
            Look::Free(slot, seen) => {
                if self.lost_races > 0 {
                    let cap = (4u64 << self.lost_races.min(5)).min(LOSER_CAP_MS);
                    sleep(Duration::from_millis(rand::random_range(0..=cap))).await;
                    // Another process may have been quicker, and the watch may have told.
                    let newest = lock(&self.inner.local).seen(&slot);
                    if newest.is_none_or(|(newer, _)| newer.basis != seen.basis) {
                        return;
                    }
                }
                let taken = self.inner.claim(&slot, &head.request, head.since, &seen).await;
                (slot, taken)
            }
        };
        let (slot, outcome) = outcome;
        match outcome {
            Ok(Taken::Granted(grant, since)) => {
                (self.lost_races, self.backoff) =
                    (0, Backoff::new(Duration::from_millis(50), RETRY_CAP));
                self.hand_over(&head, grant, since);
            }
            Ok(Taken::Raced) => {
                self.lost_races += 1;
                self.read(&[slot], &head).await;
            }
            // Its ticket is gone already.
            Ok(Taken::Cancelled) => {}
            Err(error) => {
                // An unknown outcome is settled by trying again on the same basis, or found out by
                // reading a newer one.
                tracing::debug!(at = %self.at, %error, "a waiter's turn could not be taken");
                sleep(self.backoff.next_delay()).await;
                self.read(&[slot], &head).await;
            }
        }
    }

    /// Waits for news, but not for ever.
    async fn idle(&self, most: Duration) {
        let missing: Vec<Slot> = {
            let local = lock(&self.inner.local);
            let all = local.all_known(&self.at);
            all.filter(|(_, known)| matches!(known, Known::Absent(_)))
                .map(|(number, _)| Slot::of(&self.at, number))
                .collect()
        };
        let most = if missing.is_empty() { most } else { most.min(MISSING) };
        tokio::select! {
            () = self.changed.notified() => return,
            () = sleep(most) => {}
        }
        let mut local = lock(&self.inner.local);
        for slot in &missing {
            if let Some(Known::Absent(_)) = local.known(slot) {
                local.forget_record(slot);
            }
        }
    }

    /// What the records say: of an earlier try whose outcome is open only that one's.
    fn look(&self, head: &Waiter) -> Look {
        let request = &head.request;
        let seed = names::seed(request.session.as_str());
        let numbers: Vec<u32> = match self.tried(&request.hold) {
            Some(slot) => vec![slot.number],
            None => slots::order(seed, request.config.permits).collect(),
        };
        let (now, mark) = (self.inner.clock.now(), names::mark(request.hold.as_str()));
        let delay = Duration::from_millis(request.config.lock_delay_ms);
        let local = lock(&self.inner.local);
        let (mut unknown, mut free, mut held) = (Vec::new(), None, None);
        for number in numbers {
            let slot = Slot::of(&self.at, number);
            let Some(known) = local.known(&slot) else {
                unknown.push(slot);
                continue;
            };
            let Known::There(there) = known else { continue };
            let snapshot = &there.snapshot;
            match known.verdict(now, &mark, delay) {
                Some(Verdict::Mine) => return Look::Mine(slot, snapshot.clone()),
                Some(Verdict::Free) if free.is_none() => free = Some((slot, snapshot.clone())),
                Some(Verdict::Held { left }) if held.is_none_or(|(least, _)| left < least) => {
                    held = Some((left, snapshot.record.duration));
                }
                Some(Verdict::Free | Verdict::Held { .. } | Verdict::Terminating) | None => {}
            }
        }
        match (free, held) {
            _ if !unknown.is_empty() => Look::Unknown(unknown),
            (Some((slot, seen)), _) => Look::Free(slot, seen),
            (None, Some((left, duration))) => Look::Held(left, duration),
            (None, None) => Look::Gone,
        }
    }

    /// The slot where an earlier try of a hold may still land.
    fn tried(&self, hold: &HoldId) -> Option<Slot> {
        let open = lock(&self.inner.local).opened(hold)?;
        let seen = lock(&self.inner.local).seen(&open.slot);
        if let Some((seen, _)) = seen {
            self.inner.resolve(hold, &seen);
        }
        lock(&self.inner.local).opened(hold).map(|open| open.slot)
    }

    async fn read(&mut self, slots: &[Slot], head: &Waiter) {
        let budget = call_budget(&head.request.config);
        for slot in slots {
            match self.inner.read(slot, budget).await {
                Ok(seen) => self.inner.resolve(&head.request.hold, &seen),
                // It is known now that it is not there, and so that no earlier try can land.
                Err(BackendError::NotFound(_)) => {
                    let mut local = lock(&self.inner.local);
                    if local.opened(&head.request.hold).is_some_and(|open| open.slot == *slot) {
                        local.close(&head.request.hold);
                    }
                }
                Err(error) => {
                    tracing::debug!(at = %self.at, %error,
                        "a Lease could not be read for its waiters");
                    sleep(self.backoff.next_delay()).await;
                }
            }
        }
    }

    fn hand_over(&self, head: &Waiter, grant: Grant, since: holdfast_core::Stamp) {
        let request = &head.request;
        lock(&self.inner.local).leave(&self.at, &request.hold);
        let push = Push::Granted { grant: Grant { since: Some(since), ..grant } };
        if !self.inner.hub.send(&request.hold, push) {
            // Whoever waited went away in this very moment, and found only a ticket to withdraw.
            let (inner, at, request) = (self.inner.clone(), self.at.clone(), request.clone());
            let Some(own) = lock(&self.inner.local).own(&request.hold) else { return };
            tokio::spawn(async move {
                let (config, hold) = (&request.config, &request.hold);
                let ended = inner.end(&own.slot, config, hold, Duration::ZERO).await;
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
            self.inner.hub.send(&waiter.request.hold, Push::Requeue);
        }
    }
}

/// Keeps the record up to date until dropped.
async fn watch(inner: Arc<Inner>, slot: Slot) {
    let mut backoff = Backoff::new(Duration::from_millis(100), RETRY_CAP);
    let mut from = None;
    loop {
        let version = from
            .take()
            .or_else(|| lock(&inner.local).seen(&slot).map(|(seen, _)| seen.basis.version.clone()));
        let version = version.unwrap_or_else(|| AS_IT_IS.to_owned());
        let begun = Instant::now();
        let ended = follow(&inner, &slot, &version, &mut from).await;
        if begun.elapsed() > RETRY_CAP {
            backoff.reset();
        }
        if let Err(fault) = ended {
            tracing::debug!(lease = slot.name(), ?fault, "a Lease's watch ended");
            // The newest record may be older than all that the API server remembers.
            from = (fault == Fault::TooOld).then(|| AS_IT_IS.to_owned());
            sleep(backoff.next_delay()).await;
            // What is not found out here is told by the next watch.
            drop(inner.read(&slot, RETRY_CAP).await);
        }
    }
}

/// One watch, until it ends. `from` is where the next one goes on.
async fn follow(
    inner: &Inner,
    slot: &Slot,
    version: &str,
    from: &mut Option<String>,
) -> Result<(), Fault> {
    let mut events = inner.client.watch(&slot.at.namespace, &slot.name(), version).await?;
    while let Some(event) = events.next().await {
        let now = inner.clock.now();
        match event? {
            Seen::Lease(lease) => match Snapshot::of(&lease) {
                Ok(seen) => {
                    *from = Some(seen.basis.version.clone());
                    lock(&inner.local).note(slot, seen, News::Watched, now);
                }
                Err(error) => {
                    tracing::warn!(lease = slot.name(), %error, "a Lease that makes no sense")
                }
            },
            Seen::Deleted(version) => {
                let mut local = lock(&inner.local);
                // Perhaps it has been made again, and that is known already.
                let is_old =
                    local.seen(slot).is_some_and(|(seen, _)| older(&version, &seen.basis.version));
                if !is_old {
                    *from = None;
                    local.forget_record(slot);
                }
            }
            Seen::Bookmark(version) => *from = Some(version),
        }
    }
    Ok(())
}

/// What a contender adds to an expiry: up to a twentieth of the duration, at most half a second.
fn jitter(duration: Duration) -> Duration {
    let most = (duration / 20).min(Duration::from_millis(500));
    most.mul_f64(rand::random())
}
