//! What automatic renewal is bound to, so that a dead or hung app loses its holds though the sidecar
//! lives on.
//!
//! Whatever says that the app is *not* alive only stops renewals: the hold then runs out in the
//! store, since the app may still be running. Only a container that is known to have ended lets a
//! hold be released at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_core::Stamp;
use serde::{Deserialize, Serialize};

pub mod container;

/// The containers that a hold counts on: name → container id.
pub type Incarnation = BTreeMap<String, String>;

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its id, which a restart changes.
    pub id: String,
    /// When it started, seconds since 1970 by this machine's clock.
    pub started_s: u64,
}

/// The app's containers that run now, by name.
pub type Observed = BTreeMap<String, Running>;

/// What one hold's renewal is bound to, and the last sign of life.
#[derive(Clone, Debug)]
pub enum Bound {
    /// The sidecar's own life.
    Process,
    /// At least one open event stream; so long after the last one closed.
    Stream {
        /// How many are open.
        open: u32,
        /// For how long none need be.
        grace: Duration,
        /// When the hold was granted or the last stream closed.
        last: Stamp,
    },
    /// A heartbeat at least this often.
    Heartbeat {
        /// How often.
        every: Duration,
        /// When it was granted or the last one came.
        last: Stamp,
    },
    /// The containers that ran when it was granted.
    Container {
        /// When that was, seconds since 1970. What is reported of containers lags behind; one that
        /// started before this ran already, whatever was reported first.
        granted_s: u64,
        /// The containers; `None` until they have been seen.
        counts_on: Option<Arc<Incarnation>>,
    },
    /// All containers of the pod, each from when it is first seen: a candidate's term may begin
    /// before any of them runs. A restart of one leaves it in doubt who acts, so the term runs out.
    Pod {
        /// Those that have been seen.
        counts_on: Arc<Incarnation>,
    },
}

/// What the containers' states say about a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing has changed.
    Same,
    /// Some ended, and one that goes on may be the holder: no more renewals.
    Doubtful,
    /// All that ran when the hold was granted have ended: nobody can act on it any more.
    Ended,
}

impl Bound {
    /// Whether the app counts as alive.
    pub fn is_alive(&self, now: Stamp) -> bool {
        match self {
            Bound::Process | Bound::Container { .. } | Bound::Pod { .. } => true,
            Bound::Stream { open, grace, last } => *open > 0 || now.since(*last) < *grace,
            Bound::Heartbeat { every, last } => now.since(*last) < *every,
        }
    }

    /// Notes a sign of life; whether it was one.
    pub fn beat(&mut self, now: Stamp) -> bool {
        match self {
            Bound::Heartbeat { last, .. } => {
                *last = now;
                true
            }
            Bound::Process | Bound::Container { .. } | Bound::Pod { .. } | Bound::Stream { .. } => {
                false
            }
        }
    }

    /// An event stream was opened.
    pub fn opened(&mut self) {
        if let Bound::Stream { open, .. } = self {
            *open += 1;
        }
    }

    /// An event stream was closed.
    pub fn closed(&mut self, now: Stamp) {
        if let Bound::Stream { open, last, .. } = self {
            *open = open.saturating_sub(1);
            *last = now;
        }
    }

    /// What the containers that run now mean for the hold.
    pub fn judge(&mut self, now: &Observed) -> Verdict {
        if let Bound::Pod { counts_on } = self {
            return judge_pod(counts_on, now);
        }
        let Bound::Container { granted_s, counts_on } = self else { return Verdict::Same };
        if now.is_empty() && counts_on.is_none() {
            return Verdict::Same;
        }
        let ran: Incarnation = now
            .iter()
            .filter(|(name, running)| {
                let counted = counts_on.as_ref().and_then(|then| then.get(*name));
                running.started_s <= *granted_s || counted == Some(&running.id)
            })
            .map(|(name, running)| (name.clone(), running.id.clone()))
            .collect();
        let all = counts_on.as_ref().map_or(now.len(), |then| then.len());
        let verdict = match ran.len() {
            0 => Verdict::Ended,
            on if on >= all => Verdict::Same,
            _ => Verdict::Doubtful,
        };
        if counts_on.as_deref() != Some(&ran) && verdict == Verdict::Same {
            *counts_on = Some(Arc::new(ran));
        }
        verdict
    }
}

/// Whether every container that was seen is still the same one; new ones are counted on from now on.
fn judge_pod(counts_on: &mut Arc<Incarnation>, now: &Observed) -> Verdict {
    let is_same = |(name, id): (&String, &String)| now.get(name).is_some_and(|seen| seen.id == *id);
    if !counts_on.iter().all(is_same) {
        return Verdict::Doubtful;
    }
    if now.len() > counts_on.len() {
        *counts_on = Arc::new(now.iter().map(|(name, r)| (name.clone(), r.id.clone())).collect());
    }
    Verdict::Same
}

/// As a journal keeps it. Stamps start anew when it is read: the app gets its grace again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BoundRecord {
    /// See [`Bound::Process`].
    Process,
    /// See [`Bound::Stream`].
    Stream {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// See [`Bound::Heartbeat`].
    Heartbeat {
        /// Milliseconds.
        every_ms: u64,
    },
    /// See [`Bound::Container`].
    Container {
        /// See there.
        granted_s: u64,
        /// The containers, when they had been seen.
        counts_on: Option<Incarnation>,
    },
    /// See [`Bound::Pod`].
    Pod {
        /// The containers that had been seen.
        counts_on: Incarnation,
    },
}

