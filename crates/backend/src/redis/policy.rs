//! What scripts are told of a class: its policy, in the form of `lua/prelude.lua`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use foldhash::fast::RandomState;
use holdfast_core::{
    Address, ClassName,
    lock::{Fairness, LockConfig, Policy},
    semaphore,
};

use crate::hub::lock;

/// Lua's numbers are exact below 2^53; sums of a few of these stay there. 139 years.
pub(super) const MAX_MS: u64 = 1 << 42;

/// The newest policy of each class as scripts take it: writing its numbers costs more than finding it.
pub(super) struct Policies<P>(Mutex<HashMap<ClassName, (P, Arc<str>), RandomState>>);

/// What scripts are told of a class.
pub(super) trait Encode: Copy + PartialEq {
    fn of(config: &LockConfig) -> Self;
    fn encode(&self) -> String;
}

impl<P> Default for Policies<P> {
    fn default() -> Self {
        Policies(Mutex::default())
    }
}

impl<P: Encode> Policies<P> {
    pub(super) fn encode(&self, at: &Address, config: &LockConfig) -> Arc<str> {
        let policy = P::of(config);
        let mut kept = lock(&self.0);
        if let Some((of, text)) = kept.get(&at.class)
            && *of == policy
        {
            return text.clone();
        }
        let text: Arc<str> = policy.encode().into();
        kept.insert(at.class.clone(), (policy, text.clone()));
        text
    }
}

const fn ms(ms: u64) -> u64 {
    if ms < MAX_MS { ms } else { MAX_MS }
}

/// A time as scripts take it.
pub(super) fn ms_of(time: Duration) -> u64 {
    (time.as_millis() as u64).min(MAX_MS)
}

const fn is_fifo(fairness: Fairness) -> u8 {
    match fairness {
        Fairness::Fifo => 1,
        Fairness::None => 0,
    }
}

impl Encode for Policy {
    fn of(config: &LockConfig) -> Self {
        config.policy()
    }

    /// See `lua/prelude.lua`.
    fn encode(&self) -> String {
        format!(
            "{}:{}:{}:{}:{}:{}:{}",
            self.generation.clamp(0, MAX_MS as i64),
            ms(self.min_hold_ms),
            ms(self.lock_delay_ms),
            self.max_waiters,
            ms(self.beat_ms),
            is_fifo(self.fairness),
            ms(self.fence_floor),
        )
    }
}

impl Encode for semaphore::Policy {
    fn of(config: &LockConfig) -> Self {
        semaphore::Policy::of(config)
    }

    /// See `lua/semaphore_prelude.lua`.
    fn encode(&self) -> String {
        format!(
            "{}:{}:{}:{}:{}:{}:{}",
            self.generation.clamp(0, MAX_MS as i64),
            self.permits,
            self.max_per_holder,
            self.max_waiters,
            ms(self.beat_ms),
            is_fifo(self.fairness),
            ms(self.fence_floor),
        )
    }
}
