//! The timetable of one hold: when to renew, when to warn, when it is over. A function of stamps,
//! tested without waiting.
//!
//! The deadline decides, whoever looks; timers only signal. Each renewal is due after a third of
//! the time to live; the warning comes when three quarters of the trusted time have gone by without
//! one that succeeded.

use std::time::Duration;

use holdfast_core::{Deadline, Stamp};
use holdfast_wire::HoldState;

/// The first pause after a failed renewal; later ones are longer.
const RETRY_BASE: Duration = Duration::from_millis(50);
/// Renewals are spread by one part in so many of their period, both ways, so that holds taken
/// together are not renewed together.
const JITTER: u64 = 10;

/// A hold that was offered to a waiter is claimed after this pause: of one that is released before, the
/// release is all that the store is asked for, and who waits is answered before anything else is done.
const CLAIM_AFTER: Duration = Duration::from_millis(25);

/// A store that grants this much less than it was asked for has not cut it short: some keep a margin, and
/// times are rounded on their way.
const ROUNDING: Duration = Duration::from_millis(10);

/// What is to be done with a hold now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until [`Life::due_ns`].
    Wait,
    /// Send a renewal.
    Renew,
    /// Tell the app that the end may be near.
    Suspend,
    /// Tell the app that it is over.
    Lose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewal {
    /// At this boot time.
    At(u64),
    /// Sent, not answered yet.
    Sent,
    /// Not until the app gives a sign of life.
    Paused,
    /// Never again: the caller renews, the longest hold is reached, or the app has released.
    Never,
}

/// One hold's timetable.
#[derive(Clone, Debug)]
pub struct Life {
    /// What its holder has asked for.
    wanted: Duration,
    /// And what its class grants of that now.
    asked: Duration,
    granted: Duration,
    deadline: Deadline,
    /// How long after its last renewal the hold is trusted at most.
    most: Duration,
    suspended: bool,
    renewal: Renewal,
    failures: u8,
}

impl Life {
    /// The life, from now on, of a hold just granted: `asked` is what each renewal asks for, `most`
    /// draws its deadlines in. An unclaimed one is renewed soon.
    pub fn new(
        asked: Duration,
        granted: Duration,
        deadline: Deadline,
        most: Duration,
        claimed: bool,
        auto: bool,
        now: Stamp,
    ) -> Self {
        let deadline = deadline.within(most);
        let renewal = match (auto, claimed) {
            (false, _) => Renewal::Never,
            (true, false) => {
                let pause = CLAIM_AFTER.min(deadline.remaining(now) / 10);
                Renewal::At(now.boot_ns + pause.as_nanos() as u64)
            }
            (true, true) => Renewal::At(renew_at(deadline, granted)),
        };
        let (wanted, suspended) = (asked, false);
        Life { wanted, asked, granted, deadline, most, suspended, renewal, failures: 0 }
    }

    /// What its holder has asked for.
    pub fn wanted(&self) -> Duration {
        self.wanted
    }

    /// What a renewal that is sent now asks for: no less than is left of what the store has granted,
    /// since the holder may have been told so. By boot time, as it was told.
    pub fn asks(&self, now: Stamp) -> Duration {
        let spent = now.boot_ns.saturating_sub(self.deadline.since().boot_ns);
        self.asked.max(self.granted.saturating_sub(Duration::from_nanos(spent)))
    }

    /// What the class grants now: of one that was made shorter the hold has no more than that, once
    /// what it was granted is over.
    pub fn keep_to(&mut self, most: Duration) {
        self.asked = self.wanted.min(most);
    }

    /// What the store granted last.
    pub fn granted(&self) -> Duration {
        self.granted
    }

    /// Until when the hold may be trusted.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// How it stands, as far as has been told.
    pub fn state(&self) -> HoldState {
        if self.suspended { HoldState::Suspended } else { HoldState::Held }
    }

    /// The boot time at which [`Life::step`] has something to do, unless something happens before.
    pub fn due_ns(&self) -> u64 {
        let mut due = self.deadline.boot_ns();
        if !self.suspended {
            due = due.min(self.suspend_ns());
        }
        match self.renewal {
            Renewal::At(at) => due.min(at),
            Renewal::Sent | Renewal::Paused | Renewal::Never => due,
        }
    }

    /// What is to be done now, noted as done. `alive` is whether the app counts as alive.
    pub fn step(&mut self, now: Stamp, alive: bool) -> Step {
        if self.deadline.passed(now) {
            return Step::Lose;
        }
        if let Renewal::At(at) = self.renewal
            && now.boot_ns >= at
        {
            self.renewal = if alive { Renewal::Sent } else { Renewal::Paused };
            if alive {
                return Step::Renew;
            }
        }
        if !self.suspended && now.boot_ns >= self.suspend_ns() {
            self.suspended = true;
            return Step::Suspend;
        }
        Step::Wait
    }

