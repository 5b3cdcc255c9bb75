//! The transitions of one Lease: take, adopt, extend, end, settle. Each is one conditional write, and
//! a re-read when somebody else's write came first.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    Address, BackendError, Clock, Fence, HoldId, Stamp,
    lock::{Acquire, Grant, LockConfig, Release, Renewal},
};
use jiff::Timestamp;

use super::{
    client::{Fault, LeaseClient},
    local::{Local, Open, Own},
    names,
    record::{Claim, Snapshot},
};
use crate::hub::{Hub, lock};

/// Tries of one transition against other writers, before it gives up.
pub(super) const TRIES: usize = 4;

/// What all parts of the Lease substrate share.
pub(super) struct Inner {
    pub client: LeaseClient,
    pub hub: Arc<Hub>,
    pub clock: Arc<dyn Clock>,
    pub local: std::sync::Mutex<Local>,
}

/// The outcome of a write that takes the lock.
pub(super) enum Taken {
    /// Granted; the stamp was read before the write was sent.
    Granted(Grant, Stamp),
    /// Somebody else's write came first.
    Raced,
    /// The hold was cancelled meanwhile.
    Cancelled,
}

impl Inner {
    /// Reads the newest record and notes it.
    pub(super) async fn read(
        &self,
        at: &Address,
        budget: Duration,
    ) -> Result<Snapshot, BackendError> {
        let name = name_of(at);
        match self.client.get(&at.namespace, &name, budget).await {
            Ok(lease) => {
                let snapshot = Snapshot::of(&lease)?;
                lock(&self.local).note(at, snapshot.clone(), self.clock.now());
                Ok(snapshot)
            }
            Err(fault) => {
                if fault == Fault::Gone {
                    lock(&self.local).forget_record(at);
                }
                Err(fault.on(&at.namespace, &name))
            }
        }
    }

    /// Writes; what the API server answers is noted.
    pub(super) async fn write(
        &self,
        at: &Address,
        body: &serde_json::Value,
        budget: Duration,
    ) -> Result<Result<Snapshot, Fault>, BackendError> {
        match self.client.patch(&at.namespace, &name_of(at), body, budget).await {
            Ok(lease) => {
                let snapshot = Snapshot::of(&lease)?;
                lock(&self.local).note(at, snapshot.clone(), self.clock.now());
                Ok(Ok(snapshot))
            }
            Err(fault) => Ok(Err(fault)),
        }
    }

    /// Closes an open write of a hold that this newer record shows not to have been carried out.
    pub(super) fn resolve(&self, hold: &HoldId, seen: &Snapshot) {
        let mut local = lock(&self.local);
        let is_past = local.opened(hold).is_some_and(|open| open.basis != seen.basis);
        if is_past && !is_held_by(seen, &names::mark(hold.as_str())) {
            local.close(hold);
        }
    }

    /// Takes a lock that was seen free. The caller has made sure that it may.
    pub(super) async fn take(
        &self,
        at: &Address,
        request: &Acquire,
        seen: &Snapshot,
    ) -> Result<Taken, BackendError> {
        let fence = seen.next_fence(request.config.fence_floor)?;
        let ttl = match request.max_hold {
            Duration::ZERO => request.ttl,
            max => request.ttl.min(max),
        };
        let mark = names::mark(request.hold.as_str());
        let session = names::mark(request.session.as_str());
        let claim = Claim { holder: request.holder.as_str(), mark: &mark, session: &session, ttl };
        let body = seen.grant(&claim);
        // Before the first byte is sent; and entered, so that a caller that goes away can settle it.
        let sent = self.clock.now();
        if !lock(&self.local).open(&request.hold, &seen.basis, sent) {
            return Ok(Taken::Cancelled);
        }
        match self.write(at, &body, call_budget(&request.config)).await? {
            Ok(written) => {
                let own = Own {
                    basis: written.basis,
                    fence,
                    granted: sent,
                    extended: sent,
                    ttl,
                    max_hold: request.max_hold,
                    terminating: false,
                };
                if !lock(&self.local).grant(&request.hold, own) {
                    return Ok(Taken::Cancelled);
                }
                Ok(Taken::Granted(Grant { fence, ttl, claimed: true }, sent))
            }
            // Perhaps an earlier try of this very write: the caller re-reads and finds out.
            Err(Fault::Conflict) => Ok(Taken::Raced),
            Err(fault) => {
                if !matches!(fault, Fault::Unknown(_)) && !self.was_tried_before(request, sent) {
                    lock(&self.local).close(&request.hold);
                }
                Err(fault.on(&at.namespace, &name_of(at)))
            }
        }
    }

    /// Whether an earlier write of the same hold on the same basis is still open.
    fn was_tried_before(&self, request: &Acquire, sent: Stamp) -> bool {
        lock(&self.local).opened(&request.hold).is_some_and(|open| open.sent != sent)
    }

