//! The transitions that grant: take, adopt. Each is one conditional write, and a re-read when somebody
//! else's write came first. Of a lock's one Lease, or of any slot of a semaphore.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    BackendError, Clock, HoldId, Stamp,
    lock::{Acquire, Grant, LockConfig},
};
use jiff::Timestamp;

use super::{
    client::{Fault, LeaseClient},
    local::{Local, Own},
    names,
    record::{Claim, Snapshot},
    slot::{Known, News, Slot},
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
        slot: &Slot,
        budget: Duration,
    ) -> Result<Snapshot, BackendError> {
        let (name, namespace) = (slot.name(), &slot.at.namespace);
        let sent = self.clock.now();
        match self.client.get(namespace, &name, budget).await {
            Ok(lease) => {
                let snapshot = Snapshot::of(&lease)?;
                let (news, now) = (News::Read(sent), self.clock.now());
                lock(&self.local).note(slot, snapshot.clone(), news, now);
                Ok(snapshot)
            }
            Err(fault) => {
                // A Role that does not name a slot says that the class has no such one.
                let is_no_slot = slot.is_one_of_many() && matches!(fault, Fault::Refused(_));
                if fault == Fault::Gone || is_no_slot {
                    lock(&self.local).note_absent(slot, sent);
                }
                Err(fault.on(namespace, &name))
            }
        }
    }

    /// Writes; what the API server answers is noted.
    pub(super) async fn write(
        &self,
        slot: &Slot,
        body: &serde_json::Value,
        budget: Duration,
    ) -> Result<Result<Snapshot, Fault>, BackendError> {
        let sent = self.clock.now();
        match self.client.patch(&slot.at.namespace, &slot.name(), body, budget).await {
            Ok(lease) => {
                let snapshot = Snapshot::of(&lease)?;
                let (news, now) = (News::Wrote(sent), self.clock.now());
                lock(&self.local).note(slot, snapshot.clone(), news, now);
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

    /// Takes a Lease that was seen free, for a request that was asked for at this time. One of many
    /// first gets a version that is newer than that, if it may have an older one: its fence must be
    /// higher than those of all grants that there were by then, on whatever slot.
    pub(super) async fn claim(
        &self,
        slot: &Slot,
        request: &Acquire,
        since: Stamp,
        seen: &Snapshot,
    ) -> Result<Taken, BackendError> {
        let is_fresh = {
            let local = lock(&self.local);
            local.known(slot).is_some_and(|known| match known {
                Known::There(there) => there.snapshot.basis == seen.basis && known.is_fresh(since),
                Known::Absent(_) => false,
            })
        };
        if is_fresh || !slot.is_one_of_many() {
            return self.take(slot, request, seen).await;
        }
        match self.write(slot, &seen.basis.settlement(), call_budget(&request.config)).await? {
            Ok(fresh) => self.take(slot, request, &fresh).await,
            Err(Fault::Conflict | Fault::Gone) => Ok(Taken::Raced),
            // Whether it is carried out or not, nothing is held by it.
            Err(Fault::Unknown(what)) => Err(BackendError::Unavailable(what)),
            Err(fault) => Err(fault.on(&slot.at.namespace, &slot.name())),
        }
    }

    /// Takes a Lease that was seen free. The caller has made sure that it may.
    pub(super) async fn take(
        &self,
        slot: &Slot,
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
        if !lock(&self.local).open(slot, request, &seen.basis, sent) {
            return Ok(Taken::Cancelled);
        }
        match self.write(slot, &body, call_budget(&request.config)).await? {
            Ok(written) => {
                let own = Own {
                    slot: slot.clone(),
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
                Ok(Taken::Granted(Grant { fence, ttl, claimed: true, since: None }, sent))
            }
            Err(fault) => {
                // Another try of this very write may have come first, or may be still to come.
                if !matches!(fault, Fault::Unknown(_)) {
                    lock(&self.local).close_only_try(&request.hold, sent);
                }
                match fault {
                    // The caller re-reads and finds out.
                    Fault::Conflict => Ok(Taken::Raced),
                    fault => Err(fault.on(&slot.at.namespace, &slot.name())),
                }
            }
        }
    }

    /// The error that a request ends with: while a write of its hold is open, it is not known that
    /// nothing is held, however certain that is of the call that failed.
    pub(super) fn or_unknown(&self, hold: &HoldId, error: BackendError) -> BackendError {
        match lock(&self.local).opened(hold) {
            Some(_) => BackendError::Unknown(error.to_string()),
            None => error,
        }
    }

    /// Makes a hold that an earlier request got this request's, by extending it: the caller counts
    /// from now on, so the record must too. None when it is not there any more.
    pub(super) async fn adopt(
        &self,
        slot: &Slot,
        request: &Acquire,
        seen: &Snapshot,
    ) -> Result<Taken, BackendError> {
        let Some(fence) = seen.record.fence else {
            return Err(BackendError::Internal(format!(
                "a held Lease without a fence at {}",
                slot.at
            )));
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
            slot: slot.clone(),
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
        match self.write(slot, &seen.basis.renewal(ttl), call_budget(&request.config)).await? {
            Ok(written) => {
                let own = Own { basis: written.basis, ttl, ..own };
                if !lock(&self.local).grant(&request.hold, own) {
                    return Ok(Taken::Cancelled);
                }
                Ok(Taken::Granted(Grant { fence, ttl, claimed: true, since: None }, sent))
            }
            Err(Fault::Conflict) => Ok(Taken::Raced),
            Err(fault) => Err(fault.on(&slot.at.namespace, &slot.name())),
        }
    }
}

/// Whether a record stands for the hold with this mark.
pub(super) fn is_held_by(seen: &Snapshot, mark: &str) -> bool {
    seen.record.mark.as_deref() == Some(mark) && !seen.record.released
}

/// For how long a record has been held, by the wall clock: for people, and where a process was
/// restarted.
pub(super) fn held_for(seen: &Snapshot) -> Duration {
    let since = |t: Timestamp| Timestamp::now().duration_since(t).try_into().unwrap_or_default();
    seen.acquired.map_or(Duration::ZERO, since)
}

/// What any other call may take.
pub(super) fn call_budget(config: &LockConfig) -> Duration {
    let ttl = Duration::from_millis(config.ttl_ms);
    (ttl / 2).clamp(Duration::from_secs(1), Duration::from_secs(5))
}

pub(super) fn ago(now: Stamp, by: Duration) -> Stamp {
    let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    Stamp {
        boot_ns: now.boot_ns.saturating_sub(ns),
        raw_ns: now.raw_ns.saturating_sub(ns),
        real_ns: now.real_ns.saturating_sub(ns),
    }
}
