//! What a class declares, and the part of it that goes with every transition.

use serde::{Deserialize, Serialize};

use crate::{Fence, Key, queue::BEATS_TO_LIVE};

/// In what order waiters are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Fairness {
    /// First come, first served.
    #[default]
    Fifo,
    /// A newcomer may overtake those who wait, when the lock happens to be free.
    None,
}

/// What happens while the store's epoch is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Consistency {
    /// No grants until the operator has opened a new epoch.
    #[default]
    Strict,
    /// Grants go on, and may overlap with holds that the store has forgotten.
    BestEffort,
}

/// Which keys a class has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keys {
    /// These and no others.
    Fixed(Vec<Key>),
    /// Any key.
    Any,
}

impl Keys {
    /// Whether the class has this key.
    pub fn contains(&self, key: &Key) -> bool {
        match self {
            Keys::Fixed(keys) => keys.contains(key),
            Keys::Any => true,
        }
    }
}

/// A validated Lock class. Durations are whole milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockConfig {
    /// The class's `metadata.generation`: of two configurations a store keeps the newer.
    pub generation: i64,
    /// How long a hold lasts without a renewal.
    pub ttl_ms: u64,
    /// The longest a hold may last with renewals; zero for no bound.
    pub max_hold_ms: u64,
    /// A hold released earlier than this keeps the lock until then.
    pub min_hold_ms: u64,
    /// Nobody is granted the lock for so long after a hold *expired* (never after a release).
    pub lock_delay_ms: u64,
    /// How many permits of one key may be held at once: 1 but for a semaphore.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub permits: u32,
    /// How many of them one session may hold at once; zero for no bound of its own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_per_holder: u32,
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

const fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_one(permits: &u32) -> bool {
    *permits == 1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(permits: &u32) -> bool {
    *permits == 0
}

impl LockConfig {
    /// How often a session with waiters beats: a sixth of the time to live, 100 ms to 5 s.
    pub fn beat_ms(&self) -> u64 {
        (self.ttl_ms / 6).clamp(100, 5_000)
    }

    /// The part that the store needs with each transition.
    pub fn policy(&self) -> Policy {
        Policy {
            generation: self.generation,
            min_hold_ms: self.min_hold_ms,
            lock_delay_ms: self.lock_delay_ms,
            max_waiters: self.max_waiters,
            beat_ms: self.beat_ms(),
            fairness: self.fairness,
            fence_floor: self.fence_floor.sequence(),
        }
    }
}

/// What a transition carries of its class. A store keeps the newest generation it has seen, so that
/// during a roll-out two sidecars never apply two configurations to one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The class's `metadata.generation`.
    pub generation: i64,
    /// See [`LockConfig::min_hold_ms`].
    pub min_hold_ms: u64,
    /// See [`LockConfig::lock_delay_ms`].
    pub lock_delay_ms: u64,
    /// See [`LockConfig::max_waiters`].
    pub max_waiters: u32,
    /// See [`LockConfig::beat_ms`].
    pub beat_ms: u64,
    /// See [`LockConfig::fairness`].
    pub fairness: Fairness,
    /// Sequences of new grants are greater than this.
    pub fence_floor: u64,
}

impl Policy {
    /// For how long a hold that was offered to a waiter stands until it is claimed: as long as a
    /// silent session counts as alive. A dead waiter so costs its own heartbeat, not a whole hold.
    pub fn claim_ms(&self) -> u64 {
        BEATS_TO_LIVE * self.beat_ms
    }
}
