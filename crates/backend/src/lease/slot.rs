//! One Lease, and what this process knows of it: its newest record, since when it has been seen so,
//! and after which moment it was certainly written.
//!
//! **Freshness.** A fence is the version that its grant is conditional on. Over the many slots of a
//! key, versions of free slots may be older than fences given since on others. A version that was
//! written *after* a request was asked for is newer than all grants that had been made by then; so
//! only such a one may become the fence of that request. Two things tell when a version was written:
//! - an own write of any slot, sent at a moment, made a version: every newer version of any slot was
//!   written after that moment, since versions of one resource type have one order;
//! - a read of this slot, sent at a moment, found an older version: this one came after it.
//!
//! Where neither tells, a write of our own that changes nothing else makes a fresh version.

use std::time::Duration;

use holdfast_core::{
    Address, Kind, Stamp,
    lock::record::{Sighting, Verdict},
};

use super::{names, record::Snapshot};

/// After how long to look again at a slot that is closed. Its opening is told by the watch.
const WHILE_CLOSED: Duration = Duration::from_secs(5);

/// One Lease of a key: of a lock its only one, of a semaphore that of one permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub at: Address,
    pub number: u32,
}

impl Slot {
    /// The only Lease of a key.
    pub(super) fn only(at: &Address) -> Self {
        Slot { at: at.clone(), number: 0 }
    }

    /// The Lease with this number of a key.
    pub(super) fn of(at: &Address, number: u32) -> Self {
        Slot { at: at.clone(), number }
    }

    /// The name of the object.
    pub(super) fn name(&self) -> String {
        names::slot_name(self.at.kind, &self.at.class, &self.at.key, self.number)
    }

    /// Whether the key may have others.
    pub(super) fn is_one_of_many(&self) -> bool {
        match self.at.kind {
            Kind::Semaphore => true,
            Kind::Lock | Kind::LeaderElection | Kind::RateLimit => false,
        }
    }
}

/// Where a record comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// A quorum read that was sent then.
    Read(Stamp),
    /// An own write that was sent then.
    Wrote(Stamp),
    /// A watch.
    Watched,
}

/// What is known of one Lease.
#[derive(Debug)]
pub(super) enum Known {
    /// It was there.
    There(Box<There>),
    /// A read that was sent then found that it was not.
    Absent(Stamp),
}

/// A record as it was seen.
#[derive(Debug)]
pub(super) struct There {
    pub snapshot: Snapshot,
    pub sighting: Sighting,
    /// This version was written after this moment, if any is known.
    after: Option<Stamp>,
    /// Any newer version is written after this moment, if any is known.
    checked: Option<Stamp>,
}

impl Known {
    /// What is known once a record has come. `wrote` is the newest of own writes to the key.
    pub(super) fn next(
        before: Option<Known>,
        snapshot: Snapshot,
        news: News,
        wrote: Option<(Stamp, u64)>,
        now: Stamp,
    ) -> Known {
        let sent = match news {
            News::Read(sent) | News::Wrote(sent) => Some(sent),
            News::Watched => None,
        };
        let told = after_of(&snapshot, news, wrote);
        let mut there = match before {
            Some(Known::There(there)) => there,
            before => {
                let absent = match before {
                    Some(Known::Absent(sent)) => Some(sent),
                    Some(Known::There(_)) | None => None,
                };
                let sighting = Sighting::new(snapshot.record.clone(), now);
                let after = latest(absent, told);
                let checked = latest(sent, after);
                return Known::There(Box::new(There { snapshot, sighting, after, checked }));
            }
        };
        if there.snapshot.basis == snapshot.basis {
            if let News::Wrote(_) = news {
                there.after = latest(there.after, sent);
            }
            there.checked = latest(latest(there.checked, sent), there.after);
        } else if !older(&snapshot.basis.version, &there.snapshot.basis.version) {
            there.sighting.see(snapshot.record.clone(), now);
            there.snapshot = snapshot;
            there.after = latest(there.checked, told);
            there.checked = latest(sent, there.after);
        }
        Known::There(there)
    }

    /// Whether this was looked at after a moment.
    pub(super) fn is_checked_since(&self, since: Stamp) -> bool {
        let looked = match self {
            Known::There(there) => there.checked,
            Known::Absent(sent) => Some(*sent),
        };
        is_at_or_after(looked, since)
    }

