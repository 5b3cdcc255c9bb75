//! Release with a neighbour in line: a hold that is passed on within its session before the store knows.
//! Why that is safe, and what it costs: docs/design/0009.

use std::{
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use futures::poll;
use holdfast_core::{
    Address, BackendError, Deadline, Fence, HoldId, Kind, Stamp,
    lock::{Fairness, Grant, LockConfig, Passed, Push, Release},
    queue::Ticket,
};

use super::{LockClient, settle};

/// Whom a hold is passed on to when it is released, if anybody. Decided once for each hold, by whoever
/// releases it first: two heirs would have one fence.
pub type Heir = OnceLock<Option<Box<Ticket>>>;

/// A hold that its holder is done with, as the holder knows it.
pub struct Done<'a> {
    /// What it holds.
    pub at: &'a Address,
    /// Its class.
    pub config: &'a Arc<LockConfig>,
    /// Its name.
    pub hold: &'a HoldId,
    /// Its fencing token.
    pub fence: Fence,
    /// What the store granted last.
    pub ttl: Duration,
    /// Until when it may be trusted.
    pub deadline: Deadline,
    /// Whom it is passed on to.
    pub heir: &'a Heir,
}

impl LockClient {
    /// Releases a hold. Where a waiter of this session is next, it has the hold at once, and the store
    /// is told then (docs/design/0009).
    ///
    /// # Errors
    /// [`BackendError`], and then the outcome is open: try again.
    pub async fn release(&self, done: &Done<'_>, now: Stamp) -> Result<Release, BackendError> {
        let Done { at, config, hold, fence, .. } = *done;
        if let Some(release) = self.backend.release_now(at, config, hold, now) {
            return Ok(release);
        }
        let mut news = None;
        let decide = || {
            let (heir, grant) = self.next(done, now)?;
            news = Some(grant);
            Some(Box::new(heir))
        };
        let Some(heir) = done.heir.get_or_init(decide) else {
            let (release, first) = self.backend.release_and_look(at, config, hold).await?;
            self.note_first(at, first);
            return Ok(release);
        };
        let mut passing = self.backend.pass_on(at, config, hold, fence, heir);
        let passed = match news {
            // Told before.
            None => passing.await?,
            Some(grant) => match poll!(&mut passing) {
                Poll::Ready(passed) => passed?,
                // On its way to the store before the heir can send anything.
                Poll::Pending => {
                    self.hub.send(&heir.hold, Push::Granted { grant });
                    // Whoever waits is answered before whoever is done.
                    tokio::task::yield_now().await;
                    passing.await?
                }
            },
        };
        Ok(self.passed(done, &heir.hold, passed))
    }

    /// A hold could not be released until it had run out: nothing more is tried.
    pub fn give_up(&self, done: &Done<'_>) {
        if let Some(Some(heir)) = done.heir.get() {
            self.lines.passed(done.at, &heir.hold);
            self.forget_ended(done, &heir.hold);
        }
    }

    /// Sees to what the store says of a hold that was passed on.
    fn passed(&self, done: &Done<'_>, heir: &HoldId, passed: Passed) -> Release {
        let still_waits = self.lines.passed(done.at, heir);
        if !passed.is_heirs {
            // The store has cancelled it.
            self.hub.send(heir, Push::Lost);
            return passed.release;
        }
        if still_waits {
            // It was not told, or has asked again meanwhile: it is to ask once more.
            self.hub.send(heir, Push::Requeue);
        }
        self.forget_ended(done, heir);
        self.note_first(done.at, passed.first);
        Release::Released
    }

    /// An heir that ended before the store heard of it: nobody would release what it has there.
    fn forget_ended(&self, done: &Done<'_>, heir: &HoldId) {
        if self.hub.users(heir) == 0 {
            drop(settle(self.backend.clone(), done.at, done.config, heir));
        }
    }

    fn note_first(&self, at: &Address, first: Option<HoldId>) {
        if let Some(first) = first {
            self.lines.note_first(at, first);
        }
    }

    /// Who may have a hold next without waiting for the store, and what it has then.
    fn next(&self, done: &Done<'_>, now: Stamp) -> Option<(Ticket, Grant)> {
        let Done { at, config, .. } = *done;
        let is_in_order = config.fairness == Fairness::Fifo && config.min_hold_ms == 0;
        if at.kind != Kind::Lock || !is_in_order || done.deadline.passed(now) {
            return None;
        }
        let fence = self.backend.fence_of_heir(done.fence)?;
        let heir = self.lines.take_first(at)?;
        if heir.hold == *done.hold {
            self.lines.passed(at, &heir.hold);
            return None;
        }
        let granted_ms = match heir.max_hold_ms {
            0 => heir.ttl_ms,
            most => heir.ttl_ms.min(most),
        };
        // Until the store has heard of it the old hold stands for it, and after that its own, which
        // may be shorter: what ends first counts.
        let own = Deadline::new(now, Duration::from_millis(granted_ms));
        let is_shorter = own.remaining(now) < done.deadline.remaining(now);
        let (since, ttl) = if is_shorter {
            (now, Duration::from_millis(granted_ms))
        } else {
            (done.deadline.since(), done.ttl)
        };
        Some((heir, Grant { fence, ttl, claimed: false, since: Some(since) }))
    }
}