impl Bound {
    /// Whether the pod's containers must be watched for it.
    pub const fn is_of_containers(&self) -> bool {
        matches!(self, Bound::Container { .. } | Bound::Pod { .. })
    }

    /// For the journal.
    pub fn record(&self) -> BoundRecord {
        match self {
            Bound::Process => BoundRecord::Process,
            Bound::Stream { grace, .. } => {
                BoundRecord::Stream { grace_ms: grace.as_millis() as u64 }
            }
            Bound::Heartbeat { every, .. } => {
                BoundRecord::Heartbeat { every_ms: every.as_millis() as u64 }
            }
            Bound::Container { granted_s, counts_on } => BoundRecord::Container {
                granted_s: *granted_s,
                counts_on: counts_on.as_deref().cloned(),
            },
            Bound::Pod { counts_on } => BoundRecord::Pod { counts_on: (**counts_on).clone() },
        }
    }

    /// From the journal.
    pub fn from_record(record: BoundRecord, now: Stamp) -> Self {
        match record {
            BoundRecord::Process => Bound::Process,
            BoundRecord::Stream { grace_ms } => {
                Bound::Stream { open: 0, grace: Duration::from_millis(grace_ms), last: now }
            }
            BoundRecord::Heartbeat { every_ms } => {
                Bound::Heartbeat { every: Duration::from_millis(every_ms), last: now }
            }
            BoundRecord::Container { granted_s, counts_on } => {
                Bound::Container { granted_s, counts_on: counts_on.map(Arc::new) }
            }
            BoundRecord::Pod { counts_on } => Bound::Pod { counts_on: Arc::new(counts_on) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_seen(containers: &[(&str, &str, u64)]) -> Observed {
        let running = |id: &str, started_s| Running { id: id.into(), started_s };
        containers.iter().map(|(name, id, at)| (name.to_string(), running(id, *at))).collect()
    }

    #[test]
    fn a_hold_ends_with_the_containers_that_ran_when_it_was_granted() {
        let mut bound = Bound::Container { granted_s: 100, counts_on: None };
        assert_eq!(bound.judge(&mk_seen(&[])), Verdict::Same, "nothing reported yet");
        assert_eq!(bound.judge(&mk_seen(&[("app", "1", 90), ("logs", "2", 91)])), Verdict::Same);
        let one_restarted = mk_seen(&[("app", "9", 120), ("logs", "2", 91)]);
        assert_eq!(bound.judge(&one_restarted), Verdict::Doubtful);
        let both_restarted = mk_seen(&[("app", "9", 120), ("logs", "8", 121)]);
        assert_eq!(bound.judge(&both_restarted), Verdict::Ended);
        assert_eq!(bound.judge(&mk_seen(&[])), Verdict::Ended);
    }

    #[test]
    fn a_report_that_lags_behind_a_restart_ends_no_hold_of_the_new_container() {
        let mut bound = Bound::Container { granted_s: 100, counts_on: None };
        assert_eq!(bound.judge(&mk_seen(&[("app", "old", 50)])), Verdict::Same);
        assert_eq!(bound.judge(&mk_seen(&[("app", "new", 99)])), Verdict::Same);
        assert_eq!(bound.judge(&mk_seen(&[("app", "newer", 130)])), Verdict::Ended);
    }

    #[test]
    fn a_restart_before_the_first_report_is_noticed() {
        let mut bound = Bound::Container { granted_s: 100, counts_on: None };
        assert_eq!(bound.judge(&mk_seen(&[("app", "new", 101)])), Verdict::Ended);
    }

    #[test]
    fn a_term_may_begin_before_the_app_and_a_restart_leaves_it_in_doubt() {
        let mut bound = Bound::Pod { counts_on: Arc::default() };
        assert_eq!(bound.judge(&mk_seen(&[])), Verdict::Same, "nothing runs yet");
        assert_eq!(bound.judge(&mk_seen(&[("app", "1", 120)])), Verdict::Same);
        let both = mk_seen(&[("app", "1", 120), ("logs", "2", 125)]);
        assert_eq!(bound.judge(&both), Verdict::Same);
        let restarted = mk_seen(&[("app", "1", 120), ("logs", "3", 130)]);
        assert_eq!(bound.judge(&restarted), Verdict::Doubtful);
        assert_eq!(bound.judge(&mk_seen(&[])), Verdict::Doubtful);
    }

    #[test]
    fn a_stream_counts_while_open_and_for_its_grace_after() {
        let at = |ms: u64| Stamp { boot_ns: ms * 1_000_000, raw_ns: ms * 1_000_000, real_ns: 0 };
        let grace = Duration::from_millis(100);
        let mut bound = Bound::Stream { open: 0, grace, last: at(0) };
        assert!(bound.is_alive(at(99)) && !bound.is_alive(at(100)));
        bound.opened();
        bound.opened();
        bound.closed(at(500));
        assert!(bound.is_alive(at(10_000)));
        bound.closed(at(10_000));
        assert!(bound.is_alive(at(10_099)) && !bound.is_alive(at(10_100)));
    }
}
