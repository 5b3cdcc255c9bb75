//! Who waits here for a lock on several servers.
//!
//! One line per key: the first in it asks for all, the others stand behind. It asks again when a
//! majority of the servers has said that the key is free, when the hold that it saw runs out, and after
//! a random while that grows (decorrelated, so that two processes which took votes from each other do
//! not do so again). A line has no task, and listens to no channel, when nobody is in it.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_core::{
    Address, HoldId, Holder,
    clock::Backoff,
    lock::{Acquire, Attempt, Push, redlock::majority},
};
use rand::RngExt;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::Inner;
use crate::{
    hub::{Hub, lock},
    redis::keys,
};

/// How many waiters a view names.
const NAMED: usize = 10;

/// All lines of a process.
pub(super) struct Lines {
    hub: Arc<Hub>,
    servers: usize,
    /// The channels of the keys that somebody waits for.
    wanted: watch::Sender<BTreeSet<String>>,
    lines: Mutex<HashMap<Address, Line>>,
}

struct Line {
    channel: String,
    queue: VecDeque<(HoldId, Holder)>,
    /// When the first is to ask again.
    next: Instant,
    /// Servers that have said so since it asked last.
    freed: BTreeSet<usize>,
    base: Duration,
    backoff: Backoff,
    changed: Arc<Notify>,
}

impl Line {
    fn new(at: &Address, ttl: Duration) -> Self {
        let base = (ttl / 200).clamp(Duration::from_millis(5), Duration::from_millis(50));
        let cap = (ttl / 3).clamp(Duration::from_millis(100), Duration::from_secs(5));
        Line {
            channel: keys::freed_channel(at),
            queue: VecDeque::new(),
            next: Instant::now() + cap,
            freed: BTreeSet::new(),
            base,
            backoff: Backoff::new(base, cap),
            changed: Arc::default(),
        }
    }

    fn position(&self, hold: &HoldId) -> Option<u32> {
        self.queue.iter().position(|(other, _)| other == hold).map(|n| n as u32 + 1)
    }

    /// Appends a waiter, if there is room.
    fn push(&mut self, request: &Acquire) -> Attempt {
        let waiters = self.queue.len() as u32;
        if waiters >= request.config.max_waiters {
            return Attempt::QueueFull { waiters };
        }
        self.queue.push_back((request.hold.clone(), request.holder.clone()));
        Attempt::Queued { position: waiters + 1 }
    }

    /// The first is to ask again after `within`, if not before.
    fn ask_within(&mut self, within: Duration) {
        self.next = self.next.min(Instant::now() + within);
        self.changed.notify_one();
    }
}

impl Lines {
    pub(super) fn new(
        hub: Arc<Hub>,
        servers: usize,
        wanted: watch::Sender<BTreeSet<String>>,
    ) -> Self {
        Lines { hub, servers, wanted, lines: Mutex::default() }
    }

    /// The place of a request behind others of this process; `None` when it is to ask the servers.
    pub(super) fn behind(&self, at: &Address, request: &Acquire) -> Option<Attempt> {
        let mut lines = lock(&self.lines);
        let line = lines.get_mut(at).filter(|line| !line.queue.is_empty())?;
        match line.position(&request.hold) {
            Some(1) => None,
            Some(position) => Some(Attempt::Queued { position }),
            None => Some(line.push(request)),
        }
    }

    /// The place of a request that the servers have refused, or that there is none.
    pub(super) fn enter(
        &self,
        inner: &Arc<Inner>,
        at: &Address,
        request: &Acquire,
        retry_after: Duration,
    ) -> Attempt {
        let mut lines = lock(&self.lines);
        let is_new = !lines.contains_key(at);
        let line = lines.entry(at.clone()).or_insert_with(|| Line::new(at, request.ttl));
        let place = match line.position(&request.hold) {
            Some(position) => Attempt::Queued { position },
            None => line.push(request),
        };
        if matches!(place, Attempt::Queued { position: 1 }) {
            let jitter = rand::rng().random_range(Duration::ZERO..line.base);
            let within = line.backoff.next_delay().min(retry_after + jitter);
            // It became free while it was being asked for.
            let is_free = line.freed.len() >= majority(self.servers);
            line.ask_within(if is_free { jitter } else { within });
        }
        if is_new {
            let channel = line.channel.clone();
            self.wanted.send_if_modified(|wanted| wanted.insert(channel));
            tokio::spawn(serve(inner.clone(), at.clone()));
        }
        place
    }

    /// Takes a waiter out, wherever it stands. The next one asks soon, or when the hold that the first
    /// was granted for so long runs out.
    pub(super) fn leave(&self, at: &Address, hold: &HoldId, granted: Option<Duration>) {
        let mut lines = lock(&self.lines);
        let Some(line) = lines.get_mut(at) else { return };
        let was_first = line.position(hold) == Some(1);
        line.queue.retain(|(other, _)| other != hold);
        if was_first {
            line.backoff.reset();
            let soon = line.backoff.next_delay();
            line.ask_within(granted.unwrap_or(soon));
        }
    }

    /// A server says that a key has become free there.
    pub(super) fn freed(&self, server: usize, channel: &str) {
        let mut lines = lock(&self.lines);
        let Some(line) = lines.values_mut().find(|line| line.channel == channel) else { return };
        line.freed.insert(server);
        line.backoff.reset();
        let is_free = line.freed.len() >= majority(self.servers);
        // The others may be away, or nobody may have heard them.
        let within = if is_free { Duration::ZERO } else { line.base * 2 };
        line.ask_within(within);
    }

    /// How many wait, and the first of them.
    pub(super) fn waiting(&self, at: &Address) -> (u32, Vec<Holder>) {
        let lines = lock(&self.lines);
        let Some(line) = lines.get(at) else { return (0, Vec::new()) };
        let named = line.queue.iter().take(NAMED).map(|(_, holder)| holder.clone());
        (line.queue.len() as u32, named.collect())
    }

    /// How many wait.
    pub(super) fn count(&self, at: &Address) -> u32 {
        lock(&self.lines).get(at).map_or(0, |line| line.queue.len() as u32)
    }

    /// When the first is to ask again; nothing more when nobody waits, and the line is gone then.
    fn next(&self, at: &Address) -> Option<(Instant, Arc<Notify>)> {
        let mut lines = lock(&self.lines);
        let line = lines.get(at)?;
        if line.queue.is_empty() {
            let channel = line.channel.clone();
            lines.remove(at);
            self.wanted.send_if_modified(|wanted| wanted.remove(&channel));
            return None;
        }
        Some((line.next, line.changed.clone()))
    }

    /// Lets the first ask, if its time has come.
    fn call(&self, at: &Address) {
        let first = {
            let mut lines = lock(&self.lines);
            let Some(line) = lines.get_mut(at) else { return };
            if line.next > Instant::now() {
                return;
            }
            line.freed.clear();
            // Unless it says when, after it has asked.
            line.next = Instant::now() + Duration::from_secs(5);
            line.queue.front().map(|(hold, _)| hold.clone())
        };
        if let Some(hold) = first
            && !self.hub.send(&hold, Push::Requeue)
        {
            // Nobody here waits for it any more.
            self.leave(at, &hold, None);
        }
    }
}

/// Serves a line until it is empty.
async fn serve(inner: Arc<Inner>, at: Address) {
    while let Some((next, changed)) = inner.lines.next(&at) {
        tokio::select! {
            () = sleep_until(next) => inner.lines.call(&at),
            () = changed.notified() => {}
        }
    }
}
