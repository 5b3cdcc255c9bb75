//! One hold in the table.

use std::{mem, sync::Arc, time::Duration};

use holdfast_backend::hub::Inbox;
use holdfast_core::Stamp;
use holdfast_wire::{HoldEvent, HoldEventKind};
use tokio::sync::broadcast;

use super::{Facts, NewHold, View, life::Life, mk_event, timers::Timer};
use crate::liveness::Bound;

/// Of a hold that has no timer yet.
const NO_TIMER: u64 = u64::MAX;

/// One hold, as the table has it.
pub(super) struct Hold {
    pub(super) facts: Arc<Facts>,
    pub(super) max_hold: Duration,
    pub(super) manual: bool,
    pub(super) granted: Stamp,
    pub(super) life: Life,
    pub(super) bound: Bound,
    /// When its timer in `Table::timers` goes off, or [`NO_TIMER`]. Others of it there do not count.
    pub(super) due_ns: u64,
    pub(super) releasing: bool,
    pub(super) events: Option<broadcast::Sender<HoldEvent>>,
    /// Its pushes; and a retry of the same request that is given up does not take the hold with it
    /// while this is here.
    pub(super) inbox: Inbox,
}

impl Hold {
    pub(super) fn new(new: NewHold, now: Stamp) -> Self {
        let NewHold { class, at, held, ttl, max_hold, permits, bound, heir, is_retry: _ } = new;
        let manual = bound.is_none();
        let most = class.renew_deadline.unwrap_or(Duration::MAX);
        let hold = held.inbox.hold().clone();
        Hold {
            facts: Arc::new(Facts { hold, class, at, fence: held.fence, permits, heir }),
            max_hold,
            manual,
            granted: now,
            life: Life::new(ttl, held.ttl, held.deadline, most, held.claimed, !manual, now),
            bound: bound.unwrap_or(Bound::Process),
            due_ns: NO_TIMER,
            releasing: false,
            events: None,
            inbox: held.inbox,
        }
    }

    /// The timer to be set, if it is another than the one that is.
    pub(super) fn next_timer(&mut self) -> Option<Timer> {
        let due_ns = self.life.due_ns();
        let is_set = mem::replace(&mut self.due_ns, due_ns) == due_ns;
        (!is_set).then(|| (due_ns, self.facts.hold.clone()))
    }

    /// No more renewals. The timer stays where it is: at worst it goes off once for nothing.
    pub(super) fn let_go(&mut self) {
        self.releasing = true;
        self.life.stop_renewing();
    }

    pub(super) fn view(&self, now: Stamp) -> View {
        let deadline = self.life.deadline();
        View {
            facts: self.facts.clone(),
            ttl: self.life.granted(),
            asks: self.life.asks(now),
            state: self.life.state(),
            is_releasing: self.releasing,
            left: deadline.remaining(now),
            deadline,
            seen: now,
        }
    }

    pub(super) fn tell(&self, kind: HoldEventKind, now: Stamp) {
        if let Some(events) = &self.events {
            let left = match kind {
                HoldEventKind::Granted | HoldEventKind::Suspended => {
                    self.life.deadline().remaining(now)
                }
                HoldEventKind::Lost | HoldEventKind::Released => Duration::ZERO,
            };
            // Without listeners there is nobody to tell.
            drop(events.send(mk_event(&self.facts.hold, self.facts.fence, kind, left)));
        }
    }
}
