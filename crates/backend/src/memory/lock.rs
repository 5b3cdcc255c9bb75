//! Locks in memory: [`LockState`] behind a mutex.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, ClassName, Clock, Fence, Guarantee, HoldId, Key, Kind, SessionId,
    Substrate,
    lock::{
        Acquire, Attempt, Beat, Grant, HolderView, LockBackend, LockConfig, LockView, Push,
        Release, Renewal,
        state::{Acquired, Held, LockState, Offer},
    },
    queue::Ticket,
};

use crate::hub::{Hub, lock};

/// Locks that live as long as the process.
///
/// # Guarantees
/// Those of [`LockBackend`]; fences grow over restarts of the process too, as long as the machine's
/// wall clock does not go back between two runs: a sequence is never below the microseconds since
/// 1970.
///
/// # Caveats
/// Holds end with the process, without anybody being told.
pub struct MemoryLocks {
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    keys: Mutex<Keys>,
}

struct Keys {
    states: HashMap<Address, LockState>,
    /// The highest sequence that any key ever had, so that a key may be forgotten when idle.
    top_seq: u64,
    /// Idle keys are dropped when this many are kept.
    sweep_at: usize,
}

const SWEEP_AT_LEAST: usize = 1_024;

/// What a transition needs to know of the time.
struct Now {
    stamp: holdfast_core::Stamp,
    ms: u64,
    floor: u64,
}

impl MemoryLocks {
    /// An empty store.
    pub fn new(hub: Arc<Hub>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let keys = Keys { states: HashMap::new(), top_seq: 0, sweep_at: SWEEP_AT_LEAST };
        Arc::new(MemoryLocks { hub, clock, keys: Mutex::new(keys) })
    }

    /// Runs one transition and delivers what it offers.
    fn step<T>(
        &self,
        at: &Address,
        config: &LockConfig,
        step: impl FnOnce(&mut LockState, &Now) -> (T, Option<Offer>),
    ) -> T {
        let stamp = self.clock.now();
        let mut keys = lock(&self.keys);
        let now = Now {
            stamp,
            ms: stamp.boot_ns / 1_000_000,
            floor: (stamp.real_ns / 1_000).max(keys.top_seq + 1),
        };
        let Keys { states, top_seq, .. } = &mut *keys;
        let run = |state: &mut LockState| {
            let done = step(state, &now);
            *top_seq = (*top_seq).max(state.view(now.ms).2);
            done
        };
        let (outcome, offer) = match states.get_mut(at) {
            Some(state) => run(state),
            None => {
                let mut state = LockState::new(config.policy());
                let done = run(&mut state);
                keys.sweep(now.ms);
                keys.states.insert(at.clone(), state);
                done
            }
        };
        drop(keys);
        if let Some(offer) = offer {
            let grant = mk_grant(offer.seq, offer.ttl_ms, false);
            self.hub.send(&offer.hold, Push::Granted { grant, since: Some(now.stamp) });
        }
        outcome
    }
}

impl Keys {
    fn sweep(&mut self, now_ms: u64) {
        if self.states.len() >= self.sweep_at {
            self.states.retain(|_, state| !state.is_idle(now_ms));
            self.sweep_at = (2 * self.states.len()).max(SWEEP_AT_LEAST);
        }
    }
}

#[async_trait]
impl LockBackend for MemoryLocks {
    fn substrate(&self) -> Substrate {
        Substrate::Memory
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::Process
    }

    async fn acquire(&self, at: &Address, request: &Acquire) -> Result<Attempt, BackendError> {
        let want = Ticket {
            hold: request.hold.clone(),
            session: request.session.clone(),
            holder: request.holder.clone(),
            ttl_ms: request.ttl.as_millis() as u64,
            max_hold_ms: request.max_hold.as_millis() as u64,
            permits: 1,
        };
        let policy = request.config.policy();
        let acquired = self.step(at, &request.config, |state, now| {
            state.acquire(now.ms, now.floor, policy, want, request.enqueue)
        });
        Ok(match acquired {
            Acquired::Granted { seq, ttl_ms } => Attempt::Granted(mk_grant(seq, ttl_ms, true)),
            Acquired::Queued(position) => Attempt::Queued { position },
            Acquired::Locked { retry_after_ms, waiters } => {
                Attempt::Locked { retry_after: Duration::from_millis(retry_after_ms), waiters }
            }
            Acquired::QueueFull(waiters) => Attempt::QueueFull { waiters },
            Acquired::Cancelled => Attempt::Cancelled,
        })
    }

