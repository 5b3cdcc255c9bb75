//! Locks on Leases: the trait, in terms of the transitions in [`super::grant`] and the queue that
//! [`super::turn`] serves.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, ClassName, Clock, Fence, Guarantee, HoldId, Holder, Key, Kind,
    SessionId, Substrate,
    lock::{
        Acquire, Attempt, Beat, Fairness, HolderView, Keys, LockBackend, LockConfig, LockView,
        Push, Release, Renewal, record::Verdict,
    },
};

use super::{
    client::{Fault, LeaseClient},
    grant::{Inner, TRIES, Taken, call_budget, held_for, name_of},
    local::Local,
    names,
    record::Snapshot,
    turn,
};
use crate::hub::{Hub, lock};

/// After how long a contender that lost every race, and did not want to queue, may ask again.
const LOST_THE_RACE: Duration = Duration::from_millis(100);
/// Nothing changes by itself where no store is asked.
const NOTHING_TO_COME: Duration = Duration::from_secs(60);

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
    inner: Arc<Inner>,
}

impl LeaseLocks {
    /// Locks on the Leases that a client reaches. Waiters are told through `hub`.
    pub fn new(client: LeaseClient, hub: Arc<Hub>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let inner = Inner { client, hub, clock, local: Local::default().into() };
        Arc::new(LeaseLocks { inner: Arc::new(inner) })
    }

    /// The answer that needs no store, if there is one.
    fn answer(&self, at: &Address, request: &Acquire) -> Option<Attempt> {
        let local = lock(&self.inner.local);
        if local.is_buried(&request.hold) {
            return Some(Attempt::Cancelled);
        }
        if let Some(position) = local.position(at, &request.hold) {
            return Some(Attempt::Queued { position });
        }
        let is_behind = request.config.fairness == Fairness::Fifo
            && local.waiters(at).next().is_some()
            && local.own(&request.hold).is_none()
            && local.opened(&request.hold).is_none();
        drop(local);
        is_behind.then(|| self.stand_in_line(at, request, LOST_THE_RACE))
    }

    /// Queues, or says why not.
    fn stand_in_line(&self, at: &Address, request: &Acquire, left: Duration) -> Attempt {
        let mut local = lock(&self.inner.local);
        if local.is_buried(&request.hold) {
            return Attempt::Cancelled;
        }
        if let Some(position) = local.position(at, &request.hold) {
            return Attempt::Queued { position };
        }
        let place = local.place(at);
        let waiters = place.queue.len() as u32;
        if !request.enqueue {
            return Attempt::Locked { retry_after: left, waiters };
        }
        if waiters >= request.config.max_waiters {
            return Attempt::QueueFull { waiters };
        }
        place.queue.push_back(request.clone());
        if !place.served {
            place.served = true;
            tokio::spawn(turn::serve(self.inner.clone(), at.clone()));
        }
        Attempt::Queued { position: waiters + 1 }
    }

    /// A record that is known to have been free, unless somebody has written since: good enough to
    /// try, since the write is conditional on it. Saves the read of an uncontended lock.
    fn free_hint(&self, at: &Address, hold: &HoldId) -> Option<Snapshot> {
        let local = lock(&self.inner.local);
        if local.opened(hold).is_some() || local.own(hold).is_some() {
            return None;
        }
        let (seen, _) = local.seen(at)?;
        (seen.record.mark.is_none() && !seen.record.terminating).then_some(seen)
    }

    fn verdict(&self, at: &Address, request: &Acquire) -> Option<Verdict> {
        let delay = Duration::from_millis(request.config.lock_delay_ms);
        let mark = names::mark(request.hold.as_str());
        let (_, sighting) = lock(&self.inner.local).seen(at)?;
        Some(sighting.verdict(self.inner.clock.now(), Some(&mark), delay))
    }

