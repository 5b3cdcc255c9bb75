//! Locks in memory: [`LockState`] behind a mutex.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, ClassName, Clock, Fence, Guarantee, HoldId, Key, Kind, SessionId, Stamp,
    Substrate,
    lock::{
        Acquire, Attempt, Beat, Grant, HolderView, LockBackend, LockConfig, LockView, Push,
        Release, Renewal, Which,
        state::{Acquired, Held, LockState, Offer},
    },
};

use super::keys::{Keys, Now, State};
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
    keys: Mutex<Keys<LockState>>,
}

impl MemoryLocks {
    /// An empty store.
    pub fn new(hub: Arc<Hub>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(MemoryLocks { hub, clock, keys: Mutex::default() })
    }

    /// Runs one transition by a reading of the clocks, and delivers what it offers.
    fn step<T>(
        &self,
        at: &Address,
        config: &LockConfig,
        stamp: Stamp,
        step: impl FnOnce(&mut LockState, &Now) -> (T, Option<Offer>),
    ) -> T {
        let new = || LockState::new(config.policy());
        let (outcome, offer) = lock(&self.keys).step(at, stamp, new, step);
        if let Some(offer) = offer {
            let grant = mk_grant(offer.seq, offer.ttl_ms, false, Some(stamp));
            self.hub.send(&offer.hold, Push::Granted { grant });
        }
        outcome
    }

    fn acquire_at(&self, at: &Address, request: &Acquire, stamp: Stamp) -> Attempt {
        let want = request.ticket();
        let policy = request.config.policy();
        let acquired = self.step(at, &request.config, stamp, |state, now| {
            state.acquire(now.ms, now.floor, policy, want, request.enqueue)
        });
        mk_attempt(acquired, stamp)
    }

    fn release_at(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        stamp: Stamp,
    ) -> Release {
        let held = self.step(at, config, stamp, |state, now| {
            state.release(now.ms, now.floor, config.policy(), hold)
        });
        if held { Release::Released } else { Release::NotHeld }
    }
}

impl State for LockState {
    fn top_seq(&self) -> u64 {
        self.view(0).2
    }

    fn is_idle(&self, now_ms: u64) -> bool {
        LockState::is_idle(self, now_ms)
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
        Ok(self.acquire_at(at, request, self.clock.now()))
    }

    fn acquire_now(&self, at: &Address, request: &Acquire, now: Stamp) -> Option<Attempt> {
        Some(self.acquire_at(at, request, now))
    }

    async fn renew(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        ttl: Duration,
    ) -> Result<Renewal, BackendError> {
        let ttl_ms = ttl.as_millis() as u64;
        let left = self.step(at, config, self.clock.now(), |state, now| {
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
        Ok(self.release_at(at, config, hold, self.clock.now()))
    }

    fn release_now(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        now: Stamp,
    ) -> Option<Release> {
        Some(self.release_at(at, config, hold, now))
    }

    async fn cancel(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError> {
        self.step(at, config, self.clock.now(), |state, now| {
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
        let beaten = self.step(at, config, self.clock.now(), |state, now| {
            state.beat(now.ms, now.floor, config.policy(), session)
        });
        let offered = beaten.offered.into_iter();
        Ok(Beat {
            offered: offered
                .map(|(hold, seq, ms)| (hold, mk_grant(seq, ms, false, None)))
                .collect(),
            tickets: beaten.tickets,
            next: Duration::from_millis(beaten.next_ms),
            last_fence: Fence::new(beaten.seq),
        })
    }

    async fn query(&self, at: &Address, _: &LockConfig) -> Result<LockView, BackendError> {
        let now_ms = self.clock.now().boot_ns / 1_000_000;
        let keys = lock(&self.keys);
        Ok(keys.get(at).map(|state| mk_view(state, now_ms)).unwrap_or_default())
    }

    async fn newest_fence(&self, at: &Address, config: &LockConfig) -> Result<Fence, BackendError> {
        let view = self.query(at, config).await?;
        Ok(view.last_fence.unwrap_or(config.fence_floor).max(config.fence_floor))
    }

    async fn force_release_holds(
        &self,
        at: &Address,
        config: &LockConfig,
        which: Which,
    ) -> Result<Vec<HolderView>, BackendError> {
        let (held, now_ms) = self.step(at, config, self.clock.now(), |state, now| {
            let is_meant = |fence| which.takes(Fence::new(fence));
            let (held, offer) = state.force_release(now.ms, now.floor, config.policy(), is_meant);
            ((held, now.ms), offer)
        });
        if let Some(held) = &held {
            self.hub.send(&held.hold, Push::Lost);
        }
        Ok(held.iter().map(|held| mk_holder(held, now_ms)).collect())
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
            .iter()
            .filter(|(at, _)| ours(at))
            .map(|(at, state)| (at.key.clone(), mk_view(state, now_ms)))
            .filter(|(_, view)| view.holder.is_some() || view.waiters > 0)
            .take(limit)
            .collect())
    }
}

pub(super) fn mk_attempt(acquired: Acquired, stamp: Stamp) -> Attempt {
    match acquired {
        Acquired::Granted { seq, ttl_ms } => {
            Attempt::Granted(mk_grant(seq, ttl_ms, true, Some(stamp)))
        }
        Acquired::Queued(position) => Attempt::Queued { position },
        Acquired::Locked { retry_after_ms, waiters } => {
            Attempt::Locked { retry_after: Duration::from_millis(retry_after_ms), waiters }
        }
        Acquired::QueueFull(waiters) => Attempt::QueueFull { waiters },
        Acquired::TooMany(most) => Attempt::TooMany { most },
        Acquired::Cancelled => Attempt::Cancelled,
    }
}

pub(super) fn mk_grant(seq: u64, ttl_ms: u64, claimed: bool, since: Option<Stamp>) -> Grant {
    Grant { fence: Fence::new(seq), ttl: Duration::from_millis(ttl_ms), claimed, since }
}

pub(super) fn mk_holder(held: &Held, now_ms: u64) -> HolderView {
    HolderView {
        holder: held.holder.clone(),
        fence: Fence::new(held.seq),
        ttl: Duration::from_millis(held.expires_ms.saturating_sub(now_ms)),
        held_for: Duration::from_millis(now_ms.saturating_sub(held.since_ms)),
        permits: 1,
    }
}

fn mk_view(state: &LockState, now_ms: u64) -> LockView {
    let (held, queue, seq) = state.view(now_ms);
    LockView {
        holder: held.map(|held| mk_holder(held, now_ms)),
        others: Vec::new(),
        holds: u32::from(held.is_some()),
        used: u32::from(held.is_some()),
        waiters: queue.len() as u32,
        queue: queue.iter().take(10).map(|ticket| ticket.holder.clone()).collect(),
        last_fence: (seq > 0).then(|| Fence::new(seq)),
    }
}