    async fn renew(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        ttl: Duration,
    ) -> Result<Renewal, BackendError> {
        let ttl_ms = ttl.as_millis() as u64;
        let left = self.step(at, config, |state, now| {
            state.renew(now.ms, now.floor, config.policy(), hold, ttl_ms)
        });
        Ok(left.map_or(Renewal::Lost, |ms| Renewal::Renewed { ttl: Duration::from_millis(ms) }))
    }

    async fn release(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<Release, BackendError> {
        let held = self
            .step(at, config, |state, now| state.release(now.ms, now.floor, config.policy(), hold));
        Ok(if held { Release::Released } else { Release::NotHeld })
    }

    async fn cancel(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError> {
        self.step(at, config, |state, now| {
            ((), state.cancel(now.ms, now.floor, config.policy(), hold, config.ttl_ms))
        });
        Ok(())
    }

    async fn beat(
        &self,
        at: &Address,
        config: &LockConfig,
        session: &SessionId,
    ) -> Result<Beat, BackendError> {
        let beaten = self
            .step(at, config, |state, now| state.beat(now.ms, now.floor, config.policy(), session));
        Ok(Beat {
            offered: beaten.offered.map(|(hold, seq, ms)| (hold, mk_grant(seq, ms, false))),
            tickets: beaten.tickets,
            next: Duration::from_millis(beaten.next_ms),
            last_fence: Fence::new(beaten.seq),
        })
    }

    async fn query(&self, at: &Address, _: &LockConfig) -> Result<LockView, BackendError> {
        let now_ms = self.clock.now().boot_ns / 1_000_000;
        let keys = lock(&self.keys);
        Ok(keys.states.get(at).map(|state| mk_view(state, now_ms)).unwrap_or_default())
    }

    async fn force_release(
        &self,
        at: &Address,
        config: &LockConfig,
    ) -> Result<Option<HolderView>, BackendError> {
        let (held, now_ms) = self.step(at, config, |state, now| {
            let (held, offer) = state.force_release(now.ms, now.floor, config.policy());
            ((held, now.ms), offer)
        });
        if let Some(held) = &held {
            self.hub.send(&held.hold, Push::Lost);
        }
        Ok(held.map(|held| mk_holder(&held, now_ms)))
    }

    async fn list(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
        _: &LockConfig,
        limit: usize,
    ) -> Result<Vec<(Key, LockView)>, BackendError> {
        let now_ms = self.clock.now().boot_ns / 1_000_000;
        let ours =
            |at: &Address| at.kind == kind && *at.namespace == *namespace && at.class == *class;
        let keys = lock(&self.keys);
        Ok(keys
            .states
            .iter()
            .filter(|(at, _)| ours(at))
            .map(|(at, state)| (at.key.clone(), mk_view(state, now_ms)))
            .filter(|(_, view)| view.holder.is_some() || view.waiters > 0)
            .take(limit)
            .collect())
    }
}

fn mk_grant(seq: u64, ttl_ms: u64, claimed: bool) -> Grant {
    Grant { fence: Fence::new(seq), ttl: Duration::from_millis(ttl_ms), claimed }
}

fn mk_holder(held: &Held, now_ms: u64) -> HolderView {
    HolderView {
        holder: held.holder.clone(),
        fence: Fence::new(held.seq),
        ttl: Duration::from_millis(held.expires_ms.saturating_sub(now_ms)),
        held_for: Duration::from_millis(now_ms.saturating_sub(held.since_ms)),
    }
}

fn mk_view(state: &LockState, now_ms: u64) -> LockView {
    let (held, queue, seq) = state.view(now_ms);
    LockView {
        holder: held.map(|held| mk_holder(held, now_ms)),
        waiters: queue.len() as u32,
        queue: queue.iter().take(10).map(|ticket| ticket.holder.clone()).collect(),
        last_fence: (seq > 0).then(|| Fence::new(seq)),
    }
}
