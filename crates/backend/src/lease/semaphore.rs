//! Semaphores on Leases: one Lease is one permit. The trait, in terms of the transitions and the queue
//! that locks have; what is here and in [`search`] is only which slot.
//!
//! - A hold is one slot's record. A request is tried on one slot at a time: while the outcome of a
//!   write is open, no other slot is tried.
//! - No more can be held than there are slots: nobody counts, so nothing can be counted wrongly.
//! - The fence of a grant is a version that was written after its request was asked for
//!   ([`super::slot`]), so fences grow over all slots of a key.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, ClassName, Guarantee, HoldId, Key, Kind, SessionId, Substrate,
    lock::{
        Acquire, Attempt, Beat, HolderView, LockBackend, LockConfig, LockView, Release, Renewal,
        Which,
    },
    semaphore::{NAMED, slots::MAX_SLOTS},
};

use super::{
    LeaseLocks,
    grant::{Inner, TRIES},
    line::LOST_THE_RACE,
    record::Snapshot,
    slot::Slot,
};

mod search;

use search::Tried;

/// Semaphores whose permits are Lease objects.
///
/// # Guarantees
/// Those of [`LeaseLocks`], for each slot. The live holds of a key are never more than the slots that
/// the operator made. Fences grow over all slots: of two grants, the one that was asked for after the
/// other was made has the higher one.
///
/// # Caveats
/// Those of [`LeaseLocks`]; and a hold has one permit, since two slots would be two writes. A share is
/// counted by each process for its own sessions. Two grants that are asked for at the same time may
/// be made in the other order than that of their fences.
#[derive(Clone)]
pub struct LeaseSemaphores {
    inner: Arc<Inner>,
}

impl LeaseSemaphores {
    /// The semaphores beside some locks, with their client and their hub.
    pub fn beside(locks: &LeaseLocks) -> Arc<Self> {
        Arc::new(LeaseSemaphores { inner: locks.inner.clone() })
    }

