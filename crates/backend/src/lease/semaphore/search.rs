//! Which slot: of a hold that there is, of a request whose outcome is open, and of what is free.

use std::time::Duration;

use futures::{StreamExt, stream};
use holdfast_core::{
    Address, BackendError, HoldId, Stamp,
    lock::{Acquire, Attempt, LockConfig, record::Verdict},
    semaphore::slots::{self, MAX_SLOTS},
};

use super::LeaseSemaphores;
use crate::{
    hub::lock,
    lease::{
        grant::{TRIES, Taken, call_budget},
        line::LOST_THE_RACE,
        names,
        record::Snapshot,
        slot::{Known, Slot},
    },
};

/// How many Leases are read at the same time.
const AT_ONCE: usize = 8;

/// What came of a round over the slots.
pub(super) enum Tried {
    Answered(Attempt),
    /// Some were free, and others were quicker.
    Raced,
    NoneFree,
}

impl LeaseSemaphores {
    /// Reads slots, several at a time. One that is not there, or that a Role does not name because the
    /// class has fewer permits, is not there.
    pub(super) async fn read(
        &self,
        at: &Address,
        config: &LockConfig,
        numbers: impl IntoIterator<Item = u32>,
    ) -> Result<(), BackendError> {
        let budget = call_budget(config);
        let slots: Vec<Slot> = numbers.into_iter().map(|number| Slot::of(at, number)).collect();
        let inner = &self.inner;
        let mut reads = stream::iter(slots)
            .map(|slot| async move { inner.read(&slot, budget).await })
            .buffer_unordered(AT_ONCE);
        let mut refused = None;
        while let Some(read) = reads.next().await {
            match read {
                Ok(_) | Err(BackendError::NotFound(_)) => {}
                Err(error @ BackendError::Forbidden(_)) => {
                    refused.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        match refused {
            Some(error) if self.records(at).is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    /// The newest records of the slots that there are, as they are known.
    pub(super) fn records(&self, at: &Address) -> Vec<(Slot, Snapshot)> {
        let local = lock(&self.inner.local);
        let known = local.all_known(at).filter_map(|(number, known)| match known {
            Known::There(there) => Some((Slot::of(at, number), there.snapshot.clone())),
            Known::Absent(_) => None,
        });
        known.collect()
    }

    /// The slots that nothing is known of.
    pub(super) fn unknown(&self, at: &Address, below: u32) -> Vec<u32> {
        let local = lock(&self.inner.local);
        (0..below).filter(|number| local.known(&Slot::of(at, *number)).is_none()).collect()
    }

    /// Where a hold is or may land, as this process knows.
    pub(super) fn known_slot_of(&self, at: &Address, hold: &HoldId) -> Option<Slot> {
        let own = {
            let local = lock(&self.inner.local);
            let own = local.own(hold).map(|own| own.slot);
            own.or(local.opened(hold).map(|open| open.slot))
        };
        let mark = names::mark(hold.as_str());
        own.or_else(|| {
            let mut all = self.records(at).into_iter();
            all.find(|(_, seen)| seen.record.mark.as_deref() == Some(&mark)).map(|(slot, _)| slot)
        })
    }

    /// The slots that were not looked at since this time.
    pub(super) fn unchecked(&self, at: &Address, below: u32, since: Stamp) -> Vec<u32> {
        let local = lock(&self.inner.local);
        let is_checked =
            |number: u32| local.known(&Slot::of(at, number))?.is_checked_since(since).then_some(());
        (0..below).filter(|number| is_checked(*number).is_none()).collect()
    }

    /// Where a hold is, as this process knows; else, once for each key, as the store says: a process
    /// that was restarted finds its holds there, even on a slot that the class has no more.
    pub(super) async fn slot_of(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<Option<Slot>, BackendError> {
        if let Some(slot) = self.known_slot_of(at, hold) {
            return Ok(Some(slot));
        }
        for below in [config.permits.min(MAX_SLOTS), MAX_SLOTS] {
            self.read(at, config, self.unknown(at, below)).await?;
            if let Some(slot) = self.known_slot_of(at, hold) {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// What became of earlier tries of the same request on this slot. None when nothing is left of
    /// them, nor can land any more.
    pub(super) async fn tried_before(
        &self,
        slot: &Slot,
        request: &Acquire,
    ) -> Result<Option<Attempt>, BackendError> {
        let mark = names::mark(request.hold.as_str());
        for _ in 0..TRIES {
            let seen = match self.inner.read(slot, call_budget(&request.config)).await {
                Ok(seen) => seen,
                // Nothing can land on an object that is gone.
                Err(BackendError::NotFound(_)) => return Ok(self.nothing_left(request)),
                Err(error) => return Err(error),
            };
            self.inner.resolve(&request.hold, &seen);
            let is_open = lock(&self.inner.local).opened(&request.hold).is_some();
            let taken = if seen.record.mark.as_deref() == Some(&mark) && !seen.record.terminating {
                self.inner.adopt(slot, request, &seen).await?
            } else if is_open {
                // On the version that the first was sent on: of the two writes one can apply.
                self.inner.take(slot, request, &seen).await?
            } else {
                return Ok(self.nothing_left(request));
            };
            if let Some(attempt) = answer(taken) {
                return Ok(Some(attempt));
            }
        }
        Err(BackendError::Unknown(format!("Lease \"{}\" changed on every try", slot.name())))
    }

    fn nothing_left(&self, request: &Acquire) -> Option<Attempt> {
        lock(&self.inner.local).end(&request.hold);
        None
    }

    /// Tries the slots that are free as far as is known, each once.
    pub(super) async fn try_free(
        &self,
        at: &Address,
        request: &Acquire,
        since: Stamp,
    ) -> Result<Tried, BackendError> {
        let mark = names::mark(request.hold.as_str());
        let mut raced = false;
        for number in slots::order(names::seed(request.session.as_str()), request.config.permits) {
            let slot = Slot::of(at, number);
            let free = {
                let local = lock(&self.inner.local);
                match local.known(&slot) {
                    Some(known @ Known::There(there)) => {
                        let verdict = known.verdict(self.inner.clock.now(), &mark, Duration::ZERO);
                        (verdict == Some(Verdict::Free)).then(|| there.snapshot.clone())
                    }
                    Some(Known::Absent(_)) | None => None,
                }
            };
            let Some(seen) = free else { continue };
            let taken = self.inner.claim(&slot, request, since, &seen).await?;
            if let Some(attempt) = answer(taken) {
                return Ok(Tried::Answered(attempt));
            }
            raced = true;
            // Somebody else was first; or this very write was, and its answer was lost.
            if let Some(attempt) = self.tried_before(&slot, request).await? {
                return Ok(Tried::Answered(attempt));
            }
        }
        Ok(if raced { Tried::Raced } else { Tried::NoneFree })
    }

    /// Until the first of the slots below this one may be free. None if there are no such slots.
    pub(super) fn left(&self, at: &Address, request: &Acquire, below: u32) -> Option<Duration> {
        let mark = names::mark(request.hold.as_str());
        let (local, now) = (lock(&self.inner.local), self.inner.clock.now());
        let known = local.all_known(at).filter(|(number, _)| *number < below);
        let verdicts = known.filter_map(|(_, known)| known.verdict(now, &mark, Duration::ZERO));
        verdicts
            .filter_map(|verdict| match verdict {
                Verdict::Held { left } => Some(left),
                Verdict::Free | Verdict::Mine => Some(LOST_THE_RACE),
                Verdict::Terminating => None,
            })
            .min()
    }
}

fn answer(taken: Taken) -> Option<Attempt> {
    match taken {
        Taken::Granted(grant, _) => Some(Attempt::Granted(grant)),
        Taken::Cancelled => Some(Attempt::Cancelled),
        Taken::Raced => None,
    }
}