    /// A renewal sent at `sent`, that asked for so long, succeeded. Returns whether the hold was
    /// suspended until now.
    pub fn renewed(&mut self, sent: Stamp, asked: Duration, granted: Duration) -> bool {
        let next = Deadline::new(sent, granted).within(self.most);
        // A late answer never shortens what a newer one has granted.
        if next.boot_ns() >= self.deadline.boot_ns() {
            (self.deadline, self.granted) = (next, granted);
        }
        self.failures = 0;
        if self.renewal != Renewal::Never {
            // Less than asked for means that the longest hold is reached: more asking brings nothing.
            let is_last = granted + ROUNDING < asked;
            let at = renew_at(next, granted);
            self.renewal = if is_last { Renewal::Never } else { Renewal::At(at) };
        }
        std::mem::take(&mut self.suspended)
    }

    /// A renewal did not succeed, or got no answer: the next one is due soon.
    pub fn failed(&mut self, now: Stamp) {
        if self.renewal == Renewal::Sent {
            let cap = (self.deadline.trusted() / 5).clamp(RETRY_BASE / 2, Duration::from_secs(5));
            let high = (RETRY_BASE * 3u32.pow(u32::from(self.failures.min(6)))).min(cap);
            let pause = rand::random_range(high / 2..=high);
            self.failures = self.failures.saturating_add(1);
            self.renewal = Renewal::At(now.boot_ns + pause.as_nanos() as u64);
        }
    }

    /// The app gave a sign of life: renewals that were paused go on.
    pub fn resume(&mut self, now: Stamp) {
        if self.renewal == Renewal::Paused {
            self.renewal = Renewal::At(now.boot_ns);
        }
    }

    /// No more renewals by the sidecar.
    pub fn stop_renewing(&mut self) {
        self.renewal = Renewal::Never;
    }

    /// For how long an answer to a renewal is waited for.
    pub fn patience(&self) -> Duration {
        (self.deadline.trusted() / 3).max(Duration::from_millis(20))
    }

    fn suspend_ns(&self) -> u64 {
        let (since, end) = (self.deadline.since().boot_ns, self.deadline.boot_ns());
        since + (end - since) / 4 * 3
    }
}

