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
        let now = self.clock.now();
        let mut opened = None;
        let found = self.visit(hold.as_str(), |there| {
            let events = there.events.get_or_insert_with(|| broadcast::channel(EVENTS).0);
            opened = Some(events.subscribe());
            there.bound.opened();
            there.life.resume(now);
        });
        let (view, events) = match (found, opened) {
            (Found::Live(view), Some(events)) => (view, events),
            (other, _) => return Err(other),
        };
        self.poke(hold);
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
