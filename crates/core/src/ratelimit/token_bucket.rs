//! Token bucket, as the generic cell rate algorithm with exact integers.
//!
//! GCRA keeps the theoretical arrival time of the next cell and needs `window / limit` per cell, which
//! is seldom whole. The level here is that arrival time, less now, times `drain`: with `unit : drain`
//! = `window : limit` in lowest terms nothing is rounded.

use super::{Rule, Verdict};

/// Levels stay below this.
const MAX_LEVEL: u64 = 1 << 52;

/// The numbers of a bucket. Where the exact ratio would not fit, a unit is rounded up, which allows
/// less than a millionth too little.
pub fn rule(limit: u64, window_us: u64, burst: u64) -> Rule {
    let limit = limit.max(1);
    let divisor = gcd(window_us.max(1), limit);
    let (unit, drain) = (window_us.max(1) / divisor, limit / divisor);
    match burst.checked_mul(unit) {
        // Twice, because a slot may be reserved ahead.
        Some(level) if level < MAX_LEVEL / 2 => Rule::TokenBucket { unit, drain, burst },
        _ => Rule::TokenBucket { unit: window_us.div_ceil(limit).max(1), drain: 1, burst },
    }
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The level after some time.
pub const fn drained(level: u64, drain: u64, elapsed_us: u64) -> u64 {
    level.saturating_sub(elapsed_us.saturating_mul(drain))
}

/// How a bucket at this level stands towards a cost that is not above the burst.
pub fn judge(level: u64, unit: u64, drain: u64, burst: u64, cost: u64) -> Verdict {
    let (full, want) = (burst * unit, level + cost * unit);
    Verdict {
        remaining: full.saturating_sub(level) / unit,
        reset_us: level.div_ceil(drain),
        wait_us: want.saturating_sub(full).div_ceil(drain),
    }
}
