//! The transitions of a hold that there is: extend, end, force, settle. Each is one conditional write,
//! and a re-read when somebody else's write came first.

use std::time::Duration;

use holdfast_core::{
    Address, BackendError, Fence, HoldId, Stamp,
    lock::{HolderView, LockConfig, Push, Release, Renewal},
};

use super::{
    client::Fault,
    grant::{Inner, TRIES, ago, call_budget, held_for, is_held_by},
    local::{Open, Own},
    names,
    record::Snapshot,
    slot::Slot,
};
use crate::hub::lock;

impl Inner {
    /// Refuses a hold from now on, and takes back what is only known here or still on its way; whether
    /// nothing of it can be left in the store.
    pub(super) async fn withdraw(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<bool, BackendError> {
        let (own, open, had_ticket) = {
            let mut local = lock(&self.local);
            local.bury(hold, self.clock.now());
            let had_ticket = local.leave(at, hold);
            (local.own(hold), local.opened(hold), had_ticket)
        };
        match (own, open) {
            (None, Some(open)) => self.settle(&open.slot, config, hold, &open).await.map(|()| true),
            // Only ever a ticket: nothing of it has left this process.
            (None, None) => Ok(had_ticket),
            (Some(_), _) => Ok(false),
        }
    }

    /// Extends a hold: one write, and a re-read only if somebody else has written.
    pub(super) async fn extend(
        &self,
        slot: &Slot,
        config: &LockConfig,
        hold: &HoldId,
        ttl: Duration,
    ) -> Result<Renewal, BackendError> {
        let budget = renewal_budget(ttl);
        let mark = names::mark(hold.as_str());
        let known = lock(&self.local).own(hold);
        let mut own = match known {
            Some(own) => own,
            // A process that was restarted inside the hold's time finds it in the store.
            None => match self.find(slot, config, &mark, budget).await? {
                Some(own) => {
                    lock(&self.local).grant(hold, own.clone());
                    own
                }
                None => return Ok(Renewal::Lost),
            },
        };
        for _ in 0..TRIES {
            let sent = self.clock.now();
            let ttl = ttl.min(own.left_of_max(sent));
            // A Lease that is being deleted is drained: its hold is not extended any more.
            if own.is_over(sent) || own.terminating {
                lock(&self.local).end(hold);
                return Ok(Renewal::Lost);
            }
            match self.write(slot, &own.basis.renewal(ttl), budget).await? {
                Ok(written) => {
                    lock(&self.local).extend(hold, written.basis, sent, ttl);
                    return Ok(Renewal::Renewed { ttl });
                }
                Err(Fault::Conflict) => match self.find(slot, config, &mark, budget).await? {
                    Some(found) if found.fence == own.fence => {
                        own.basis = found.basis;
                        own.terminating = found.terminating;
                    }
                    _ => {
                        lock(&self.local).end(hold);
                        return Ok(Renewal::Lost);
                    }
                },
                Err(Fault::Gone) => {
                    lock(&self.local).end(hold);
                    return Ok(Renewal::Lost);
                }
                Err(fault) => return Err(fault.on(&slot.at.namespace, &slot.name())),
            }
        }
        Err(Fault::Conflict.on(&slot.at.namespace, &slot.name()))
    }

    /// The hold with this mark, if it is in the store and not ended.
    async fn find(
        &self,
        slot: &Slot,
        config: &LockConfig,
        mark: &str,
        budget: Duration,
    ) -> Result<Option<Own>, BackendError> {
        let seen = match self.read(slot, budget).await {
            Ok(seen) => seen,
            Err(BackendError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        if !is_held_by(&seen, mark) {
            return Ok(None);
        }
        let now = self.clock.now();
        Ok(seen.record.fence.map(|fence| Own {
            slot: slot.clone(),
            granted: ago(now, held_for(&seen)),
            extended: now,
            ttl: seen.record.duration,
            max_hold: Duration::from_millis(config.max_hold_ms),
            terminating: seen.record.terminating,
            basis: seen.basis,
            fence,
        }))
    }

    /// Ends a hold. Before `min_hold` is over its record stands on, for the rest of it.
    pub(super) async fn end(
        &self,
        slot: &Slot,
        config: &LockConfig,
        hold: &HoldId,
        min_hold: Duration,
    ) -> Result<Release, BackendError> {
        let (budget, mark) = (call_budget(config), names::mark(hold.as_str()));
        let mut own = lock(&self.local).own(hold);
        let fence = own.as_ref().map(|own| own.fence);
        for _ in 0..TRIES {
            let current = match own.take() {
                Some(own) => own,
                None => match self.find(slot, config, &mark, budget).await? {
                    Some(own) => own,
                    None => {
                        lock(&self.local).end(hold);
                        return Ok(self.was_ended(slot, fence));
                    }
                },
            };
            let now = self.clock.now();
            if current.is_over(now) {
                // Over by its own clocks: others count it as expired, and so does its lock delay.
                lock(&self.local).end(hold);
                return Ok(Release::NotHeld);
            }
            let rest = min_hold.saturating_sub(since_boot(current.granted, now));
            let body = match rest {
                Duration::ZERO => current.basis.release(),
                rest => current.basis.stand(rest),
            };
            match self.write(slot, &body, budget).await? {
                Ok(_) => {
                    lock(&self.local).end(hold);
                    return Ok(Release::Released);
                }
                Err(Fault::Conflict) => {}
                Err(Fault::Gone) => {
                    lock(&self.local).end(hold);
                    return Ok(Release::NotHeld);
                }
                Err(fault) => return Err(fault.on(&slot.at.namespace, &slot.name())),
            }
        }
        Err(Fault::Conflict.on(&slot.at.namespace, &slot.name()))
    }

    /// Of a hold that is not there any more: whether it was ended in good order. An unheld record
    /// that still has its fence was released, by an earlier try of whoever asks (nobody else can);
    /// force would have raised the fence, and a new holder too.
    fn was_ended(&self, slot: &Slot, fence: Option<Fence>) -> Release {
        match lock(&self.local).seen(slot) {
            Some((seen, _)) if fence.is_some() && seen.record.fence == fence => Release::Released,
            _ => Release::NotHeld,
        }
    }

    /// Takes a hold from whoever has it, if it is the one that is meant. What it wrote as a fence is
    /// higher than the hold's. Returns whom it was taken from, also when that is known only by what
    /// is read after a write whose answer was lost.
    pub(super) async fn force(
        &self,
        slot: &Slot,
        config: &LockConfig,
        is_meant: impl Fn(Option<&HolderView>) -> bool,
    ) -> Result<Option<HolderView>, BackendError> {
        let budget = call_budget(config);
        // Unknown from the first write on that was perhaps carried out, and that nobody saw.
        let (mut failed, mut meant) = (Fault::Conflict, None);
        // The state that a write of unknown outcome was based on, and who held then.
        let mut open: Option<(Snapshot, Option<HolderView>)> = None;
        for _ in 0..TRIES {
            let seen = self.read(slot, budget).await?;
            if let Some((before, holder)) = open.take()
                && seen.is_after_force_on(&before)
            {
                self.tell_lost(&before);
                return Ok(holder);
            }
            let holder = self.holder(slot, config, &seen);
            let fence = holder.as_ref().map(|holder| holder.fence);
            let is_unsure = matches!(failed, Fault::Unknown(_));
            let is_another = is_unsure && fence != meant;
            if seen.record.mark.is_none() || is_another || !is_meant(holder.as_ref()) {
                // Whoever was there is not: because of that write, or for another reason.
                return match is_unsure {
                    true => Err(failed.on(&slot.at.namespace, &slot.name())),
                    false => Ok(None),
                };
            }
            meant = fence;
            match self.write(slot, &seen.basis.force(), budget).await? {
                Ok(_) => {
                    self.tell_lost(&seen);
                    return Ok(holder);
                }
                Err(Fault::Conflict) => {}
                Err(fault @ Fault::Unknown(_)) => (failed, open) = (fault, Some((seen, holder))),
                Err(fault) => return Err(fault.on(&slot.at.namespace, &slot.name())),
            }
        }
        Err(failed.on(&slot.at.namespace, &slot.name()))
    }

    /// Tells the holder that its hold was taken, if it is here. Elsewhere it learns it with its next
    /// renewal.
    fn tell_lost(&self, before: &Snapshot) {
        let mark = before.record.mark.as_deref().unwrap_or_default();
        let mine = lock(&self.local).by_mark(mark);
        if let Some(hold) = mine {
            lock(&self.local).end(&hold);
            self.hub.send(&hold, Push::Lost);
        }
    }

    /// Makes sure that an open write of a hold is not carried out any more, or undoes it. A plain
    /// re-read proves nothing: the write may still be on its way. A write of our own on the same
    /// basis does: only one of the two can apply.
    pub(super) async fn settle(
        &self,
        slot: &Slot,
        config: &LockConfig,
        hold: &HoldId,
        open: &Open,
    ) -> Result<(), BackendError> {
        let body = open.basis.settlement();
        match self.write(slot, &body, call_budget(config)).await? {
            Ok(_) | Err(Fault::Gone) => {
                lock(&self.local).close(hold);
                Ok(())
            }
            Err(Fault::Conflict) => {
                // The basis is gone, so the open write has applied or never will.
                self.end(slot, config, hold, Duration::ZERO).await?;
                lock(&self.local).close(hold);
                Ok(())
            }
            Err(fault) => Err(fault.on(&slot.at.namespace, &slot.name())),
        }
    }
}

/// A renewal must leave time for another one.
fn renewal_budget(ttl: Duration) -> Duration {
    (ttl / 6).clamp(Duration::from_millis(100), Duration::from_secs(5))
}

fn since_boot(earlier: Stamp, now: Stamp) -> Duration {
    Duration::from_nanos(now.boot_ns.saturating_sub(earlier.boot_ns))
}
