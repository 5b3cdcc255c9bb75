//! One beat per key for all of a session's waiters on it.
//!
//! A beat says that the session lives, and learns what a lost push would have told: an offer, a lost
//! ticket. While nothing changes it is the only traffic of a waiter; its rate is that of
//! [`LockConfig::beat_ms`], however many wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_core::{
    Address, Clock, Fence, HoldId, SessionId, Stamp,
    lock::{Acquire, Grant, LockBackend, LockConfig, Push},
    queue::Ticket,
};
use tokio::time::sleep;

use crate::hub::{Hub, lock};

/// The lines of a session, one per key that somebody waits for.
pub(super) struct Lines {
    backend: Arc<dyn LockBackend>,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    session: SessionId,
    lines: Mutex<HashMap<Address, Line>>,
}

#[derive(Default)]
struct Line {
    /// How many requests (retries of the same one) stand for each waiter, and what the newest asks for.
    waiters: HashMap<HoldId, (usize, Ticket)>,
    config: Option<Arc<LockConfig>>,
    /// The one who is known to be first in the store's queue.
    first: Option<HoldId>,
    /// The heir of a hold that was passed on, until the store has answered: the next one waits for that.
    passing: Option<HoldId>,
    /// The last two beats, newest first: when each was sent, and the newest fence it found.
    beats: [Option<(Stamp, Fence)>; 2],
}

/// A waiter's place; dropping it leaves the line.
pub(super) struct Place {
    lines: Arc<Lines>,
    at: Address,
    hold: HoldId,
    joined: Stamp,
}

impl Place {
    /// The last time the grant with this fence was known not to have been made: a time before it.
    ///
    /// A beat that found only lower fences was carried out before the grant; so was the request
    /// that joined the line.
    pub(super) fn last_waiting(&self, fence: Fence) -> Stamp {
        let lines = lock(&self.lines.lines);
        let beats = lines.get(&self.at).map(|line| line.beats).unwrap_or_default();
        let before = beats.into_iter().flatten().find(|(_, found)| *found < fence);
        match before {
            Some((sent, _)) if sent.boot_ns > self.joined.boot_ns => sent,
            _ => self.joined,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = lock(&self.lines.lines);
        if let Some(line) = lines.get_mut(&self.at)
            && let Some((users, _)) = line.waiters.get_mut(&self.hold)
        {
            *users -= 1;
            if *users == 0 {
                line.waiters.remove(&self.hold);
                line.first.take_if(|first| *first == self.hold);
            }
        }
        // The line itself is removed by its task, so that there is never a second one.
    }
}

impl Lines {
    pub(super) fn new(
        backend: Arc<dyn LockBackend>,
        hub: Arc<Hub>,
        clock: Arc<dyn Clock>,
        session: SessionId,
    ) -> Arc<Self> {
        Arc::new(Lines { backend, hub, clock, session, lines: Mutex::default() })
    }

    /// Joins the line of a key, at a place counted from 1. `sent` was read before the request that was
    /// queued was sent.
    pub(super) fn join(
        self: &Arc<Self>,
        at: &Address,
        request: &Acquire,
        position: u32,
        sent: Stamp,
    ) -> Place {
        let mut lines = lock(&self.lines);
        let is_new = !lines.contains_key(at);
        let line = lines.entry(at.clone()).or_default();
        line.config = Some(request.config.clone());
        let users = line.waiters.get(&request.hold).map_or(0, |(users, _)| *users);
        line.waiters.insert(request.hold.clone(), (users + 1, request.ticket()));
        if position == 1 {
            line.first = Some(request.hold.clone());
        } else {
            line.first.take_if(|first| *first == request.hold);
        }
        drop(lines);
        if is_new {
            tokio::spawn(self.clone().beat_while_waiting(at.clone(), request.config.clone()));
        }
        Place { lines: self.clone(), at: at.clone(), hold: request.hold.clone(), joined: sent }
    }

