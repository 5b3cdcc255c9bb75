//! Fixed window: a count that begins anew at each multiple of the window since 1970.
//!
//! Cheapest of all, and the least exact: twice the limit may pass in a short time around an edge.

use super::Verdict;

/// The start of the window that a time is in.
pub const fn start_of(now_us: u64, window_us: u64) -> u64 {
    now_us - now_us % window_us
}

/// How a count stands towards a cost that is not above the limit.
pub fn judge(
    now_us: u64,
    start: u64,
    count: u64,
    limit: u64,
    window_us: u64,
    cost: u64,
) -> Verdict {
    let left = (start + window_us).saturating_sub(now_us);
    let fits = count + cost <= limit;
    Verdict {
        remaining: limit.saturating_sub(count),
        reset_us: left,
        wait_us: if fits { 0 } else { left.max(1) },
    }
}
