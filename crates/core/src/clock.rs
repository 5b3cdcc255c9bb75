//! This machine's clocks, and how long a hold may be trusted by them.
//!
//! No single Linux clock is enough: `CLOCK_MONOTONIC` stops while the machine is suspended,
//! `CLOCK_REALTIME` is stepped by people and daemons, and all but `CLOCK_MONOTONIC_RAW` are slewed.
//! A [`Stamp`] reads three of them, and elapsed time is the *largest* of what they say: an error of
//! any one clock can only end a hold early, never keep it too long.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// One reading of the three clocks. Meaningful only in the process (and boot) that took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// `CLOCK_BOOTTIME`, nanoseconds: goes on in suspend.
    pub boot_ns: u64,
    /// `CLOCK_MONOTONIC_RAW`, nanoseconds: never slewed.
    pub raw_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub real_ns: u64,
}

impl Stamp {
    /// How long after `earlier` this reading was taken: the largest of the three differences, and
    /// zero for clocks that went back.
    pub fn since(self, earlier: Stamp) -> Duration {
        let boot = self.boot_ns.saturating_sub(earlier.boot_ns);
        let raw = self.raw_ns.saturating_sub(earlier.raw_ns);
        let real = self.real_ns.saturating_sub(earlier.real_ns);
        Duration::from_nanos(boot.max(raw).max(real))
    }
}

/// A source of [`Stamp`]s. Tests inject their own.
pub trait Clock: Send + Sync + 'static {
    /// Reads the clocks.
    fn now(&self) -> Stamp;
}

/// The kernel's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Stamp {
        let read = |id| {
            let time = clock_gettime(id);
            // Both parts are non-negative for these clocks after 1970.
            time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
        };
        Stamp {
            boot_ns: read(ClockId::Boottime),
            raw_ns: read(ClockId::MonotonicRaw),
            real_ns: read(ClockId::Realtime),
        }
    }
}

/// How long a hold granted for `ttl` may be trusted by its holder: `ttl − max(10 % of ttl, 50 ms)`.
///
/// A slewing clock may legally run 8.3 % off (chrony's `maxslewrate`), so Redlock's 1 % is too
/// little.
pub fn trusted_for(ttl: Duration) -> Duration {
    ttl.saturating_sub((ttl / 10).max(Duration::from_millis(50)))
}

/// Until when a holder may act on its hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Taken before the first byte of the granting request was sent.
    since: Stamp,
    trusted: Duration,
}

impl Deadline {
    /// The deadline of a hold that the store granted for `ttl`.
    ///
    /// `since` must have been read *before* the request was sent (or at a time when the hold was
    /// known not to have been granted yet): the store starts counting after it.
    pub fn new(since: Stamp, ttl: Duration) -> Self {
        Deadline { since, trusted: trusted_for(ttl) }
    }

    /// The same deadline, but no later than `most` after the stamp it counts from.
    #[must_use]
    pub fn within(self, most: Duration) -> Self {
        Deadline { trusted: self.trusted.min(most), ..self }
    }

    /// How much longer the hold may be trusted; zero once it is over.
    pub fn remaining(&self, now: Stamp) -> Duration {
        self.trusted.saturating_sub(now.since(self.since))
    }

    /// Whether the hold must no longer be trusted.
    pub fn passed(&self, now: Stamp) -> bool {
        self.remaining(now).is_zero()
    }

    /// When it is over on `CLOCK_BOOTTIME`, for apps that check by themselves. The containers of a
    /// pod share this clock.
    pub fn boot_ns(&self) -> u64 {
        self.since.boot_ns.saturating_add(self.trusted.as_nanos() as u64)
    }

    /// How long after [`Deadline::since`] it is over.
    pub fn trusted(&self) -> Duration {
        self.trusted
    }

    /// The stamp the deadline counts from.
    pub fn since(&self) -> Stamp {
        self.since
    }
}