    /// Whoever is first in the store's queue, if it waits here: once, since it is not first after that,
    /// and nobody again before [`Lines::passed`].
    pub(super) fn take_first(&self, at: &Address) -> Option<Ticket> {
        let mut lines = lock(&self.lines);
        let line = lines.get_mut(at).filter(|line| line.passing.is_none())?;
        let (_, ticket) = line.waiters.get(&line.first.take()?)?;
        // One whose time to wait is over may not have left yet.
        let heir = (self.hub.users(&ticket.hold) > 0).then(|| ticket.clone());
        line.passing = heir.as_ref().map(|heir| heir.hold.clone());
        heir
    }

    /// Whether a hold was passed on to this heir and the store has not answered yet.
    pub(super) fn is_passing(&self, at: &Address, heir: &HoldId) -> bool {
        lock(&self.lines).get(at).is_some_and(|line| line.passing.as_ref() == Some(heir))
    }

    /// The store has answered for this heir, or never will; whether that is the first answer.
    pub(super) fn passed(&self, at: &Address, heir: &HoldId) -> bool {
        let mut lines = lock(&self.lines);
        let passing = lines.get_mut(at).map(|line| &mut line.passing);
        passing.is_some_and(|passing| passing.take_if(|passing| passing == heir).is_some())
    }

    /// Notes who is first in the store's queue, if it waits here: it stays so until its turn comes or it
    /// leaves.
    pub(super) fn note_first(&self, at: &Address, hold: HoldId) {
        if let Some(line) = lock(&self.lines).get_mut(at)
            && line.waiters.contains_key(&hold)
        {
            line.first = Some(hold);
        }
    }

    async fn beat_while_waiting(self: Arc<Self>, at: Address, first: Arc<LockConfig>) {
        let mut next = Duration::from_millis(first.beat_ms());
        let mut short = false;
        loop {
            sleep(next).await;
            let Some((config, before)) = self.roll_call(&at) else { return };
            let interval = Duration::from_millis(config.beat_ms());
            let sent = self.clock.now();
            next = interval;
            match self.backend.beat(&at, &config, &self.session).await {
                Ok(beat) => {
                    self.note(&at, sent, beat.last_fence);
                    // Something will change by itself before the next beat is due: be there.
                    next = interval.min(beat.next + Duration::from_millis(1));
                    let expected = self.expected(&at, &before, &beat.offered);
                    for (hold, grant) in beat.offered {
                        self.hub.send(&hold, Push::Granted { grant });
                    }
                    let all_there = beat.tickets as usize >= expected;
                    // Once can be a ticket on its way; twice is a store that lost some.
                    if !all_there && short {
                        self.requeue(&at);
                    }
                    short = !all_there && !short;
                }
                Err(error) => tracing::debug!(%at, %error, "a waiter's beat failed"),
            }
        }
    }

    /// Who waits now; `None` ends the line.
    fn roll_call(&self, at: &Address) -> Option<(Arc<LockConfig>, Vec<HoldId>)> {
        let mut lines = lock(&self.lines);
        let line = lines.get(at)?;
        if line.waiters.is_empty() && line.passing.is_none() {
            lines.remove(at);
            return None;
        }
        Some((line.config.clone()?, line.waiters.keys().cloned().collect()))
    }

    /// How many of those who waited before a beat must still have a ticket after it.
    fn expected(&self, at: &Address, before: &[HoldId], offered: &[(HoldId, Grant)]) -> usize {
        let lines = lock(&self.lines);
        let Some(line) = lines.get(at) else { return 0 };
        let waits = |hold: &&HoldId| {
            line.waiters.contains_key(*hold) && !offered.iter().any(|(other, _)| other == *hold)
        };
        before.iter().filter(waits).count()
    }

    fn note(&self, at: &Address, sent: Stamp, found: Fence) {
        if let Some(line) = lock(&self.lines).get_mut(at) {
            line.beats = [Some((sent, found)), line.beats[0]];
        }
    }

    fn requeue(&self, at: &Address) {
        let holds: Vec<HoldId> = {
            let lines = lock(&self.lines);
            lines.get(at).map(|line| line.waiters.keys().cloned().collect()).unwrap_or_default()
        };
        for hold in holds {
            self.hub.send(&hold, Push::Requeue);
        }
    }
}
