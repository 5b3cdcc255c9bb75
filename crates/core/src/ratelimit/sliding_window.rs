//! Sliding window counter: the count of this aligned window, and as much of the last one's as its
//! remaining share of the window. It takes the last window's use as even; where it was not, up to
//! twice the limit may pass in one window, never more.
//!
//! Shares are millionths, rounded up, so an estimate is never too low by rounding.

use super::Verdict;

const WHOLE: u64 = 1_000_000;

/// What the last window's count still weighs when so much of this one is left.
pub const fn carried(previous: u64, left_us: u64, window_us: u64) -> u64 {
    if previous == 0 {
        return 0;
    }
    let share = (left_us.div_ceil(1_000) * WHOLE).div_ceil(window_us / 1_000);
    (previous * share).div_ceil(WHOLE)
}

/// How much of a window must be left at the most for a count to weigh no more than `room`.
const fn left_for(count: u64, room: u64, window_us: u64) -> u64 {
    if count <= room {
        return window_us;
    }
    let share = room * WHOLE / count;
    share * (window_us / 1_000) / WHOLE * 1_000
}

/// How the counts stand towards a cost that is not above the limit.
pub fn judge(
    left_us: u64,
    previous: u64,
    current: u64,
    limit: u64,
    window_us: u64,
    cost: u64,
) -> Verdict {
    let used = carried(previous, left_us, window_us) + current;
    let wait_us = if used + cost <= limit {
        0
    } else if current + cost <= limit {
        left_us.saturating_sub(left_for(previous, limit - cost - current, window_us)).max(1)
    } else {
        // Only when this window is the last one.
        left_us + (window_us - left_for(current, limit - cost, window_us))
    };
    Verdict { remaining: limit.saturating_sub(used), reset_us: left_us, wait_us }
}
