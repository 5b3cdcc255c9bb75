//! What a contender may conclude from a Lease record: free, mine, or held for how much longer.
//!
//! A record carries no time that two machines could compare. What counts is how long *this* process
//! has seen the record unchanged, by its own clock, against the duration the *record* names: a fresh
//! contender waits a full duration. Of the clocks that could tell, the one that has advanced least
//! is believed: a clock that jumps or runs fast can delay a takeover, never cause an early one
//! (holders do the opposite, see [`crate::clock::Deadline`]).
//!
//! The conclusion is only ever the reason to *try*: the write that follows is conditional on the
//! record still being the one that was seen.

use std::time::Duration;

use crate::{Fence, Stamp};

/// A Lease as far as the rules care. Two records are equal if and only if nothing has happened to
/// the hold between them; other writers' labels do not show here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which incarnation of the object.
    pub uid: String,
    /// The mark of whoever holds; a mark is unique per hold. None when unheld.
    pub mark: Option<String>,
    /// The newest fence granted, if any was.
    pub fence: Option<Fence>,
    /// For how long the record stands unchanged before it counts as expired.
    pub duration: Duration,
    /// Differs after every renewal. Compared, never read as a time.
    pub renewal: String,
    /// The holder is gone in good order, and the record stands only for its minimal time.
    pub released: bool,
    /// The object is being deleted.
    pub terminating: bool,
}

/// What a contender concludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody holds it: a conditional write may take it.
    Free,
    /// The contender itself holds it: an earlier request of it was carried out.
    Mine,
    /// Another holds it, as far as this process can know for so much longer.
    Held {
        /// Until the record can be taken if nothing happens to it.
        left: Duration,
    },
    /// It is being deleted: nothing may be granted any more.
    Terminating,
}

/// A record, and since when this process has seen it as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    record: Record,
    since: Stamp,
}

impl Sighting {
    /// A record seen for the first time. `now` must be read *after* the record arrived.
    pub fn new(record: Record, now: Stamp) -> Self {
        Sighting { record, since: now }
    }

    /// The record seen again: only a change starts the count anew.
    pub fn see(&mut self, record: Record, now: Stamp) {
        if record != self.record {
            *self = Sighting::new(record, now);
        }
    }

    /// The record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What the hold called `me` may conclude at `now`. `lock_delay` applies to a record that its
    /// holder did not end in good order.
    pub fn verdict(&self, now: Stamp, me: Option<&str>, lock_delay: Duration) -> Verdict {
        let record = &self.record;
        let mine = me.is_some() && record.mark.as_deref() == me && !record.released;
        if record.terminating {
            return Verdict::Terminating;
        }
        if mine {
            return Verdict::Mine;
        }
        match self.left(now, lock_delay) {
            left if left.is_zero() => Verdict::Free,
            left => Verdict::Held { left },
        }
    }

    /// How long until the record can be taken if nothing happens to it; zero for an unheld one.
    pub fn left(&self, now: Stamp, lock_delay: Duration) -> Duration {
        if self.record.mark.is_none() {
            return Duration::ZERO;
        }
        let delay = if self.record.released { Duration::ZERO } else { lock_delay };
        (self.record.duration + delay).saturating_sub(waited(self.since, now))
    }
}

