//! Release with a neighbour in line: a hold that is passed on within its session before the store knows.
//! Why that is safe, and what it costs: docs/design/0009.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use holdfast_core::{
    Address, BackendError, Deadline, Fence, HoldId, Stamp,
    lock::{Fairness, Grant, LockConfig, Passed, Push, Release, Renewal},
    queue::Ticket,
};
use tokio::time::sleep;

use super::{Heir, LockClient, heir::Named};

/// What becomes of a hold that is released.
enum Way<'a> {
    /// It goes back to the store.
    Back,
    /// It was passed on; what the store says of that is to come.
    On(Arc<Ticket>, BoxFuture<'a, Result<Passed, BackendError>>),
    /// The store could not be asked, and nobody was told.
    Nowhere(BackendError),
}

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
        let Done { at, config, hold, .. } = *done;
        if let Some(release) = self.backend.release_now(at, config, hold, now) {
            return Ok(release);
        }
        match self.way(done, now) {
            Way::Back => {
                let early = self.lines.is_passing(at, hold);
                let (release, first) = self.backend.release_and_look(at, config, hold).await?;
                if release == Release::NotHeld {
                    self.not_overtaking(early, at, hold)?;
                }
                self.note_first(at, first);
                Ok(release)
            }
            Way::On(heir, passing) => {
                // Whoever waits is answered before whoever is done.
                tokio::task::yield_now().await;
                Ok(self.passed(done, &heir.hold, passing.await?))
            }
            Way::Nowhere(error) => Err(error),
        }
    }

    /// Decides what becomes of a hold, unless that was decided before; an heir is told.
    fn way<'a>(&'a self, done: &Done<'a>, now: Stamp) -> Way<'a> {
        let Done { at, config, hold, fence, .. } = *done;
        let mut named = done.heir.named();
        match &*named {
            Named::Nobody => return Way::Back,
            Named::Told(heir) => {
                let passing = self.backend.pass_on(at, config, hold, fence, heir.clone());
                return Way::On(heir.clone(), passing);
            }
            Named::Open => {}
        }
        let Some((heir, grant)) = self.next(done, now) else {
            *named = Named::Nobody;
            return Way::Back;
        };
        let heir = Arc::new(heir);
        let mut passing = self.backend.pass_on(at, config, hold, fence, heir.clone());
        match (&mut passing).now_or_never() {
            // On its way to the store before the heir can send anything.
            None => {
                self.hub.send(&heir.hold, Push::Granted { grant });
                *named = Named::Told(heir.clone());
                Way::On(heir, passing)
            }
            // It was not sent. Whoever has not been told may be granted the hold by the store.
            Some(Err(error)) => {
                self.lines.passed(at, &heir.hold);
                Way::Nowhere(error)
            }
            Some(passed) => {
                *named = Named::Told(heir.clone());
                Way::On(heir, std::future::ready(passed).boxed())
            }
        }
    }

    /// Renews a hold: as [`LockBackend::renew`](holdfast_core::lock::LockBackend::renew).
    ///
    /// # Errors
    /// [`BackendError`]. It is [`BackendError::Unavailable`] for an heir that the store has not heard
    /// of yet.
    pub async fn renew(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        ttl: Duration,
    ) -> Result<Renewal, BackendError> {
        let early = self.lines.is_passing(at, hold);
        let renewal = self.backend.renew(at, config, hold, ttl).await?;
        if renewal == Renewal::Lost {
            self.not_overtaking(early, at, hold)?;
        }
        Ok(renewal)
    }

    /// Refuses an answer of the store that is older than what an heir was told: on a connection that
    /// is made anew its calls may come before the one that it depends on. `early` is whether that one
    /// was open when the call began: its answer may have come since.
    fn not_overtaking(&self, early: bool, at: &Address, hold: &HoldId) -> Result<(), BackendError> {
        if early || self.lines.is_passing(at, hold) {
            let what = "the hold was passed on, and the store has not heard of it yet; try again";
            return Err(BackendError::Unavailable(what.into()));
        }
        Ok(())
    }

    /// A hold could not be released, and nothing more is tried: it runs out.
    pub fn give_up(self: &Arc<Self>, done: &Done<'_>, now: Stamp) {
        let Some(heir) = done.heir.told() else { return };
        let (this, at, config) = (self.clone(), done.at.clone(), done.config.clone());
        let left = done.deadline.remaining(now);
        tokio::spawn(async move {
            sleep(left).await;
            // The release may have been carried out all the same.
            if this.lines.passed(&at, &heir.hold) {
                this.see_to(&at, &config, &heir.hold);
            }
        });
    }

    /// Sees to what the store says of a hold that was passed on.
    fn passed(&self, done: &Done<'_>, heir: &HoldId, passed: Passed) -> Release {
        let Done { at, config, .. } = *done;
        if !self.lines.passed(at, heir) {
            // Not for the first time.
            return Release::Released;
        }
        if !passed.is_heirs {
            // The store has cancelled it.
            self.hub.send(heir, Push::Lost);
            return passed.release;
        }
        self.see_to(at, config, heir);
        self.note_first(at, passed.first);
        Release::Released
    }

    /// Sees to an heir that has a hold in the store, or may have.
    fn see_to(&self, at: &Address, config: &Arc<LockConfig>, heir: &HoldId) {
        // If it still waits, it was not told, or has asked again meanwhile: it is to ask once more.
        if !self.hub.send(heir, Push::Requeue) {
            // It ended before the store heard of it: nobody would release what it has there.
            self.settling.begin(at, config, heir);
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
        if !is_in_order || done.deadline.passed(now) {
            return None;
        }
        let fence = self.backend.fence_of_heir(at, done.fence)?;
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
