//! Concurrency: permits that are held at the same time, each with an expiry of its own, inside the
//! one record of the key.

use super::Verdict;

/// A permit that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Its random name.
    pub name: u64,
    /// How much it counts.
    pub cost: u64,
    /// When it ends unless it is released before.
    pub expires_us: u64,
}

/// How the permits that are held stand towards a cost that is not above the limit.
pub fn judge(now_us: u64, held: &[Permit], limit: u64, cost: u64) -> Verdict {
    let used: u64 = held.iter().map(|permit| permit.cost).sum();
    let mut first = 0;
    // Permits are kept in the order of their expiry.
    let (mut freed, mut wait_us) = (0, 0);
    for permit in held {
        let left = permit.expires_us.saturating_sub(now_us).max(1);
        if first == 0 {
            first = left;
        }
        if used + cost > limit + freed {
            freed += permit.cost;
            wait_us = left;
        }
    }
    Verdict { remaining: limit.saturating_sub(used), reset_us: first, wait_us }
}
