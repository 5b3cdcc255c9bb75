//! Locks on Leases: the trait, in terms of the transitions in [`super::grant`] and [`super::hold`], and
//! of the queue that [`super::turn`] serves.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, ClassName, Clock, Fence, Guarantee, HoldId, Holder, Key, Kind,
    SessionId, Substrate,
    lock::{
        Acquire, Attempt, Beat, HolderView, LockBackend, LockConfig, LockView, Release, Renewal,
        Which, record::Verdict,
    },
};

use super::{
    client::LeaseClient,
    grant::{Inner, TRIES, Taken, call_budget, held_for},
    line::LOST_THE_RACE,
    local::Local,
    names,
    record::Snapshot,
    slot::Slot,
};
use crate::hub::{Hub, lock};

/// Locks whose holds are Lease objects.
///
/// # Guarantees
/// Those of [`LockBackend`], by etcd's consensus: every grant is a write that is conditional on the
/// state it was decided on. Grants overlap only if clocks run more than 10 % apart.
///
/// # Caveats
/// First come, first served holds among the waiters of *one* process. Between processes whoever's
/// write lands first is granted. Limits on waiters, and the queue in a view, are of this process.
/// Records count whole seconds, rounded up.
#[derive(Clone)]
pub struct LeaseLocks {
    pub(super) inner: Arc<Inner>,
}

impl LeaseLocks {
    /// Locks on the Leases that a client reaches. Waiters are told through `hub`.
    pub fn new(client: LeaseClient, hub: Arc<Hub>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let inner = Inner { client, hub, clock, local: Local::default().into() };
        Arc::new(LeaseLocks { inner: Arc::new(inner) })
    }

    /// A record that is known to have been free, unless somebody has written since: good enough to
    /// try, since the write is conditional on it. Saves the read of an uncontended lock.
    fn free_hint(&self, slot: &Slot, hold: &HoldId) -> Option<Snapshot> {
        let local = lock(&self.inner.local);
        if local.opened(hold).is_some() || local.own(hold).is_some() {
            return None;
        }
        let (seen, _) = local.seen(slot)?;
        (seen.record.mark.is_none() && !seen.record.terminating).then_some(seen)
    }

    fn verdict(&self, slot: &Slot, request: &Acquire) -> Option<Verdict> {
        let delay = Duration::from_millis(request.config.lock_delay_ms);
        let mark = names::mark(request.hold.as_str());
        lock(&self.inner.local).known(slot)?.verdict(self.inner.clock.now(), &mark, delay)
    }

    async fn attempt(&self, at: &Address, request: &Acquire) -> Result<Attempt, BackendError> {
        let since = self.inner.clock.now();
        if let Some(answer) = self.inner.answer(at, request, since) {
            return Ok(answer);
        }
        let slot = Slot::only(at);
        let mut hint = self.free_hint(&slot, &request.hold);
        for _ in 0..TRIES {
            let taken = match hint.take() {
                Some(seen) => self.inner.take(&slot, request, &seen).await?,
                None => {
                    let seen = self.inner.read(&slot, call_budget(&request.config)).await?;
                    self.inner.resolve(&request.hold, &seen);
                    match self.verdict(&slot, request) {
                        Some(Verdict::Free) => self.inner.take(&slot, request, &seen).await?,
                        Some(Verdict::Mine) => self.inner.adopt(&slot, request, &seen).await?,
                        Some(Verdict::Held { left }) => {
                            return Ok(self.inner.stand_in_line(at, request, since, left));
                        }
                        Some(Verdict::Terminating) => {
                            let name = slot.name();
                            let what = format!("Lease \"{name}\" is being deleted with its class");
                            return Err(BackendError::NotFound(what));
                        }
                        // Deleted since it was read.
                        None => continue,
                    }
                }
            };
            match taken {
                Taken::Granted(grant, _) => return Ok(Attempt::Granted(grant)),
                Taken::Cancelled => return Ok(Attempt::Cancelled),
                Taken::Raced => {}
            }
        }
        Ok(self.inner.stand_in_line(at, request, since, LOST_THE_RACE))
    }

