//! Who stands in line in this process, and what each session was promised of its share. Nothing here
//! makes a request.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    Address, Fence, SessionId, Stamp,
    lock::{Acquire, Attempt, Beat, Fairness, LockView},
};

use super::{grant::Inner, local::Waiter, names, slot::Known, turn};
use crate::hub::lock;

/// After how long a contender that lost every race, and did not want to queue, may ask again.
pub(super) const LOST_THE_RACE: Duration = Duration::from_millis(100);
/// Nothing changes by itself where no store is asked.
const NOTHING_TO_COME: Duration = Duration::from_secs(60);

/// A part of its session's share that was promised to a request, until this is dropped.
pub(super) struct Asking {
    inner: Arc<Inner>,
    at: Address,
    mark: String,
    /// Whether to wake the turn of the key when this is dropped: another of the session may have what
    /// was not used. The turn itself looks again anyway.
    wakes: bool,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut local = lock(&self.inner.local);
        let place = local.place(&self.at);
        if let Some(i) = place.asking.iter().position(|(mark, _)| *mark == self.mark) {
            place.asking.swap_remove(i);
            if self.wakes {
                place.changed.notify_one();
            }
        }
    }
}

impl Inner {
    /// The answer that needs no store, if there is one.
    pub(super) fn answer(
        self: &Arc<Self>,
        at: &Address,
        request: &Acquire,
        since: Stamp,
    ) -> Option<Attempt> {
        let local = lock(&self.local);
        if local.is_buried(&request.hold) {
            return Some(Attempt::Cancelled);
        }
        if let Some(position) = local.position(at, &request.hold) {
            return Some(Attempt::Queued { position });
        }
        // Who waits because its own session has its share holds up nobody.
        let is_behind = request.config.fairness == Fairness::Fifo
            && local.waiters(at).any(|waiter| local.is_within_share(at, waiter, since))
            && local.own(&request.hold).is_none()
            && local.opened(&request.hold).is_none();
        drop(local);
        is_behind.then(|| self.stand_in_line(at, request, since, LOST_THE_RACE))
    }

    /// Queues, or says why not.
    pub(super) fn stand_in_line(
        self: &Arc<Self>,
        at: &Address,
        request: &Acquire,
        since: Stamp,
        left: Duration,
    ) -> Attempt {
        let mut local = lock(&self.local);
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
        place.queue.push_back(Waiter { request: request.clone(), since });
        if place.served {
            // Perhaps it is the first who may have what is free.
            place.changed.notify_one();
        } else {
            place.served = true;
            tokio::spawn(turn::serve(self.clone(), at.clone()));
        }
        Attempt::Queued { position: waiters + 1 }
    }

    /// Promises a request its part of its session's share, if there is any left.
    pub(super) fn ask(
        self: &Arc<Self>,
        at: &Address,
        request: &Acquire,
        wakes: bool,
    ) -> Option<Asking> {
        let mut local = lock(&self.local);
        if !local.is_within_share(at, request, self.clock.now()) {
            return None;
        }
        let mark = names::mark(request.hold.as_str());
        let session = names::mark(request.session.as_str());
        local.place(at).asking.push((mark.clone(), session));
        Some(Asking { inner: self.clone(), at: at.clone(), mark, wakes })
    }

    /// What a session learns of its tickets here.
    pub(super) fn beat(&self, at: &Address, session: &SessionId) -> Beat {
        let local = lock(&self.local);
        let fences = local.all_known(at).filter_map(|(_, known)| match known {
            Known::There(there) => there.snapshot.record.fence,
            Known::Absent(_) => None,
        });
        Beat {
            offered: Vec::new(),
            last_fence: fences.max().unwrap_or(Fence::new(0)),
            tickets: local.tickets(at, session),
            next: NOTHING_TO_COME,
        }
    }

    /// The waiters in a view.
    pub(super) fn line(&self, at: &Address) -> LockView {
        let local = lock(&self.local);
        LockView {
            waiters: local.waiters(at).count() as u32,
            queue: local.waiters(at).take(10).map(|waiter| waiter.holder.clone()).collect(),
            ..LockView::default()
        }
    }
}
