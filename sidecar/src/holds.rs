//! The live holds of this pod: kept alive as long as the app lives, and ended in time.
//!
//! Each hold has a [`life::Life`], a timetable that is a function of stamps; all of them share one
//! [`keeper`] task, one table of timers and one channel of pushes, so that ten thousand holds are a
//! table and not ten thousand tasks. Whoever looks at a hold whose deadline has passed ends it: a
//! late timer cannot make a hold look alive.
//!
//! Invariant: a hold is in `live` or in `ended`, and every live one has exactly one timer that counts.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool, atomic::Ordering::Relaxed},
    time::Duration,
};

use foldhash::fast::RandomState;
use holdfast_backend::hub::Diverted;
use holdfast_core::{Clock, Fence, HoldId, Kind, Stamp};
use holdfast_wire::{HoldEvent, HoldEventKind};
use tokio::sync::Notify;

use crate::{
    liveness::{Observed, Verdict},
    snapshot::{LockClass, Snapshot},
};

pub mod ended;
mod entry;
pub mod journal;
pub mod keeper;
pub mod life;
pub mod stream;
mod timers;
mod view;

use ended::{End, Ended};
use entry::Hold;
use timers::{Timer, Timers};
pub use view::{Facts, Found, NewHold, View};

/// Holds that may live at once.
pub const MAX_HOLDS: usize = 32_768;
/// Events that a slow reader may be behind; a hold has few.
const EVENTS: usize = 16;

/// The holds of one process.
pub struct Holds {
    table: Mutex<Table>,
    /// Something is due earlier than the keeper knows.
    wake: Notify,
    /// Something changed that a journal should know.
    changed: Notify,
    /// A hold that is bound to containers was added.
    bound_to_container: Notify,
    journaled: AtomicBool,
    pushes: Diverted,
    clock: Arc<dyn Clock>,
}

struct Table {
    live: HashMap<HoldId, Hold, RandomState>,
    ended: Ended,
    timers: Timers,
    /// When the keeper looks again, boot time.
    planned_ns: u64,
    in_containers: usize,
}

impl Holds {
    /// No holds; pushes of future ones go to `pushes`, whose other end the keeper has.
    pub fn new(clock: Arc<dyn Clock>, pushes: Diverted) -> Arc<Self> {
        Arc::new(Holds {
            table: Mutex::new(Table {
                live: HashMap::default(),
                ended: Ended::default(),
                timers: Timers::default(),
                planned_ns: u64::MAX,
                in_containers: 0,
            }),
            wake: Notify::new(),
            changed: Notify::new(),
            bound_to_container: Notify::new(),
            journaled: AtomicBool::new(false),
            pushes,
            clock,
        })
    }

    /// Adds a hold, as of now. A retry of the same request finds the one that is there.
    ///
    /// # Errors
    /// How it ended, if it has already.
    pub fn insert(&self, new: NewHold, now: Stamp) -> Result<View, End> {
        let hold = new.held.inbox.hold().clone();
        let mut table = self.table();
        if new.is_retry
            && let Some(end) = table.ended.get(hold.as_str())
        {
            return Err(end);
        }
        let Table { live, in_containers, .. } = &mut *table;
        let there = match live.entry(hold) {
            Entry::Occupied(entry) => {
                let there = entry.into_mut();
                if new.held.deadline.boot_ns() > there.life.deadline().boot_ns() {
                    // A retry is told what is left: that is no renewal that was cut short.
                    let held = &new.held;
                    there.life.renewed(held.deadline.since(), held.ttl, held.ttl);
                }
                there
            }
            Entry::Vacant(entry) => {
                let there = Hold::new(new, now);
                there.facts.class.metrics.live.inc();
                there.inbox.divert(&self.pushes);
                if there.bound.is_of_containers() {
                    *in_containers += 1;
                    self.bound_to_container.notify_one();
                }
                entry.insert(there)
            }
        };
        let (view, timer) = (there.view(now), there.next_timer());
        self.set_timer(&mut table, timer);
        drop(table);
        self.note_change();
        Ok(view)
    }

