//! Semaphores in memory: [`SemaphoreState`] behind a mutex.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, ClassName, Clock, Fence, Guarantee, HoldId, Key, Kind, SessionId, Stamp,
    Substrate,
    lock::{
        Acquire, Attempt, Beat, HolderView, LockBackend, LockConfig, LockView, Push, Release,
        Renewal, Which, state::Offer,
    },
    semaphore::{
        NAMED, Policy,
        state::{Holding, SemaphoreState},
    },
};

use super::{
    keys::{Keys, Now, State},
    lock::{mk_attempt, mk_grant, mk_holder},
};
use crate::hub::{Hub, lock};

/// Semaphores that live as long as the process. Guarantees and caveats are those of
/// [`MemoryLocks`](super::MemoryLocks).
pub struct MemorySemaphores {
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    keys: Mutex<Keys<SemaphoreState>>,
}

impl MemorySemaphores {
    /// An empty store.
    pub fn new(hub: Arc<Hub>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(MemorySemaphores { hub, clock, keys: Mutex::default() })
    }

    /// Runs one transition by a reading of the clocks, and delivers what it offers.
    fn step<T>(
        &self,
        at: &Address,
        config: &LockConfig,
        stamp: Stamp,
        step: impl FnOnce(&mut SemaphoreState, &Now, Policy) -> (T, Vec<Offer>),
    ) -> T {
        let policy = Policy::of(config);
        let new = || SemaphoreState::new(policy);
        let run = |state: &mut SemaphoreState, now: &Now| step(state, now, policy);
        let (outcome, offers) = lock(&self.keys).step(at, stamp, new, run);
        for offer in offers {
            let grant = mk_grant(offer.seq, offer.ttl_ms, false, Some(stamp));
            self.hub.send(&offer.hold, Push::Granted { grant });
        }
        outcome
    }

    fn acquire_at(&self, at: &Address, request: &Acquire, stamp: Stamp) -> Attempt {
        let want = request.ticket();
        let acquired = self.step(at, &request.config, stamp, |state, now, policy| {
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
        let held = self.step(at, config, stamp, |state, now, policy| {
            state.release(now.ms, now.floor, policy, hold)
        });
        if held { Release::Released } else { Release::NotHeld }
    }

    fn now_ms(&self) -> u64 {
        self.clock.now().boot_ns / 1_000_000
    }
}

impl State for SemaphoreState {
    fn top_seq(&self) -> u64 {
        self.seq()
    }

    fn is_idle(&self, now_ms: u64) -> bool {
        SemaphoreState::is_idle(self, now_ms)
    }
}

#[async_trait]
impl LockBackend for MemorySemaphores {
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
        let left = self.step(at, config, self.clock.now(), |state, now, policy| {
            state.renew(now.ms, now.floor, policy, hold, ttl_ms)
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
        self.step(at, config, self.clock.now(), |state, now, policy| {
            ((), state.cancel(now.ms, now.floor, policy, hold, config.ttl_ms))
        });
        Ok(())
    }

    async fn beat(
        &self,
        at: &Address,
        config: &LockConfig,
        session: &SessionId,
    ) -> Result<Beat, BackendError> {
        let beaten = self.step(at, config, self.clock.now(), |state, now, policy| {
            state.beat(now.ms, now.floor, policy, session)
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
        let now_ms = self.now_ms();
        let keys = lock(&self.keys);
        Ok(keys.get(at).map(|state| mk_view(state, now_ms)).unwrap_or_default())
    }

    async fn force_release_holds(
        &self,
        at: &Address,
        config: &LockConfig,
        which: Which,
    ) -> Result<Vec<HolderView>, BackendError> {
        let (taken, now_ms) = self.step(at, config, self.clock.now(), |state, now, policy| {
            let is_meant = |fence| which.takes(Fence::new(fence));
            let (taken, offers) = state.force_release(now.ms, now.floor, policy, is_meant);
            ((taken, now.ms), offers)
        });
        for holding in &taken {
            self.hub.send(&holding.held.hold, Push::Lost);
        }
        Ok(taken.iter().map(|holding| mk_holding(holding, now_ms)).collect())
    }

    async fn list(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
        _: &LockConfig,
        limit: usize,
    ) -> Result<Vec<(Key, LockView)>, BackendError> {
        let now_ms = self.now_ms();
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

fn mk_holding(holding: &Holding, now_ms: u64) -> HolderView {
    HolderView { permits: holding.permits, ..mk_holder(&holding.held, now_ms) }
}

fn mk_view(state: &SemaphoreState, now_ms: u64) -> LockView {
    let (holds, queue, seq) = state.view(now_ms);
    let (mut named, mut count, mut used) = (Vec::new(), 0, 0);
    for holding in holds {
        count += 1;
        used += holding.permits;
        if named.len() < NAMED {
            named.push(mk_holding(holding, now_ms));
        }
    }
    let mut named = named.into_iter();
    LockView {
        holder: named.next(),
        others: named.collect(),
        holds: count,
        used,
        waiters: queue.len() as u32,
        queue: queue.iter().take(10).map(|ticket| ticket.holder.clone()).collect(),
        last_fence: (seq > 0).then(|| Fence::new(seq)),
    }
}
