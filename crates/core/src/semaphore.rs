//! Semaphore: at most so many permits at once, in holds of different weight. What a class is; the
//! rules themselves are in [`state`].

use serde::{Deserialize, Serialize};

use crate::{
    Fence,
    lock::{Consistency, Fairness, Keys},
    queue::BEATS_TO_LIVE,
};

pub mod state;

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
    /// How often a session with waiters beats: a sixth of the time to live, 100 ms to 5 s.
    pub fn beat_ms(&self) -> u64 {
        (self.ttl_ms / 6).clamp(100, 5_000)
    }

    /// The part that the store needs with each transition.
    pub fn policy(&self) -> Policy {
        Policy {
            generation: self.generation,
            permits: self.permits,
            max_per_holder: self.max_per_holder,
            max_waiters: self.max_waiters,
            beat_ms: self.beat_ms(),
            fairness: self.fairness,
            fence_floor: self.fence_floor.sequence(),
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
    /// See [`SemaphoreConfig::beat_ms`].
    pub beat_ms: u64,
    /// See [`SemaphoreConfig::fairness`].
    pub fairness: Fairness,
    /// Sequences of new grants are greater than this.
    pub fence_floor: u64,
}

impl Policy {
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