    /// What is known of a hold. One whose deadline has passed is ended by being looked at.
    pub fn find(&self, hold: &HoldId) -> Found {
        self.look_up(hold.as_str())
    }

    /// As [`Holds::find`], by a text that need not be a name of a hold at all.
    pub fn look_up(&self, hold: &str) -> Found {
        self.visit(hold, |_| {})
    }

    /// As [`Holds::look_up`], by an app that says that it is done with a hold of this class: no more
    /// renewals, whatever comes next.
    pub fn let_go(&self, hold: &str, kind: Kind, class: &str) -> Found {
        self.visit(hold, |there| {
            if there.facts.is_of(kind, class) {
                there.let_go();
                self.note_change();
            }
        })
    }

    fn visit(&self, hold: &str, visit: impl FnOnce(&mut Hold)) -> Found {
        let now = self.clock.now();
        let mut table = self.table();
        let Some(there) = table.live.get_mut(hold) else {
            return table.ended.get(hold).map_or(Found::Unknown, Found::Ended);
        };
        if there.life.deadline().passed(now) {
            let facts = there.facts.clone();
            self.end_in(&mut table, &facts.hold, End::Expired, now);
            return Found::Ended(End::Expired);
        }
        visit(there);
        Found::Live(there.view(now))
    }

    /// The holds that live now.
    pub fn live(&self) -> Vec<View> {
        let now = self.clock.now();
        self.table().live.values().map(|there| there.view(now)).collect()
    }

    /// Keeps holds to what their classes say now: a class that was given a shorter time to live has
    /// only such holds once the old one is over, however often they are renewed.
    pub fn keep_to(&self, snapshot: &Snapshot) {
        for there in self.table().live.values_mut() {
            if let Some(class) = snapshot.class_of(&there.facts.at) {
                there.life.keep_to(Duration::from_millis(class.config.ttl_ms));
            }
        }
    }

    /// As [`Holds::keep_to`], of one hold and its class.
    pub fn keep_one_to(&self, hold: &HoldId, class: &LockClass) {
        if let Some(there) = self.table().live.get_mut(hold) {
            there.life.keep_to(Duration::from_millis(class.config.ttl_ms));
        }
    }

    /// How many live now.
    pub fn count(&self) -> usize {
        self.table().live.len()
    }

    /// A renewal that the caller asked for succeeded; `None` when the hold is not trusted any more.
    pub fn renewed(
        &self,
        hold: &HoldId,
        sent: Stamp,
        asked: Duration,
        granted: Duration,
    ) -> Option<View> {
        let now = self.clock.now();
        let mut table = self.table();
        let there = table.live.get_mut(hold)?;
        if there.life.deadline().passed(now) {
            self.end_in(&mut table, hold, End::Expired, now);
            return None;
        }
        if there.life.renewed(sent, asked, granted) {
            there.tell(HoldEventKind::Granted, now);
        }
        self.reschedule(&mut table, hold);
        let view = table.live.get(hold).map(|there| there.view(now));
        drop(table);
        self.note_change();
        view
    }

    /// The app gave a sign of life. Returns the hold as it stands.
    pub fn beat(&self, hold: &HoldId) -> Found {
        let now = self.clock.now();
        if let Some(there) = self.table().live.get_mut(hold)
            && !there.life.deadline().passed(now)
            && there.bound.beat(now)
        {
            there.life.resume(now);
        }
        self.poke(hold);
        self.find(hold)
    }

    /// A hold is about to be released: no more renewals, whatever comes next.
    pub fn releasing(&self, hold: &HoldId) {
        if let Some(there) = self.table().live.get_mut(hold) {
            there.let_go();
        }
        self.note_change();
    }

    /// Ends a hold, and tells who listens. The first end counts.
    pub fn end(&self, hold: &HoldId, end: End) {
        let now = self.clock.now();
        self.end_in(&mut self.table(), hold, end, now);
    }