    /// Makes a hold that an earlier request got this request's, by extending it: the caller counts
    /// from now on, so the record must too. None when it is not there any more.
    pub(super) async fn adopt(
        &self,
        at: &Address,
        request: &Acquire,
        seen: &Snapshot,
    ) -> Result<Taken, BackendError> {
        let Some(fence) = seen.record.fence else {
            return Err(BackendError::Internal(format!("a held Lease without a fence at {at}")));
        };
        let sent = self.clock.now();
        let granted = {
            let local = lock(&self.local);
            if local.is_buried(&request.hold) {
                return Ok(Taken::Cancelled);
            }
            let known = local.own(&request.hold).map(|own| own.granted);
            known.or(local.opened(&request.hold).map(|open| open.sent))
        };
        let own = Own {
            basis: seen.basis.clone(),
            fence,
            granted: granted.unwrap_or_else(|| ago(sent, held_for(seen))),
            extended: sent,
            ttl: request.ttl,
            max_hold: request.max_hold,
            terminating: false,
        };
        let ttl = request.ttl.min(own.left_of_max(sent));
        if ttl.is_zero() {
            return Ok(Taken::Raced);
        }
        match self.write(at, &seen.basis.renewal(ttl), call_budget(&request.config)).await? {
            Ok(written) => {
                let own = Own { basis: written.basis, ttl, ..own };
                if !lock(&self.local).grant(&request.hold, own) {
                    return Ok(Taken::Cancelled);
                }
                Ok(Taken::Granted(Grant { fence, ttl, claimed: true }, sent))
            }
            Err(Fault::Conflict) => Ok(Taken::Raced),
            Err(fault) => Err(fault.on(&at.namespace, &name_of(at))),
        }
    }

    /// Extends a hold: one write, and a re-read only if somebody else has written.
    pub(super) async fn extend(
        &self,
        at: &Address,
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
            None => match self.find(at, config, &mark, budget).await? {
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
            match self.write(at, &own.basis.renewal(ttl), budget).await? {
                Ok(written) => {
                    lock(&self.local).extend(hold, written.basis, sent, ttl);
                    return Ok(Renewal::Renewed { ttl });
                }
                Err(Fault::Conflict) => match self.find(at, config, &mark, budget).await? {
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
                Err(fault) => return Err(fault.on(&at.namespace, &name_of(at))),
            }
        }
        Err(Fault::Conflict.on(&at.namespace, &name_of(at)))
    }

    /// The hold with this mark, if it is in the store and not ended.
    async fn find(
        &self,
        at: &Address,
        config: &LockConfig,
        mark: &str,
        budget: Duration,
    ) -> Result<Option<Own>, BackendError> {
        let seen = match self.read(at, budget).await {
            Ok(seen) => seen,
            Err(BackendError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        if !is_held_by(&seen, mark) {
            return Ok(None);
        }
        let now = self.clock.now();
        Ok(seen.record.fence.map(|fence| Own {
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
        at: &Address,
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
                None => match self.find(at, config, &mark, budget).await? {
                    Some(own) => own,
                    None => {
                        lock(&self.local).end(hold);
                        return Ok(self.was_ended(at, fence));
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
            match self.write(at, &body, budget).await? {
                Ok(_) => {
                    lock(&self.local).end(hold);
                    return Ok(Release::Released);
                }
                Err(Fault::Conflict) => {}
                Err(Fault::Gone) => {
                    lock(&self.local).end(hold);
                    return Ok(Release::NotHeld);
                }
                Err(fault) => return Err(fault.on(&at.namespace, &name_of(at))),
            }
        }
        Err(Fault::Conflict.on(&at.namespace, &name_of(at)))
    }

    /// Of a hold that is not there any more: whether it was ended in good order. An unheld record
    /// that still has its fence was released, by an earlier try of whoever asks (nobody else can);
    /// force would have raised the fence, and a new holder too.
    fn was_ended(&self, at: &Address, fence: Option<Fence>) -> Release {
        match lock(&self.local).seen(at) {
            Some((seen, _)) if fence.is_some() && seen.record.fence == fence => Release::Released,
            _ => Release::NotHeld,
        }
    }

    /// Makes sure that an open write of a hold is not carried out any more, or undoes it. A plain
    /// re-read proves nothing: the write may still be on its way. A write of our own on the same
    /// basis does: only one of the two can apply.
    pub(super) async fn settle(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        open: &Open,
    ) -> Result<(), BackendError> {
        let body = open.basis.settlement();
        match self.write(at, &body, call_budget(config)).await? {
            Ok(_) | Err(Fault::Gone) => {
                lock(&self.local).close(hold);
                Ok(())
            }
            Err(Fault::Conflict) => {
                // The basis is gone, so the open write has applied or never will.
                self.end(at, config, hold, Duration::ZERO).await?;
                lock(&self.local).close(hold);
                Ok(())
            }
            Err(fault) => Err(fault.on(&at.namespace, &name_of(at))),
        }
    }
}

/// Whether a record stands for the hold with this mark.
fn is_held_by(seen: &Snapshot, mark: &str) -> bool {
    seen.record.mark.as_deref() == Some(mark) && !seen.record.released
}

/// The name of an address's Lease.
pub(super) fn name_of(at: &Address) -> String {
    names::lease_name(at.kind, &at.class, &at.key)
}

/// For how long a record has been held, by the wall clock: for people, and where a process was
/// restarted.
pub(super) fn held_for(seen: &Snapshot) -> Duration {
    let since = |t: Timestamp| Timestamp::now().duration_since(t).try_into().unwrap_or_default();
    seen.acquired.map_or(Duration::ZERO, since)
}

/// A renewal must leave time for another one.
fn renewal_budget(ttl: Duration) -> Duration {
    (ttl / 6).clamp(Duration::from_millis(100), Duration::from_secs(5))
}

/// What any other call may take.
pub(super) fn call_budget(config: &LockConfig) -> Duration {
    let ttl = Duration::from_millis(config.ttl_ms);
    (ttl / 2).clamp(Duration::from_secs(1), Duration::from_secs(5))
}

fn since_boot(earlier: Stamp, now: Stamp) -> Duration {
    Duration::from_nanos(now.boot_ns.saturating_sub(earlier.boot_ns))
}

fn ago(now: Stamp, by: Duration) -> Stamp {
    let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    Stamp {
        boot_ns: now.boot_ns.saturating_sub(ns),
        raw_ns: now.raw_ns.saturating_sub(ns),
        real_ns: now.real_ns.saturating_sub(ns),
    }
}
