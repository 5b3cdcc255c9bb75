//! What scripts are told of a class: its policy, in the form of `lua/prelude.lua`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use holdfast_core::{
    Address, ClassName,
    lock::{Fairness, LockConfig, Policy},
};

use crate::hub::lock;

/// Lua's numbers are exact below 2^53; sums of a few of these stay there. 139 years.
pub(super) const MAX_MS: u64 = 1 << 42;

/// The newest policy of each class as scripts take it: writing its numbers costs more than finding it.
#[derive(Default)]
pub(super) struct Policies(Mutex<HashMap<ClassName, (Policy, Arc<str>)>>);

impl Policies {
    pub(super) fn encode(&self, at: &Address, config: &LockConfig) -> Arc<str> {
        let policy = config.policy();
        let mut kept = lock(&self.0);
        if let Some((of, text)) = kept.get(&at.class)
            && *of == policy
        {
            return text.clone();
        }
        let text: Arc<str> = encode_policy(&policy).into();
        kept.insert(at.class.clone(), (policy, text.clone()));
        text
    }
}

/// See `lua/prelude.lua`.
fn encode_policy(policy: &Policy) -> String {
    let ms = |ms: u64| ms.min(MAX_MS);
    format!(
        "{}:{}:{}:{}:{}:{}:{}",
        policy.generation.clamp(0, MAX_MS as i64),
        ms(policy.min_hold_ms),
        ms(policy.lock_delay_ms),
        policy.max_waiters,
        ms(policy.beat_ms),
        match policy.fairness {
            Fairness::Fifo => 1,
            Fairness::None => 0,
        },
        ms(policy.fence_floor),
    )
}