    fn view(&self, at: &Address, config: &LockConfig, seen: &Snapshot) -> LockView {
        let local = lock(&self.inner.local);
        let delay = Duration::from_millis(config.lock_delay_ms);
        let left = local.seen(at).map(|(_, sighting)| sighting.left(self.inner.clock.now(), delay));
        let holder = holder_of(seen, left.unwrap_or(seen.record.duration));
        let held = u32::from(holder.is_some());
        LockView {
            holder,
            others: Vec::new(),
            holds: held,
            used: held,
            waiters: local.waiters(at).count() as u32,
            queue: local.waiters(at).take(10).map(|waiter| waiter.holder.clone()).collect(),
            last_fence: seen.record.fence,
        }
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
        if let Some(answer) = self.answer(at, request) {
            return Ok(answer);
        }
        let mut hint = self.free_hint(at, &request.hold);
        for _ in 0..TRIES {
            let taken = match hint.take() {
                Some(seen) => self.inner.take(at, request, &seen).await?,
                None => {
                    let seen = self.inner.read(at, call_budget(&request.config)).await?;
                    self.inner.resolve(&request.hold, &seen);
                    match self.verdict(at, request) {
                        Some(Verdict::Free) => self.inner.take(at, request, &seen).await?,
                        Some(Verdict::Mine) => self.inner.adopt(at, request, &seen).await?,
                        Some(Verdict::Held { left }) => {
                            return Ok(self.stand_in_line(at, request, left));
                        }
                        Some(Verdict::Terminating) => {
                            let name = name_of(at);
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
        Ok(self.stand_in_line(at, request, LOST_THE_RACE))
    }

    async fn renew(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        ttl: Duration,
    ) -> Result<Renewal, BackendError> {
        self.inner.extend(at, config, hold, ttl).await
    }

    async fn release(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<Release, BackendError> {
        self.inner.end(at, config, hold, Duration::from_millis(config.min_hold_ms)).await
    }

    async fn cancel(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError> {
        let (own, open, had_ticket) = {
            let mut local = lock(&self.inner.local);
            local.bury(hold, self.inner.clock.now());
            let had_ticket = local.leave(at, hold);
            (local.own(hold), local.opened(hold), had_ticket)
        };
        match (own, open) {
            (None, Some(open)) => self.inner.settle(at, config, hold, &open).await,
            // Only ever a ticket: nothing of it has left this process.
            (None, None) if had_ticket => Ok(()),
            _ => self.inner.end(at, config, hold, Duration::ZERO).await.map(drop),
        }
    }

    async fn beat(
        &self,
        at: &Address,
        _: &LockConfig,
        session: &SessionId,
    ) -> Result<Beat, BackendError> {
        let local = lock(&self.inner.local);
        let fence = local.seen(at).and_then(|(seen, _)| seen.record.fence);
        Ok(Beat {
            offered: Vec::new(),
            tickets: local.tickets(at, session),
            next: NOTHING_TO_COME,
            last_fence: fence.unwrap_or(Fence::new(0)),
        })
    }

    async fn query(&self, at: &Address, config: &LockConfig) -> Result<LockView, BackendError> {
        let seen = self.inner.read(at, call_budget(config)).await?;
        Ok(self.view(at, config, &seen))
    }

    /// A quorum read. A revision never goes back, so a Lease that was deleted and made again needs no
    /// more: whoever holds it has a higher one than all before.
    async fn newest_fence(&self, at: &Address, config: &LockConfig) -> Result<Fence, BackendError> {
        let seen = self.inner.read(at, call_budget(config)).await?;
        Ok(seen.record.fence.unwrap_or(Fence::new(0)))
    }

    async fn force_release(
        &self,
        at: &Address,
        config: &LockConfig,
    ) -> Result<Option<HolderView>, BackendError> {
        let budget = call_budget(config);
        for _ in 0..TRIES {
            let seen = self.inner.read(at, budget).await?;
            let holder = self.view(at, config, &seen).holder;
            if seen.record.mark.is_none() {
                return Ok(None);
            }
            match self.inner.write(at, &seen.basis.force(), budget).await? {
                Ok(_) => {
                    // Holders elsewhere learn it with their next renewal.
                    let mark = seen.record.mark.unwrap_or_default();
                    let mine = lock(&self.inner.local).by_mark(&mark);
                    if let Some(hold) = mine {
                        lock(&self.inner.local).end(&hold);
                        self.inner.hub.send(&hold, Push::Lost);
                    }
                    return Ok(holder);
                }
                Err(Fault::Conflict) => {}
                Err(fault) => return Err(fault.on(&at.namespace, &name_of(at))),
            }
        }
        Err(Fault::Conflict.on(&at.namespace, &name_of(at)))
    }

    /// A Role with `resourceNames` lets nobody list by label, so each key of the class is read.
    async fn list(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
        config: &LockConfig,
        limit: usize,
    ) -> Result<Vec<(Key, LockView)>, BackendError> {
        let address =
            |key: Key| Address { kind, namespace: namespace.into(), class: class.clone(), key };
        let keys = match &config.keys {
            Keys::Fixed(keys) => keys.iter().cloned().map(address).collect(),
            Keys::Any => lock(&self.inner.local)
                .known(|at| at.kind == kind && *at.namespace == *namespace && at.class == *class),
        };
        let mut found = Vec::new();
        for at in keys {
            if found.len() >= limit {
                break;
            }
            let view = match self.query(&at, config).await {
                Ok(view) => view,
                Err(BackendError::NotFound(_)) => continue,
                Err(error) => return Err(error),
            };
            if view.holder.is_some() || view.waiters > 0 {
                found.push((at.key, view));
            }
        }
        Ok(found)
    }
}
