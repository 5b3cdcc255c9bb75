//! The keys of one store in memory, whatever their rules are.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use holdfast_core::{Address, Stamp};

/// Idle keys are dropped when this many are kept.
const SWEEP_AT_LEAST: usize = 1_024;

/// The rules of a key.
pub(super) trait State {
    /// The newest fence sequence.
    fn top_seq(&self) -> u64;
    /// Whether it can be forgotten without anybody noticing, but for its fence.
    fn is_idle(&self, now_ms: u64) -> bool;
}

pub(super) struct Keys<S> {
    states: HashMap<Address, S, RandomState>,
    /// The highest sequence that any key ever had, so that a key may be forgotten when idle.
    top_seq: u64,
    sweep_at: usize,
}

/// What a transition needs to know of the time.
pub(super) struct Now {
    pub(super) ms: u64,
    pub(super) floor: u64,
}

impl<S> Default for Keys<S> {
    fn default() -> Self {
        Keys { states: HashMap::default(), top_seq: 0, sweep_at: SWEEP_AT_LEAST }
    }
}

impl<S: State> Keys<S> {
    /// Runs one transition on a key, which is `new` when it is not there.
    pub(super) fn step<T>(
        &mut self,
        at: &Address,
        stamp: Stamp,
        new: impl FnOnce() -> S,
        step: impl FnOnce(&mut S, &Now) -> T,
    ) -> T {
        let now = Now {
            ms: stamp.boot_ns / 1_000_000,
            floor: (stamp.real_ns / 1_000).max(self.top_seq + 1),
        };
        let Keys { states, top_seq, .. } = self;
        let run = |state: &mut S| {
            let done = step(state, &now);
            *top_seq = (*top_seq).max(state.top_seq());
            done
        };
        match states.get_mut(at) {
            Some(state) => run(state),
            None => {
                let mut state = new();
                let done = run(&mut state);
                self.sweep(now.ms);
                self.states.insert(at.clone(), state);
                done
            }
        }
    }

    pub(super) fn get(&self, at: &Address) -> Option<&S> {
        self.states.get(at)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Address, &S)> {
        self.states.iter()
    }

    fn sweep(&mut self, now_ms: u64) {
        if self.states.len() >= self.sweep_at {
            self.states.retain(|_, state| !state.is_idle(now_ms));
            self.sweep_at = (2 * self.states.len()).max(SWEEP_AT_LEAST);
        }
    }
}