    /// Ends a hold that the store has let go, at a time that its holder was still seen with it.
    pub fn released(&self, view: &View) {
        self.end_in(&mut self.table(), &view.hold, End::Released, view.seen);
    }

    /// Remembers a request that its caller gave up.
    pub fn given_up(&self, hold: &HoldId) {
        self.table().ended.note(hold.as_str(), End::GivenUp);
    }

    /// Judges every hold that is bound to containers by those that run now. Returns the holds whose
    /// containers are known to have ended: they are lost, and may be released.
    pub fn observe(&self, containers: &Observed) -> Vec<View> {
        let now = self.clock.now();
        let mut table = self.table();
        let mut ended = Vec::new();
        for there in table.live.values_mut() {
            match there.bound.judge(containers) {
                Verdict::Same => {}
                Verdict::Doubtful => {
                    tracing::info!(at = %there.facts.at, "a container restarted: the hold runs out");
                    there.life.stop_renewing();
                }
                Verdict::Ended => ended.push(there.view(now)),
            }
        }
        for view in &ended {
            self.end_in(&mut table, &view.hold, End::AppEnded, now);
        }
        ended
    }

    /// Whether any live hold is bound to containers.
    pub fn any_in_containers(&self) -> bool {
        self.table().in_containers > 0
    }

    /// Waits until a hold that is bound to containers is added.
    pub async fn container_wanted(&self) {
        while !self.any_in_containers() {
            self.bound_to_container.notified().await;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_in(&self, table: &mut Table, hold: &HoldId, end: End, now: Stamp) {
        let Some(there) = table.live.remove(hold) else { return };
        table.in_containers -= usize::from(there.bound.is_of_containers());
        table.ended.note(hold.as_str(), end);
        let metrics = &there.facts.class.metrics;
        metrics.live.dec();
        metrics.hold.observe(now.since(there.granted).as_secs_f64());
        let kind = match end {
            End::Released => {
                metrics.released.inc();
                HoldEventKind::Released
            }
            End::Expired | End::Forced | End::AppEnded | End::GivenUp => {
                metrics.lost.inc();
                let Facts { at, fence, .. } = &*there.facts;
                tracing::warn!(%at, %fence, ?end, "a hold was lost");
                HoldEventKind::Lost
            }
        };
        there.tell(kind, now);
        self.note_change();
    }

    /// Puts a hold's timer where its life says.
    fn reschedule(&self, table: &mut Table, hold: &HoldId) {
        let timer = table.live.get_mut(hold).and_then(Hold::next_timer);
        self.set_timer(table, timer);
    }

    fn set_timer(&self, table: &mut Table, timer: Option<Timer>) {
        let Some(timer) = timer else { return };
        if timer.0 < table.planned_ns {
            self.wake.notify_one();
        }
        table.set_timer(timer);
    }

    fn poke(&self, hold: &HoldId) {
        self.reschedule(&mut self.table(), hold);
    }

    fn note_change(&self) {
        if self.journaled.load(Relaxed) {
            self.changed.notify_one();
        }
    }
}

impl Table {
    fn set_timer(&mut self, timer: Timer) {
        let live = &self.live;
        self.timers.set(timer, live.len(), |timer| counts(live, timer));
    }

    /// The earliest timer.
    fn first_timer(&mut self) -> Option<Timer> {
        let live = &self.live;
        self.timers.first(|timer| counts(live, timer))
    }
}

/// Whether a timer is the one that its hold has now.
fn counts(live: &HashMap<HoldId, Hold, RandomState>, (due_ns, hold): &Timer) -> bool {
    live.get(hold).is_some_and(|there| there.due_ns == *due_ns)
}

fn mk_event(hold: &HoldId, fence: Fence, event: HoldEventKind, left: Duration) -> HoldEvent {
    HoldEvent {
        event,
        hold_id: hold.to_string(),
        fence: fence.to_string(),
        hold_for_ms: left.as_millis() as u64,
    }
}
