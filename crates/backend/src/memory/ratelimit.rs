//! Rate limits in memory: [`RateState`] behind a mutex.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use foldhash::quality::RandomState;
use holdfast_core::{
    Address, BackendError, Clock, Guarantee, Substrate,
    ratelimit::{Check, Decision, Mode, Policy, RateLimitBackend, Taken, state::RateState},
};

use crate::hub::lock;

/// Rate limits that live as long as the process.
///
/// # Guarantees
/// Those of [`RateLimitBackend`]. Only states that say nothing any more are forgotten, and the
/// forgetting is spread so that a check pays for it a constant share.
pub struct MemoryRateLimits {
    clock: Arc<dyn Clock>,
    keys: Mutex<Keys>,
}

struct Keys {
    states: HashMap<Address, RateState, RandomState>,
    /// Idle keys are dropped when this many are kept.
    sweep_at: usize,
}

const SWEEP_AT_LEAST: usize = 1_024;

impl MemoryRateLimits {
    /// An empty store.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let keys = Keys { states: HashMap::default(), sweep_at: SWEEP_AT_LEAST };
        Arc::new(MemoryRateLimits { clock, keys: Mutex::new(keys) })
    }

    /// How many keys are kept.
    pub fn kept(&self) -> usize {
        lock(&self.keys).states.len()
    }

    fn step<T>(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        step: impl FnOnce(&mut RateState, u64) -> T,
    ) -> T {
        let now_us = self.now_us();
        let mut keys = lock(&self.keys);
        if let Some(state) = keys.states.get_mut(at) {
            return step(state, now_us);
        }
        keys.sweep(now_us);
        let mut state = RateState::new(policy, now_us);
        let outcome = step(&mut state, now_us);
        keys.states.insert(at.clone(), state);
        outcome
    }

    /// Of the wall: aligned windows are those of every other process.
    fn now_us(&self) -> u64 {
        self.clock.now().real_ns / 1_000
    }
}

impl Keys {
    fn sweep(&mut self, now_us: u64) {
        if self.states.len() >= self.sweep_at {
            self.states.retain(|_, state| !state.is_idle(now_us));
            self.sweep_at = (2 * self.states.len()).max(SWEEP_AT_LEAST);
        }
    }
}

#[async_trait]
impl RateLimitBackend for MemoryRateLimits {
    fn substrate(&self) -> Substrate {
        Substrate::Memory
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::Process
    }

    async fn check(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        check: &Check,
    ) -> Result<Decision, BackendError> {
        Ok(match check.mode {
            Mode::Enforce => {
                self.step(at, policy, |state, now_us| state.check(policy, now_us, check))
            }
            Mode::Peek => {
                let now_us = self.now_us();
                match lock(&self.keys).states.get(at) {
                    Some(state) => state.peek(policy, now_us, check.cost),
                    None => RateState::new(policy, now_us).peek(policy, now_us, check.cost),
                }
            }
        })
    }

    async fn refund(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        cost: u64,
    ) -> Result<(), BackendError> {
        self.step(at, policy, |state, now_us| state.refund(policy, now_us, cost));
        Ok(())
    }

    async fn put_back(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        taken: Taken,
    ) -> Result<(), BackendError> {
        self.step(at, policy, |state, now_us| state.put_back(policy, now_us, taken));
        Ok(())
    }

    async fn release(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        permit: u64,
    ) -> Result<bool, BackendError> {
        Ok(self.step(at, policy, |state, now_us| state.release(policy, now_us, permit)))
    }

    async fn reset(&self, at: &Address) -> Result<(), BackendError> {
        lock(&self.keys).states.remove(at);
        Ok(())
    }
}