    fn view(&self, slot: &Slot, config: &LockConfig, seen: &Snapshot) -> LockView {
        let holder = self.inner.holder(slot, config, seen);
        let held = u32::from(holder.is_some());
        LockView {
            holder,
            holds: held,
            used: held,
            last_fence: seen.record.fence,
            ..self.inner.line(&slot.at)
        }
    }
}

impl Inner {
    /// The holder that a record shows; none if it is unheld or has expired.
    pub(super) fn holder(
        &self,
        slot: &Slot,
        config: &LockConfig,
        seen: &Snapshot,
    ) -> Option<HolderView> {
        let delay = Duration::from_millis(config.lock_delay_ms);
        let known = lock(&self.local).seen(slot);
        let left = known.map(|(_, sighting)| sighting.left(self.clock.now(), delay));
        holder_of(seen, left.unwrap_or(seen.record.duration))
    }
}

/// The holder that a record shows; none if it is unheld or has expired.
fn holder_of(seen: &Snapshot, left: Duration) -> Option<HolderView> {
    if seen.record.mark.is_none() || seen.record.released || left.is_zero() {
        return None;
    }
    let unknown = || Holder::new("unknown").ok();
    Some(HolderView {
        holder: Holder::new(&seen.holder).ok().or_else(unknown)?,
        fence: seen.record.fence.unwrap_or(Fence::new(0)),
        ttl: left,
        held_for: held_for(seen),
        permits: 1,
    })
}

#[async_trait]
impl LockBackend for LeaseLocks {
    fn substrate(&self) -> Substrate {
        Substrate::Lease
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::Consensus
    }

    async fn acquire(&self, at: &Address, request: &Acquire) -> Result<Attempt, BackendError> {
        let attempt = self.attempt(at, request).await;
        attempt.map_err(|error| self.inner.or_unknown(&request.hold, error))
    }

    async fn renew(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        ttl: Duration,
    ) -> Result<Renewal, BackendError> {
        self.inner.extend(&Slot::only(at), config, hold, ttl).await
    }

    async fn release(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<Release, BackendError> {
        self.inner
            .end(&Slot::only(at), config, hold, Duration::from_millis(config.min_hold_ms))
            .await
    }

    async fn cancel(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError> {
        if self.inner.withdraw(at, config, hold).await? {
            return Ok(());
        }
        self.inner.end(&Slot::only(at), config, hold, Duration::ZERO).await.map(drop)
    }

    async fn beat(
        &self,
        at: &Address,
        _: &LockConfig,
        session: &SessionId,
    ) -> Result<Beat, BackendError> {
        Ok(self.inner.beat(at, session))
    }

    async fn query(&self, at: &Address, config: &LockConfig) -> Result<LockView, BackendError> {
        let slot = Slot::only(at);
        let seen = self.inner.read(&slot, call_budget(config)).await?;
        Ok(self.view(&slot, config, &seen))
    }

    /// A quorum read. A revision never goes back, so a Lease that was deleted and made again needs no
    /// more: whoever holds it has a higher one than all before.
    async fn newest_fence(&self, at: &Address, config: &LockConfig) -> Result<Fence, BackendError> {
        let seen = self.inner.read(&Slot::only(at), call_budget(config)).await?;
        Ok(seen.record.fence.unwrap_or(Fence::new(0)))
    }

    async fn force_release_holds(
        &self,
        at: &Address,
        config: &LockConfig,
        which: Which,
    ) -> Result<Vec<HolderView>, BackendError> {
        let is_meant = |holder: Option<&HolderView>| {
            which == Which::All || holder.is_some_and(|holder| which.takes(holder.fence))
        };
        let taken = self.inner.force(&Slot::only(at), config, is_meant).await?;
        Ok(taken.into_iter().collect())
    }

    async fn list(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
        config: &LockConfig,
        limit: usize,
    ) -> Result<Vec<(Key, LockView)>, BackendError> {
        self.inner.list(self, (kind, namespace, class), config, limit).await
    }
}