/// How long a contender has waited at least: the least of what its steady clocks say. The wall clock
/// has no say.
fn waited(since: Stamp, now: Stamp) -> Duration {
    let boot = now.boot_ns.saturating_sub(since.boot_ns);
    let raw = now.raw_ns.saturating_sub(since.raw_ns);
    Duration::from_nanos(boot.min(raw))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_DELAY: Duration = Duration::ZERO;

    fn mk_record(mark: Option<&str>, renewal: &str) -> Record {
        Record {
            uid: "u1".into(),
            mark: mark.map(Into::into),
            fence: Some(Fence::new(7)),
            duration: Duration::from_secs(15),
            renewal: renewal.into(),
            released: false,
            terminating: false,
        }
    }

    fn at(ms: u64) -> Stamp {
        let ns = 1_000_000_000_000 + ms * 1_000_000;
        Stamp { boot_ns: ns, raw_ns: ns, real_ns: ns }
    }

    #[test]
    fn a_fresh_contender_waits_a_full_duration_whatever_the_record_says() {
        let seen = Sighting::new(mk_record(Some("a"), "2001-01-01T00:00:00.000000Z"), at(0));
        let left = Duration::from_secs(15);
        assert_eq!(seen.verdict(at(0), Some("b"), NO_DELAY), Verdict::Held { left });
        let left = Duration::from_millis(1);
        assert_eq!(seen.verdict(at(14_999), Some("b"), NO_DELAY), Verdict::Held { left });
        assert_eq!(seen.verdict(at(15_000), Some("b"), NO_DELAY), Verdict::Free);
    }

    #[test]
    fn a_change_starts_the_count_anew_and_the_same_again_does_not() {
        let mut seen = Sighting::new(mk_record(Some("a"), "1"), at(0));
        seen.see(mk_record(Some("a"), "1"), at(14_000));
        assert_eq!(seen.left(at(14_000), NO_DELAY), Duration::from_secs(1));
        seen.see(mk_record(Some("a"), "2"), at(14_000));
        assert_eq!(seen.left(at(14_000), NO_DELAY), Duration::from_secs(15));
        // Another incarnation of the object is another record too.
        seen.see(Record { uid: "u2".into(), ..mk_record(Some("a"), "2") }, at(20_000));
        assert_eq!(seen.left(at(20_000), NO_DELAY), Duration::from_secs(15));
    }

    #[test]
    fn lock_delay_follows_an_expiry_and_not_a_release() {
        let delay = Duration::from_secs(5);
        let expired = Sighting::new(mk_record(Some("a"), "1"), at(0));
        let left = Duration::from_secs(5);
        assert_eq!(expired.verdict(at(15_000), Some("b"), delay), Verdict::Held { left });
        let released = Record { released: true, ..mk_record(Some("a"), "1") };
        let released = Sighting::new(released, at(0));
        assert_eq!(released.verdict(at(15_000), Some("b"), delay), Verdict::Free);
        let unheld = Sighting::new(mk_record(None, "1"), at(0));
        assert_eq!(unheld.verdict(at(0), Some("b"), delay), Verdict::Free);
    }

    #[test]
    fn mine_is_mine_until_it_is_released_or_deleted() {
        let seen = Sighting::new(mk_record(Some("a"), "1"), at(0));
        assert_eq!(seen.verdict(at(60_000), Some("a"), NO_DELAY), Verdict::Mine);
        let released = Record { released: true, ..mk_record(Some("a"), "1") };
        let left = Duration::from_secs(15);
        let verdict = Sighting::new(released, at(0)).verdict(at(0), Some("a"), NO_DELAY);
        assert_eq!(verdict, Verdict::Held { left });
        let going = Record { terminating: true, ..mk_record(None, "1") };
        let verdict = Sighting::new(going, at(0)).verdict(at(0), Some("a"), NO_DELAY);
        assert_eq!(verdict, Verdict::Terminating);
    }

    proptest! {
        /// B7: contenders with any wall clock, one of the steady clocks jumping, other configured
        /// durations, and late news never take a record that is still the newest one before its
        /// own duration has passed.
        #[test]
        fn no_clock_and_no_late_news_lead_to_an_early_takeover(
            renewals in proptest::collection::vec((1u64..5_000, 0u64..3_000), 1..20),
            then in 0u64..40_000,
            wall in -3_600_000i64..3_600_000,
            jump in 0u64..3_600_000,
            boot_jumps in any::<bool>(),
            own_delay in 0u64..10_000,
        ) {
            let wall_at = |ms: u64| (3_600_000 + ms as i64 + wall) as u64 * 1_000_000;
            // `shift` is what the unsteady one of the two clocks has gained since the start.
            let stamp = |ms: u64, shift: u64| {
                let (plain, jumped) = (ms * 1_000_000, (ms + shift) * 1_000_000);
                let (boot_ns, raw_ns) =
                    if boot_jumps { (jumped, plain) } else { (plain, jumped) };
                Stamp { boot_ns, raw_ns, real_ns: wall_at(ms) }
            };
            let (mut landed, mut known) = (0, 0);
            let mut seen = Sighting::new(mk_record(Some("a"), "0"), stamp(0, 0));
            for (i, (gap, late)) in renewals.iter().enumerate() {
                landed += gap;
                known = (landed + late).max(known);
                seen.see(mk_record(Some("a"), &(i + 1).to_string()), stamp(known, 0));
            }
            let now = known + then;
            let verdict =
                seen.verdict(stamp(now, jump), Some("b"), Duration::from_millis(own_delay));
            if verdict == Verdict::Free {
                prop_assert!(now >= landed + 15_000);
            }
            // …and it does not wait for ever either.
            if then >= 15_000 + own_delay {
                prop_assert_eq!(verdict, Verdict::Free);
            }
        }
    }
}