/// When a hold granted for `ttl` until `deadline` is renewed.
fn renew_at(deadline: Deadline, ttl: Duration) -> u64 {
    // A third of the time to live, but where the trusted part is short that is what counts.
    let period_ns = (ttl / 3).min(deadline.trusted() / 2).as_nanos() as u64;
    let jitter_ns = period_ns / JITTER;
    let spread_ns = rand::random_range(0..=2 * jitter_ns);
    deadline.since().boot_ns + period_ns - jitter_ns + spread_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);

    fn at(ms: u64) -> Stamp {
        let ns = (1_000_000 + ms) * 1_000_000;
        Stamp { boot_ns: ns, raw_ns: ns, real_ns: ns }
    }

    fn mk_life(auto: bool) -> Life {
        Life::new(TTL, TTL, Deadline::new(at(0), TTL), Duration::MAX, true, auto, at(0))
    }

    #[test]
    fn a_shorter_class_takes_nothing_back_and_is_asked_for_in_the_end() {
        let mut life = mk_life(true);
        let most = Duration::from_secs(3);
        life.keep_to(most);
        let mut ends = life.deadline().boot_ns();
        for ms in [5_000, 8_000, 10_000, 11_500] {
            let asks = life.asks(at(ms));
            assert_eq!(asks, TTL - Duration::from_millis(ms), "what the store has granted is kept");
            life.renewed(at(ms), asks, asks);
            assert!(life.deadline().boot_ns() >= ends, "taken back at {ms}");
            ends = life.deadline().boot_ns();
        }
        assert_eq!(life.asks(at(13_000)), most);
        life.renewed(at(13_000), most, most);
        assert!(life.deadline().boot_ns() >= ends);
        // It is not taken for the end of the longest hold.
        assert_eq!(life.step(at(14_500), true), Step::Renew);
    }

    /// One of a class that trusts a hold for less than its time to live allows.
    fn mk_leading(most: Duration) -> Life {
        Life::new(TTL, TTL, Deadline::new(at(0), TTL), most, true, true, at(0))
    }

    #[test]
    fn a_leader_stops_at_its_renew_deadline_after_each_renewal() {
        let mut life = mk_leading(Duration::from_secs(10));
        assert_eq!(life.step(at(5_500), true), Step::Renew);
        assert_eq!(life.step(at(7_499), true), Step::Wait);
        assert_eq!(life.step(at(7_500), true), Step::Suspend);
        assert!(life.renewed(at(5_500), TTL, TTL));
        assert_eq!(life.deadline().boot_ns(), at(15_500).boot_ns);
        life.stop_renewing();
        assert_eq!(life.step(at(13_000), true), Step::Suspend);
        assert_eq!(life.step(at(15_499), true), Step::Wait);
        assert_eq!(life.step(at(15_500), true), Step::Lose);
    }

    #[test]
    fn a_short_renew_deadline_is_renewed_in_time_and_a_long_one_keeps_the_safe_end() {
        for _ in 0..100 {
            let due = mk_leading(Duration::from_secs(4)).due_ns();
            assert!((at(1_800).boot_ns..=at(2_200).boot_ns).contains(&due));
        }
        assert_eq!(mk_leading(Duration::from_secs(14)).deadline().boot_ns(), at(13_500).boot_ns);
        assert_eq!(mk_leading(Duration::from_secs(4)).patience(), Duration::from_secs(4) / 3);
    }

    #[test]
    fn a_hold_is_renewed_after_a_third_give_or_take_a_tenth() {
        for _ in 0..100 {
            let due = mk_life(true).due_ns();
            assert!((at(4_500).boot_ns..=at(5_500).boot_ns).contains(&due));
        }
    }

    #[test]
    fn an_offered_hold_is_claimed_soon_but_not_at_once() {
        let claimed_at = |ttl: Duration, now: Stamp| {
            let deadline = Deadline::new(at(0), ttl);
            Life::new(TTL, ttl, deadline, Duration::MAX, false, true, now).due_ns()
        };
        assert_eq!(claimed_at(TTL, at(5_000)), at(5_025).boot_ns);
        // A tenth of the 50 ms that it is trusted for.
        assert_eq!(claimed_at(Duration::from_millis(100), at(0)), at(5).boot_ns);
    }

    #[test]
    fn without_renewals_the_warning_comes_before_the_end_and_only_once() {
        let mut life = mk_life(false);
        assert_eq!(life.step(at(10_000), true), Step::Wait);
        assert_eq!(life.due_ns(), at(10_125).boot_ns);
        assert_eq!(life.step(at(10_125), true), Step::Suspend);
        assert_eq!(life.step(at(10_126), true), Step::Wait);
        assert_eq!(life.step(at(13_499), true), Step::Wait);
        assert_eq!(life.step(at(13_500), true), Step::Lose);
    }

    #[test]
    fn a_failed_renewal_is_tried_again_and_success_takes_the_warning_back() {
        let mut life = mk_life(true);
        assert_eq!(life.step(at(5_500), true), Step::Renew);
        assert_eq!(life.step(at(5_501), true), Step::Wait, "one at a time");
        life.failed(at(6_000));
        assert!(life.due_ns() > at(6_000).boot_ns && life.due_ns() <= at(6_050).boot_ns);
        assert_eq!(life.step(at(6_100), true), Step::Renew);
        assert_eq!(life.step(at(10_200), true), Step::Suspend);
        assert_eq!(life.state(), HoldState::Suspended);
        assert!(life.renewed(at(6_100), TTL, TTL));
        assert_eq!(life.state(), HoldState::Held);
        assert_eq!(life.deadline().boot_ns(), at(6_100 + 13_500).boot_ns);
    }

    #[test]
    fn retries_of_a_dead_store_slow_down_but_leave_time_for_several() {
        let mut life = mk_life(true);
        let (mut now, mut tries) = (5_500, 0);
        while life.step(at(now), true) != Step::Lose {
            life.failed(at(now));
            tries += 1;
            now = (life.due_ns() - at(0).boot_ns) / 1_000_000 + 1;
        }
        assert!((4..60).contains(&tries), "{tries} tries");
    }

    #[test]
    fn a_silent_app_pauses_renewals_and_a_sign_of_life_resumes_them() {
        let mut life = mk_life(true);
        assert_eq!(life.step(at(5_500), false), Step::Wait);
        assert_eq!(life.due_ns(), at(10_125).boot_ns, "no busy loop while paused");
        life.resume(at(7_000));
        assert_eq!(life.step(at(7_000), true), Step::Renew);
    }

    #[test]
    fn a_renewal_cut_short_is_the_last_one() {
        let mut life = mk_life(true);
        assert_eq!(life.step(at(5_500), true), Step::Renew);
        life.renewed(at(5_500), TTL, Duration::from_secs(9));
        assert_eq!(life.due_ns(), at(5_500 + 6_075).boot_ns, "the warning, not a renewal");
    }

    #[test]
    fn a_late_answer_never_shortens_a_hold() {
        let mut life = mk_life(true);
        life.renewed(at(5_000), TTL, TTL);
        let deadline = life.deadline();
        life.renewed(at(2_000), TTL, TTL);
        assert_eq!(life.deadline(), deadline);
    }

    #[test]
    fn the_shortest_holds_are_renewed_and_warned_of_in_time() {
        let ttl = Duration::from_millis(100);
        let deadline = Deadline::new(at(0), ttl);
        let mut life = Life::new(ttl, ttl, deadline, Duration::MAX, true, true, at(0));
        assert!(life.due_ns() <= at(28).boot_ns);
        assert_eq!(life.step(at(28), true), Step::Renew);
        assert_eq!(life.step(at(38), true), Step::Suspend);
        assert_eq!(life.step(at(50), true), Step::Lose);
    }
}
