//! Semaphore: at most so many permits at once, in holds of different weight. What a class is; the
//! rules themselves are in [`state`], and for permits that are Lease objects in [`slots`].

use serde::{Deserialize, Serialize};

use crate::{
    Fence,
    lock::{Consistency, Fairness, Keys, LockConfig},
    queue::BEATS_TO_LIVE,
};

pub mod slots;
pub mod state;

/// How many holders a view names.
pub const NAMED: usize = 10;
/// The most permits that a class may have.
pub const MAX_PERMITS: u32 = 10_000;

/// A validated Semaphore class. Durations are whole milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SemaphoreConfig {
    /// The class's `metadata.generation`: of two configurations a store keeps the newer.
    pub generation: i64,
    /// How many permits of one key may be held at once.
    pub permits: u32,
    /// How many of them one session may hold at once; zero for no bound of its own.
    pub max_per_holder: u32,
    /// How long a hold lasts without a renewal.
    pub ttl_ms: u64,
    /// The longest a hold may last with renewals; zero for no bound.
    pub max_hold_ms: u64,
    /// The keys of the class.
    pub keys: Keys,
    /// How many may wait on one key.
    pub max_waiters: u32,
    /// The order of waiters.
    pub fairness: Fairness,
    /// What happens while an epoch is in doubt.
    pub consistency: Consistency,
    /// Fences of this class are greater than this one: what a deleted class of the same name left.
    pub fence_floor: Fence,
}

impl SemaphoreConfig {
    /// The configuration in the form that waits for holds, keeps and stores them: that of a lock
    /// with many permits, without delays.
    pub fn lock(&self) -> LockConfig {
        LockConfig {
            generation: self.generation,
            ttl_ms: self.ttl_ms,
            max_hold_ms: self.max_hold_ms,
            min_hold_ms: 0,
            lock_delay_ms: 0,
            permits: self.permits,
            max_per_holder: self.max_per_holder,
            keys: self.keys.clone(),
            max_waiters: self.max_waiters,
            fairness: self.fairness,
            consistency: self.consistency,
            fence_floor: self.fence_floor,
        }
    }
}

/// What a transition carries of its class. A store keeps the newest generation it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The class's `metadata.generation`.
    pub generation: i64,
    /// See [`SemaphoreConfig::permits`].
    pub permits: u32,
    /// See [`SemaphoreConfig::max_per_holder`].
    pub max_per_holder: u32,
    /// See [`SemaphoreConfig::max_waiters`].
    pub max_waiters: u32,
    /// See [`LockConfig::beat_ms`].
    pub beat_ms: u64,
    /// See [`SemaphoreConfig::fairness`].
    pub fairness: Fairness,
    /// Sequences of new grants are greater than this.
    pub fence_floor: u64,
}

impl Policy {
    /// The part of a configuration that the store needs with each transition.
    pub fn of(config: &LockConfig) -> Self {
        Policy {
            generation: config.generation,
            permits: config.permits,
            max_per_holder: config.max_per_holder,
            max_waiters: config.max_waiters,
            beat_ms: config.beat_ms(),
            fairness: config.fairness,
            fence_floor: config.fence_floor.sequence(),
        }
    }

    /// For how long an offered hold stands until it is claimed, as with a lock.
    pub fn claim_ms(&self) -> u64 {
        BEATS_TO_LIVE * self.beat_ms
    }

    /// The most that one hold can ever have.
    pub fn most(&self) -> u32 {
        match self.max_per_holder {
            0 => self.permits,
            max => self.permits.min(max),
        }
    }
}
