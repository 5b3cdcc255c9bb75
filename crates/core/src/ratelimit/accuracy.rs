//! Whether each check asks the store, and what it costs in exactness when it does not.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{RateLimitConfig, Rule};

/// Whether each check asks the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Accuracy {
    /// It does.
    #[default]
    Exact,
    /// A sidecar takes tokens from the store in batches and serves checks from them.
    Leased {
        /// The most that a sidecar has in hand for a key.
        batch: u64,
        /// For how long it uses them.
        max_staleness_seconds: u32,
    },
}

/// How much more than `Exact` admits may pass in any window.
///
/// Every token is charged in the store *before* it is used, so what a window admits beyond the
/// store's own count was charged before the window began and lay in a sidecar's hand. At any moment a
/// sidecar has at most a batch, however often it is killed and started again; and what was charged in
/// the time that tokens last is no more than the limit allows in that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverAdmission {
    /// By each sidecar that runs at the same time.
    pub per_sidecar: u64,
    /// By all together, however many they are.
    pub at_most: u64,
}

impl OverAdmission {
    /// The bound for so many sidecars.
    pub const fn of(&self, sidecars: u64) -> u64 {
        let sum = self.per_sidecar.saturating_mul(sidecars);
        if sum < self.at_most { sum } else { self.at_most }
    }
}

impl fmt::Display for OverAdmission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per sidecar, at most {}", self.per_sidecar, self.at_most)
    }
}

impl RateLimitConfig {
    /// The bound of a class; `None` when each check asks the store.
    pub fn over_admission(&self) -> Option<OverAdmission> {
        let Accuracy::Leased { batch, max_staleness_seconds } = self.accuracy else { return None };
        let stale_us = u64::from(max_staleness_seconds) * 1_000_000;
        let in_hand = self.limits.iter().map(|limit| match Rule::new(limit) {
            Rule::TokenBucket { unit, drain, .. } => {
                (stale_us.saturating_mul(drain) / unit).saturating_add(1)
            }
            // Tokens are not carried into the next window.
            Rule::SlidingWindow { limit, .. }
            | Rule::FixedWindow { limit, .. }
            | Rule::Concurrency { limit, .. } => limit,
        });
        let at_most = in_hand.max().unwrap_or(0);
        Some(OverAdmission { per_sidecar: batch.min(at_most), at_most })
    }
}
