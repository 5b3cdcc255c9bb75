//! When an epoch is raised, and when it opens. Pure.
//!
//! An epoch is raised whenever the store may have lost something: another run of the primary, our
//! marker missing, or a marker of somebody later. It opens when every hold that was granted before
//! has run out by the clock of its holder. Of several servers: [`runs`].

pub mod runs;

use std::time::Duration;

use holdfast_api::v1alpha1::backend::EpochStatus;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

/// Beyond the longest hold: a request that is on its way, and clocks that run unlike.
const MARGIN: Duration = Duration::from_secs(1);

/// When a quarantine that begins now is over. In whole seconds, as it is written down, and rounded up:
/// the margin is not to be cut short by that.
fn over(now: Timestamp, longest_ttl: Duration) -> Time {
    let exactly = now + longest_ttl + MARGIN;
    let seconds = exactly.as_second() + i64::from(exactly.subsec_nanosecond() > 0);
    Time(Timestamp::from_second(seconds).unwrap_or(exactly))
}

/// What is known of the store.
pub struct Facts<'a> {
    /// The run of the primary.
    pub replid: &'a str,
    /// The operator's own marker.
    pub marker: Option<u64>,
    /// A number that somebody found too low.
    pub above: Option<u64>,
    /// The epoch of an earlier Backend of this name.
    pub floor: Option<u64>,
    /// The longest time to live of the classes on it.
    pub longest_ttl: Duration,
    /// The operator's time. Only the operator's: it is compared with what an operator wrote.
    pub now: Timestamp,
    /// Whether the quarantine of a server that ends at a time is over: see
    /// [`Quarantines`](super::Quarantines).
    pub is_over: &'a (dyn Fn(&str, Timestamp) -> bool + Sync),
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Change {
    /// Nothing.
    None,
    /// A new epoch, closed (or open, where there is nothing to wait for: see [`next`]).
    Raise(EpochStatus),
    /// The epoch opens, once its marker is set.
    Open(EpochStatus),
}

/// The next step of an epoch.
pub fn next(epoch: Option<&EpochStatus>, facts: &Facts<'_>) -> Change {
    let Some(epoch) = epoch else {
        // Never used before under this name, as far as anybody knows: nothing to wait for.
        let is_new = facts.floor.is_none() && facts.marker.is_none() && facts.above.is_none();
        let not_before = if is_new { Time(facts.now) } else { over(facts.now, facts.longest_ttl) };
        return Change::Raise(raised(0, not_before, facts));
    };
    let is_lost = epoch.open && facts.marker != Some(epoch.number);
    let is_overtaken = facts.marker.is_some_and(|marker| marker > epoch.number);
    let is_doubted = facts.above.is_some_and(|above| above >= epoch.number);
    if epoch.replid != facts.replid || is_lost || is_overtaken || is_doubted {
        let not_before = over(facts.now, facts.longest_ttl);
        return Change::Raise(raised(epoch.number, not_before, facts));
    }
    if !epoch.open && (facts.is_over)("", epoch.not_before.0) {
        return Change::Open(EpochStatus { open: true, ..epoch.clone() });
    }
    Change::None
}

/// The first number above all that is known.
fn raised(number: u64, not_before: Time, facts: &Facts<'_>) -> EpochStatus {
    let known = [Some(number), facts.marker, facts.above, facts.floor];
    let highest = known.into_iter().flatten().max().unwrap_or(0);
    EpochStatus {
        number: highest + 1,
        replid: facts.replid.to_owned(),
        not_before,
        open: false,
        runs: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_facts(replid: &str, marker: Option<u64>, second: i64) -> Facts<'_> {
        Facts {
            replid,
            marker,
            above: None,
            floor: None,
            longest_ttl: Duration::from_secs(15),
            now: Timestamp::from_second(second).unwrap(),
            is_over: Box::leak(Box::new(move |_: &str, at| {
                Timestamp::from_second(second).is_ok_and(|now| now >= at)
            })),
        }
    }

    fn step(epoch: Option<&EpochStatus>, facts: &Facts<'_>) -> EpochStatus {
        match next(epoch, facts) {
            Change::Raise(epoch) | Change::Open(epoch) => epoch,
            Change::None => panic!("nothing to do"),
        }
    }

    #[test]
    fn the_first_epoch_opens_at_once_and_a_later_one_after_the_longest_hold() {
        let first = step(None, &mk_facts("a", None, 100));
        assert_eq!((first.number, first.open), (1, false));
        let open = step(Some(&first), &mk_facts("a", None, 100));
        assert!(open.open);
        assert_eq!(next(Some(&open), &mk_facts("a", Some(1), 101)), Change::None);

        let restarted = step(Some(&open), &mk_facts("b", Some(1), 200));
        assert_eq!((restarted.number, restarted.open), (2, false));
        assert_eq!(restarted.not_before.0, Timestamp::from_second(216).unwrap());
        assert_eq!(next(Some(&restarted), &mk_facts("b", Some(1), 215)), Change::None);
        assert!(step(Some(&restarted), &mk_facts("b", Some(1), 216)).open);
    }

    #[test]
    fn a_quarantine_is_never_cut_short_by_writing_it_down() {
        // Sixteen seconds from then on are not over when the second is that they end in.
        let late = Timestamp::from_millisecond(200_001).unwrap();
        let wait = Duration::from_secs(15);
        assert_eq!(over(late, wait).0, Timestamp::from_second(217).unwrap());
        let sharp = Timestamp::from_second(200).unwrap();
        assert_eq!(over(sharp, wait).0, Timestamp::from_second(216).unwrap());
    }

    #[test]
    fn a_lost_marker_a_later_one_and_a_doubt_raise_it() {
        let open = EpochStatus {
            number: 4,
            replid: "a".into(),
            not_before: Time(Timestamp::UNIX_EPOCH),
            open: true,
            runs: Vec::new(),
        };
        assert_eq!(step(Some(&open), &mk_facts("a", None, 9)).number, 5);
        assert_eq!(step(Some(&open), &mk_facts("a", Some(3), 9)).number, 5);
        assert_eq!(step(Some(&open), &mk_facts("a", Some(9), 9)).number, 10);
        let doubted = Facts { above: Some(6), ..mk_facts("a", Some(4), 9) };
        assert_eq!(step(Some(&open), &doubted).number, 7);
    }

    #[test]
    fn a_backend_that_is_created_again_starts_above_and_waits() {
        let facts = Facts { floor: Some(7), ..mk_facts("a", None, 100) };
        let again = step(None, &facts);
        assert_eq!((again.number, again.open), (8, false));
        assert_eq!(next(Some(&again), &mk_facts("a", None, 101)), Change::None);
    }
}
