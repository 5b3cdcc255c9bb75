//! When a store counts as away, and when as back. Pure: time comes in.
//!
//! One slow call decides only itself. [`AWAY_AFTER`] failures in a row mean that the store is away;
//! then one check every [`PROBE_EVERY`] still asks it. [`BACK_AFTER`] answers in a row, and at least
//! [`CALM`] since the last failure, mean that it is back.

use std::time::Duration;

/// So many failures in a row: away.
pub const AWAY_AFTER: u32 = 3;
/// So many answers in a row: back, if it is calm.
pub const BACK_AFTER: u32 = 3;
/// No failure for so long before a store is believed again.
pub const CALM: Duration = Duration::from_secs(5);
/// How often a store that is away is asked.
pub const PROBE_EVERY: Duration = Duration::from_millis(500);

/// What is known of a store. Times are since any fixed moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outage {
    away: bool,
    failures: u32,
    answers: u32,
    last_failure: Duration,
    next_probe: Duration,
}

impl Outage {
    /// Whether the store counts as away.
    pub const fn is_away(&self) -> bool {
        self.away
    }

    /// Whether an answer now would change nothing: it need not be taken down.
    pub const fn is_calm(&self) -> bool {
        !self.away && self.failures == 0
    }

    /// Whether a check may ask the store now. While it is away, who is told so is the probe.
    pub fn may_ask(&mut self, now: Duration) -> bool {
        if self.away && now < self.next_probe {
            return false;
        }
        self.next_probe = now + PROBE_EVERY;
        true
    }

    /// Takes down what came of a call; whether away or back has changed.
    pub fn note(&mut self, now: Duration, answered: bool) -> bool {
        let before = self.away;
        if answered {
            (self.failures, self.answers) = (0, self.answers.saturating_add(1));
            let calm = now.saturating_sub(self.last_failure) >= CALM;
            self.away &= !(self.answers >= BACK_AFTER && calm);
        } else {
            (self.answers, self.last_failure) = (0, now);
            self.failures = self.failures.saturating_add(1);
            self.away |= self.failures >= AWAY_AFTER;
        }
        before != self.away
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_slow_call_changes_nothing_and_three_do() {
        let mut outage = Outage::default();
        for round in 0..10 {
            assert!(!outage.note(round * MS, false), "round {round}");
            assert!(!outage.note(round * MS, false), "round {round}");
            assert!(!outage.note(round * MS, true) && outage.may_ask(round * MS));
        }
        for failure in 1..=AWAY_AFTER {
            assert_eq!(outage.note(20 * MS, false), failure == AWAY_AFTER);
        }
        assert!(outage.is_away());
    }

    proptest! {
        #[test]
        fn what_a_calm_store_answers_need_not_be_taken_down(
            steps in prop::collection::vec((0u32..3_000, any::<bool>()), 1..200),
        ) {
            let (mut all, mut few, mut now) = (Outage::default(), Outage::default(), Duration::ZERO);
            for (passed, answered) in steps {
                now += passed * MS;
                let changed = all.note(now, answered);
                let taken_down = !(answered && few.is_calm());
                prop_assert_eq!(changed, taken_down && few.note(now, answered));
                prop_assert_eq!(all.is_away(), few.is_away());
            }
        }

        /// Whatever happens, it flips at most once in the time that it must be calm, in each
        /// direction, and a store that is away is asked now and then, never by all.
        #[test]
        fn it_does_not_flap(steps in prop::collection::vec((0u32..800, any::<bool>()), 1..400)) {
            let (mut outage, mut now, mut last_away) = (Outage::default(), Duration::ZERO, None);
            let mut last_asked = None;
            for (passed, answers) in steps {
                now += passed * MS;
                let was_away = outage.is_away();
                if !outage.may_ask(now) {
                    prop_assert!(was_away);
                    prop_assert!(last_asked.is_some_and(|asked| now - asked < PROBE_EVERY));
                    continue;
                }
                last_asked = Some(now);
                if outage.note(now, answers) {
                    match outage.is_away() {
                        true => last_away = Some(now),
                        false => prop_assert!(last_away.is_some_and(|away| now - away >= CALM)),
                    }
                }
            }
        }

        /// A store that is well again is believed again, in bounded time.
        #[test]
        fn it_comes_back(failures in 3u32..50) {
            let (mut outage, mut now) = (Outage::default(), Duration::ZERO);
            for _ in 0..failures {
                outage.note(now, false);
            }
            prop_assert!(outage.is_away());
            let end = now + CALM + PROBE_EVERY * BACK_AFTER;
            while outage.is_away() {
                prop_assert!(now <= end, "still away after {now:?}");
                if outage.may_ask(now) {
                    outage.note(now, true);
                }
                now += 10 * MS;
            }
        }
    }
}
