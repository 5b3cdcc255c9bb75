//! How much of each quarantine is left, by a clock that nobody sets.
//!
//! The end of a quarantine is written down as a time of day, so that another operator can end it. From
//! when this one knows of it, it counts by a monotonic clock: a step of the clock on the wall, or a
//! machine that is resumed, cuts nothing short and makes nothing longer.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::Duration,
};

use holdfast_api::v1alpha1::backend::EpochStatus;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use crate::context::lock;

/// Both clocks, read at once.
#[derive(Clone, Copy)]
pub struct Moment {
    /// The time of day.
    pub wall: Timestamp,
    steady: Instant,
}

impl Moment {
    /// Reads them.
    pub fn now() -> Self {
        Moment { wall: Timestamp::now(), steady: Instant::now() }
    }
}

/// The end of a quarantine as it is written down, and when that is by the monotonic clock.
type End = (Timestamp, Instant);

/// The quarantines that are known, by Backend and by server (the empty name where it has one).
#[derive(Default)]
pub struct Quarantines(Mutex<HashMap<String, BTreeMap<String, End>>>);

impl Quarantines {
    /// Begins to count those of an epoch that are new. An end that was computed from a moment is
    /// counted from that very moment.
    pub fn see(&self, backend: &str, epoch: &EpochStatus, from: Moment) {
        let mut all = lock(&self.0);
        let known = all.remove(backend).unwrap_or_default();
        let ends = closed(epoch).map(|(server, at)| {
            let end = match known.get(server) {
                Some(end) if end.0 == at => *end,
                _ => (at, from.steady + between(from.wall, at)),
            };
            (server.to_owned(), end)
        });
        let ends: BTreeMap<String, End> = ends.collect();
        if !ends.is_empty() {
            all.insert(backend.to_owned(), ends);
        }
    }

    /// What is left of the quarantine of a server that ends at this time.
    pub fn left(&self, backend: &str, server: &str, at: Timestamp) -> Duration {
        let all = lock(&self.0);
        let end = all.get(backend).and_then(|ends| ends.get(server));
        match end.filter(|end| end.0 == at) {
            Some((_, end)) => end.saturating_duration_since(Instant::now()),
            None => between(Timestamp::now(), at),
        }
    }

    /// When something of an epoch opens next.
    pub fn next(&self, backend: &str, epoch: &EpochStatus) -> Option<Duration> {
        closed(epoch).map(|(server, at)| self.left(backend, server, at)).min()
    }

    /// The Backend is gone.
    pub fn forget(&self, backend: &str) {
        lock(&self.0).remove(backend);
    }
}

/// The servers that are closed, and until when.
fn closed(epoch: &EpochStatus) -> impl Iterator<Item = (&str, Timestamp)> {
    let one = (epoch.runs.is_empty() && !epoch.open).then_some(("", epoch.not_before.0));
    let runs = epoch.runs.iter().filter(|run| !run.open);
    one.into_iter().chain(runs.map(|run| (run.server.as_str(), run.not_before.0)))
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use holdfast_api::v1alpha1::backend::RunStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    fn mk_epoch(ends: &[(&str, Timestamp)]) -> EpochStatus {
        let runs = ends.iter().map(|(server, at)| RunStatus {
            server: (*server).to_owned(),
            replid: String::new(),
            tags: Vec::new(),
            not_before: Time(*at),
            open: false,
        });
        EpochStatus {
            number: 1,
            replid: String::new(),
            not_before: Time(Timestamp::UNIX_EPOCH),
            open: false,
            runs: runs.collect(),
        }
    }

    /// As if the clock on the wall had been this far off when a quarantine of ten seconds began.
    fn begun(off: i64) -> (Moment, Timestamp) {
        let now = Moment::now();
        let wall = Timestamp::from_second(now.wall.as_second() + off).unwrap();
        (Moment { wall, ..now }, wall + TEN)
    }

    #[test]
    fn steps_of_the_clock_change_nothing_of_a_quarantine_that_is_known() {
        let quarantines = Quarantines::default();
        // A step forward of an hour, and one back: ten seconds all the same.
        for off in [-3_600, 3_600] {
            let (moment, at) = begun(off);
            quarantines.see("main", &mk_epoch(&[("a", at)]), moment);
            let left = quarantines.left("main", "a", at);
            assert!(left > TEN / 2 && left <= TEN, "{left:?}");
        }
        // Of others, the time of day tells.
        let past = Timestamp::now() - TEN;
        assert!(quarantines.left("main", "a", past).is_zero());
        assert!(quarantines.left("other", "a", past + TEN * 100) > TEN);
    }

    #[test]
    fn each_server_has_its_own_whatever_happens_to_another_later() {
        let quarantines = Quarantines::default();
        let (first, a) = begun(-3_600);
        quarantines.see("main", &mk_epoch(&[("a", a)]), first);
        let (second, b) = begun(0);
        let both = mk_epoch(&[("a", a), ("b", b)]);
        quarantines.see("main", &both, second);
        assert!(quarantines.left("main", "a", a) > TEN / 2);
        assert!(quarantines.next("main", &both).unwrap() > TEN / 2);
        quarantines.forget("main");
        assert!(quarantines.left("main", "a", a).is_zero());
    }

    #[test]
    fn one_server_is_closed_until_its_epoch_opens() {
        let (moment, at) = begun(-3_600);
        let mut epoch = mk_epoch(&[]);
        epoch.not_before = Time(at);
        let quarantines = Quarantines::default();
        quarantines.see("main", &epoch, moment);
        assert!(quarantines.next("main", &epoch).unwrap() > TEN / 2);
        epoch.open = true;
        assert_eq!(quarantines.next("main", &epoch), None);
    }
}
