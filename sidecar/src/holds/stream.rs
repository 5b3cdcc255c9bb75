//! Event streams of holds.

use std::{sync::Arc, time::Duration};

use holdfast_core::HoldId;
use holdfast_wire::{HoldEvent, HoldEventKind, HoldState};
use tokio::sync::broadcast;

use super::{EVENTS, Found, Holds, mk_event};

impl Holds {
    /// Subscribes to a hold's events: how it stands, and what comes. Counts as an open stream until
    /// the subscription is dropped.
    ///
    /// # Errors
    /// What is known of a hold that is not live.
    #[allow(clippy::result_large_err, reason = "once per stream")]
    pub fn subscribe(self: &Arc<Self>, hold: &HoldId) -> Result<Subscription, Found> {
        let view = match self.find(hold) {
            Found::Live(view) => view,
            other => return Err(other),
        };
        let now = self.clock.now();
        let mut table = self.table();
        let Some(there) = table.live.get_mut(hold) else { return Err(Found::Unknown) };
        let events = there.events.get_or_insert_with(|| broadcast::channel(EVENTS).0).subscribe();
        there.bound.opened();
        there.life.resume(now);
        self.reschedule(&mut table, hold);
        drop(table);
        let first = match view.state {
            HoldState::Held => HoldEventKind::Granted,
            HoldState::Suspended => HoldEventKind::Suspended,
        };
        let first = mk_event(hold, view.fence, first, view.left);
        Ok(Subscription { holds: self.clone(), hold: hold.clone(), ttl: view.ttl, first, events })
    }
}

/// An open event stream of a hold.
pub struct Subscription {
    holds: Arc<Holds>,
    hold: HoldId,
    /// What the store granted the hold for when the stream was opened.
    pub ttl: Duration,
    /// How it stood then.
    pub first: HoldEvent,
    /// What comes after.
    pub events: broadcast::Receiver<HoldEvent>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let now = self.holds.clock.now();
        if let Some(there) = self.holds.table().live.get_mut(&self.hold) {
            there.bound.closed(now);
        }
    }
}