    /// Takes holds as [`LockBackend::force_release_holds`], and adds each to the list as it is taken:
    /// the list is true whatever the call ends with, also when it is dropped half-way.
    ///
    /// # Errors
    /// [`BackendError`]; what has been taken stays taken.
    pub async fn force(
        &self,
        at: &Address,
        config: &LockConfig,
        which: Which,
        taken: &mut Vec<HolderView>,
    ) -> Result<(), BackendError> {
        let is_meant = |holder: &HolderView| which.takes(holder.fence);
        self.read(at, config, 0..MAX_SLOTS).await?;
        let meant = |(slot, seen): (Slot, Snapshot)| {
            let holder = self.inner.holder(&slot, config, &seen).filter(is_meant)?;
            Some((holder.fence, slot))
        };
        let mut slots: Vec<_> = self.records(at).into_iter().filter_map(meant).collect();
        slots.sort_by_key(|(fence, _)| *fence);
        for (_, slot) in slots {
            let forced = self.inner.force(&slot, config, |holder| holder.is_some_and(is_meant));
            match forced.await {
                Ok(holder) => taken.extend(holder),
                Err(BackendError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The view over all slots that there ever were: also those that a smaller class has no more.
    ///
    /// # Errors
    /// Those of [`LockBackend::query`].
    pub async fn query_all(
        &self,
        at: &Address,
        config: &LockConfig,
    ) -> Result<LockView, BackendError> {
        self.read(at, config, 0..MAX_SLOTS).await?;
        self.found(at, config)
    }

    /// The view of what has been read; an error if there was nothing.
    fn found(&self, at: &Address, config: &LockConfig) -> Result<LockView, BackendError> {
        if self.records(at).is_empty() {
            let what = format!("the operator has not created the Leases of {at} yet");
            return Err(BackendError::NotFound(what));
        }
        Ok(self.view(at, config))
    }

    async fn attempt(&self, at: &Address, request: &Acquire) -> Result<Attempt, BackendError> {
        // Two slots would be two writes, and half of a hold is none.
        if request.permits > 1 {
            return Ok(Attempt::TooMany { most: 1 });
        }
        let since = self.inner.clock.now();
        if let Some(answer) = self.inner.answer(at, request, since) {
            return Ok(answer);
        }
        let permits = request.config.permits.min(MAX_SLOTS);
        // Once for each key: from then on this process knows of every hold of its session.
        self.read(at, &request.config, self.unknown(at, permits)).await?;
        if let Some(slot) = self.known_slot_of(at, &request.hold)
            && let Some(answer) = self.tried_before(&slot, request).await?
        {
            return Ok(answer);
        }
        let Some(_asking) = self.inner.ask(at, request, true) else {
            let left = self.left(at, request, permits).unwrap_or(LOST_THE_RACE);
            return Ok(self.inner.stand_in_line(at, request, since, left));
        };
        for _ in 0..TRIES {
            match self.try_free(at, request, since).await? {
                Tried::Answered(attempt) => return Ok(attempt),
                Tried::Raced => continue,
                Tried::NoneFree => {}
            }
            // None is free as far as is known: what is known may be old.
            let stale = self.unchecked(at, permits, since);
            if stale.is_empty() {
                break;
            }
            self.read(at, &request.config, stale).await?;
        }
        let mut left = self.left(at, request, permits);
        if left.is_none() {
            // Of a class that was made smaller, all permits may be held on slots that are to go.
            self.read(at, &request.config, self.unknown(at, MAX_SLOTS)).await?;
            left = self.left(at, request, MAX_SLOTS);
        }
        match left {
            Some(left) => Ok(self.inner.stand_in_line(at, request, since, left)),
            None => Err(BackendError::NotFound(format!(
                "the operator has not created the Leases of {at} yet, or is deleting them"
            ))),
        }
    }

    fn view(&self, at: &Address, config: &LockConfig) -> LockView {
        let records = self.records(at);
        let holders =
            records.iter().filter_map(|(slot, seen)| self.inner.holder(slot, config, seen));
        let mut holders: Vec<HolderView> = holders.collect();
        // A fence is as old as its hold.
        holders.sort_by_key(|holder| holder.fence);
        let held = holders.len() as u32;
        let mut named = holders.into_iter().take(NAMED);
        LockView {
            holder: named.next(),
            others: named.collect(),
            holds: held,
            used: held,
            last_fence: records.iter().filter_map(|(_, seen)| seen.record.fence).max(),
            ..self.inner.line(at)
        }
    }
}

#[async_trait]
impl LockBackend for LeaseSemaphores {
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
        match self.slot_of(at, config, hold).await? {
            Some(slot) => self.inner.extend(&slot, config, hold, ttl).await,
            None => Ok(Renewal::Lost),
        }
    }

    async fn release(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<Release, BackendError> {
        match self.slot_of(at, config, hold).await? {
            Some(slot) => self.inner.end(&slot, config, hold, Duration::ZERO).await,
            None => Ok(Release::NotHeld),
        }
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
        match self.slot_of(at, config, hold).await? {
            Some(slot) => self.inner.end(&slot, config, hold, Duration::ZERO).await.map(drop),
            None => Ok(()),
        }
    }

    async fn beat(
        &self,
        at: &Address,
        _: &LockConfig,
        session: &SessionId,
    ) -> Result<Beat, BackendError> {
        Ok(self.inner.beat(at, session))
    }

    /// Holds on slots that the class has no more are seen where this process has them, or where one
    /// of the class's own is missing because of them.
    async fn query(&self, at: &Address, config: &LockConfig) -> Result<LockView, BackendError> {
        let permits = config.permits.min(MAX_SLOTS);
        self.read(at, config, 0..permits).await?;
        let is_missing = self.records(at).iter().filter(|(slot, _)| slot.number < permits).count()
            < permits as usize;
        if is_missing {
            self.read(at, config, permits..MAX_SLOTS).await?;
        }
        self.found(at, config)
    }

    async fn force_release_holds(
        &self,
        at: &Address,
        config: &LockConfig,
        which: Which,
    ) -> Result<Vec<HolderView>, BackendError> {
        let mut taken = Vec::new();
        self.force(at, config, which, &mut taken).await?;
        Ok(taken)
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