    /// Whether this version was written after a moment: only then may it be the fence of a request
    /// that was asked for then.
    pub(super) fn is_fresh(&self, since: Stamp) -> bool {
        match self {
            Known::There(there) => is_at_or_after(there.after, since),
            Known::Absent(_) => false,
        }
    }

    /// What the hold with this mark may conclude.
    pub(super) fn verdict(&self, now: Stamp, mark: &str, delay: Duration) -> Option<Verdict> {
        let Known::There(there) = self else { return None };
        Some(match there.sighting.verdict(now, Some(mark), delay) {
            Verdict::Free if there.snapshot.closed => Verdict::Held { left: WHILE_CLOSED },
            verdict => verdict,
        })
    }

    /// The mark of the hold, while a session has it.
    pub(super) fn held_by(&self, session: &str, now: Stamp) -> Option<String> {
        let Known::There(there) = self else { return None };
        let There { snapshot, sighting, .. } = &**there;
        let is_its = snapshot.session.as_deref() == Some(session) && !snapshot.record.released;
        let is_live = is_its && !sighting.left(now, Duration::ZERO).is_zero();
        snapshot.record.mark.clone().filter(|_| is_live)
    }
}

/// A moment that a new version was written after, as own writes tell.
fn after_of(snapshot: &Snapshot, news: News, wrote: Option<(Stamp, u64)>) -> Option<Stamp> {
    if let News::Wrote(sent) = news {
        return Some(sent);
    }
    let version = snapshot.version()?;
    wrote.filter(|(_, known)| *known < version).map(|(sent, _)| sent)
}

fn latest(one: Option<Stamp>, other: Option<Stamp>) -> Option<Stamp> {
    match (one, other) {
        (Some(one), Some(other)) if other.boot_ns > one.boot_ns => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}

fn is_at_or_after(moment: Option<Stamp>, since: Stamp) -> bool {
    moment.is_some_and(|moment| moment.boot_ns >= since.boot_ns)
}

/// Whether a version is an older one. Versions of one resource type are ordered.
pub(super) fn older(version: &str, known: &str) -> bool {
    match (version.parse::<u64>(), known.parse::<u64>()) {
        (Ok(version), Ok(known)) => version < known,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::record::tests::mk_snapshot;

    fn at(ns: u64) -> Stamp {
        Stamp { boot_ns: ns, raw_ns: ns, real_ns: ns }
    }

    fn mk_known(version: u64, news: News) -> Known {
        Known::next(None, mk_snapshot(version), news, None, at(1_000))
    }

    fn next(known: Known, version: u64, news: News, wrote: Option<(Stamp, u64)>) -> Known {
        Known::next(Some(known), mk_snapshot(version), news, wrote, at(1_000))
    }

    #[test]
    fn a_read_alone_does_not_tell_when_its_version_was_written_and_a_newer_one_does() {
        let read = mk_known(10, News::Read(at(5)));
        assert!(!read.is_fresh(at(0)) && read.is_checked_since(at(5)));
        assert!(!read.is_checked_since(at(6)));
        let told = next(read, 11, News::Watched, None);
        assert!(told.is_fresh(at(5)) && !told.is_fresh(at(6)));
        // Its being read again later says nothing about when it was written.
        let again = next(told, 11, News::Read(at(9)), None);
        assert!(!again.is_fresh(at(6)));
        assert!(next(again, 12, News::Watched, None).is_fresh(at(9)));
    }

    #[test]
    fn an_own_write_of_any_slot_tells_of_all_newer_versions() {
        let wrote = Some((at(7), 20));
        assert!(Known::next(None, mk_snapshot(21), News::Watched, wrote, at(9)).is_fresh(at(7)));
        assert!(!Known::next(None, mk_snapshot(19), News::Watched, wrote, at(9)).is_fresh(at(0)));
        assert!(mk_known(30, News::Wrote(at(8))).is_fresh(at(8)));
        // The same version by the watch first, then as the answer to the write that made it.
        let told = mk_known(30, News::Watched);
        assert!(!told.is_fresh(at(0)));
        assert!(next(told, 30, News::Wrote(at(8)), None).is_fresh(at(8)));
    }

    #[test]
    fn old_news_changes_nothing() {
        let known = next(mk_known(10, News::Read(at(5))), 9, News::Read(at(8)), None);
        let Known::There(there) = &known else { panic!() };
        assert_eq!(there.snapshot.basis.version, "10");
        assert!(!known.is_checked_since(at(6)), "an answer that is older tells nothing");
    }
}