/// The decorrelated-jitter back-off: the next sleep is uniform in `base ..= 3 × previous`, capped.
///
/// Source: M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    previous: Duration,
}

impl Backoff {
    /// A back-off that starts at `base` and never exceeds `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Backoff { base, cap: cap.max(base), previous: base }
    }

    /// The next sleep.
    pub fn next_delay(&mut self) -> Duration {
        let high = (self.previous * 3).max(self.base + Duration::from_millis(1));
        let nanos = rand::random_range(self.base.as_nanos() as u64..=high.as_nanos() as u64);
        self.previous = Duration::from_nanos(nanos).min(self.cap);
        self.previous
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.previous = self.base;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mk_stamp(ms: i64) -> Stamp {
        let ns = (1_000_000_000_000 + ms * 1_000_000) as u64;
        Stamp { boot_ns: ns, raw_ns: ns, real_ns: ns }
    }

    proptest! {
        /// A3, A4: whatever two of the clocks do, the one that is right ends the hold in time.
        #[test]
        fn no_jump_of_any_two_clocks_keeps_a_hold_too_long(
            ttl_ms in 100u64..100_000, elapsed_ms in 0i64..200_000,
            wrong in 0usize..3, jump_a in -3_600_000i64..3_600_000, jump_b in -3_600_000i64..3_600_000,
        ) {
            let start = mk_stamp(0);
            let mut now = mk_stamp(elapsed_ms);
            let shift = |ns: u64, ms: i64| (ns as i64).saturating_add(ms * 1_000_000).max(0) as u64;
            match wrong {
                0 => { now.raw_ns = shift(now.raw_ns, jump_a); now.real_ns = shift(now.real_ns, jump_b) }
                1 => { now.boot_ns = shift(now.boot_ns, jump_a); now.real_ns = shift(now.real_ns, jump_b) }
                _ => { now.boot_ns = shift(now.boot_ns, jump_a); now.raw_ns = shift(now.raw_ns, jump_b) }
            }
            let deadline = Deadline::new(start, Duration::from_millis(ttl_ms));
            if !deadline.passed(now) {
                prop_assert!(elapsed_ms as u64 <= ttl_ms);
                // …and with every clock 8.3 % slow it still ends before the store's expiry.
                let true_ms = elapsed_ms as f64 * 1.083;
                prop_assert!(true_ms <= ttl_ms as f64);
            }
        }
    }

    #[test]
    fn the_margin_is_a_tenth_but_at_least_fifty_milliseconds() {
        assert_eq!(trusted_for(Duration::from_secs(15)), Duration::from_millis(13_500));
        assert_eq!(trusted_for(Duration::from_millis(200)), Duration::from_millis(150));
        assert_eq!(trusted_for(Duration::from_millis(50)), Duration::ZERO);
    }

    #[test]
    fn a_deadline_can_be_drawn_in_and_never_put_off() {
        let (start, ttl) = (mk_stamp(0), Duration::from_secs(15));
        let deadline = Deadline::new(start, ttl).within(Duration::from_secs(10));
        assert!(!deadline.passed(mk_stamp(9_999)) && deadline.passed(mk_stamp(10_000)));
        let deadline = Deadline::new(start, ttl).within(Duration::from_secs(14));
        assert!(!deadline.passed(mk_stamp(13_499)) && deadline.passed(mk_stamp(13_500)));
    }

    #[test]
    fn system_clocks_advance() {
        let first = SystemClock.now();
        let second = SystemClock.now();
        assert!(second.boot_ns >= first.boot_ns);
        assert!(second.since(first) < Duration::from_secs(5));
    }

    #[test]
    fn backoff_stays_between_base_and_cap() {
        let (base, cap) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut backoff = Backoff::new(base, cap);
        for _ in 0..1_000 {
            let delay = backoff.next_delay();
            assert!(delay >= base && delay <= cap, "{delay:?}");
        }
    }
}
