//! What a body needs of a substrate: sidecars that share one store, and fresh addresses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use holdfast_backend::{
    hub::Hub,
    memory::{MemoryLocks, MemorySemaphores},
    redis::RedisConfig,
    waiter::{Acquisition, HeldLock, LockClient},
};
use holdfast_core::{
    Address, BackendError, ClassName, Fence, HoldId, Holder, Key, Kind, SessionId, Substrate,
    SystemClock,
    lock::{Acquire, Consistency, Fairness, Keys, LockBackend, LockConfig, Renewal},
};
use tokio::time::{Instant, sleep};

/// One substrate under test.
#[async_trait]
pub trait World: Send + Sync {
    /// Which one.
    fn substrate(&self) -> Substrate;
    /// A new pod's view of the store.
    async fn sidecar(&self, name: &str) -> Sidecar;
    /// Makes an address usable (a Lease has to exist).
    async fn provision(&self, at: &Address);
    /// Deletes the class of an address with all its state and makes it anew, as the operator does;
    /// returns the fence floor that the new class starts above.
    async fn recreate(&self, at: &Address) -> Fence;
}

/// A substrate that keeps semaphores too.
#[async_trait]
pub trait PermitsWorld: World {
    /// A new pod's view of its semaphores.
    async fn pod(&self, name: &str) -> Sidecar;
    /// The most permits that one hold can have.
    fn heaviest(&self) -> u32 {
        u32::MAX
    }
    /// Makes a key have so many permits, where that needs more than a class that says so: what the
    /// operator does when a class, or what it sees of its holds, has changed.
    async fn resize(&self, _: &Address, _permits: u32) {}
}

/// One pod: a session with a backend of its own.
pub struct Sidecar {
    pub name: Holder,
    pub session: SessionId,
    pub client: Arc<LockClient>,
}

/// The shortest time to live that every substrate takes, with room for a slow machine.
pub const TTL: Duration = Duration::from_secs(2);

pub fn mk_config(world: &dyn World) -> LockConfig {
    LockConfig {
        generation: 1,
        ttl_ms: TTL.as_millis() as u64,
        max_hold_ms: 0,
        min_hold_ms: 0,
        lock_delay_ms: 0,
        permits: 1,
        max_per_holder: 0,
        keys: Keys::Any,
        max_waiters: 100,
        fairness: match world.substrate() {
            Substrate::Lease | Substrate::Redlock => Fairness::None,
            Substrate::Memory | Substrate::Redis => Fairness::Fifo,
        },
        consistency: Consistency::Strict,
        fence_floor: Fence::new(0),
    }
}

/// An address that nothing else uses.
pub async fn fresh(world: &dyn World) -> Address {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let at = Address {
        kind: Kind::Lock,
        namespace: "default".into(),
        class: ClassName::new(format!("c{}-{n}", std::process::id())).unwrap(),
        key: Key::default_key(),
    };
    world.provision(&at).await;
    at
}

impl Sidecar {
    pub fn new(
        name: &str,
        session: SessionId,
        backend: Arc<dyn LockBackend>,
        hub: Arc<Hub>,
    ) -> Self {
        let client = LockClient::new(backend, hub, Arc::new(SystemClock), session.clone());
        Sidecar { name: Holder::new(name).unwrap(), session, client }
    }

    pub fn request(&self, config: &Arc<LockConfig>, hold: &HoldId) -> Acquire {
        Acquire {
            config: config.clone(),
            hold: hold.clone(),
            session: self.session.clone(),
            holder: self.name.clone(),
            ttl: Duration::from_millis(config.ttl_ms),
            max_hold: Duration::from_millis(config.max_hold_ms),
            enqueue: false,
            permits: 1,
        }
    }

    pub async fn acquire(
        &self,
        at: &Address,
        config: &Arc<LockConfig>,
        hold: &HoldId,
        wait: Duration,
    ) -> Result<Acquisition, BackendError> {
        self.client.acquire(at, self.request(config, hold), wait, true).await
    }

    /// Acquires what must be free, or become free in time.
    pub async fn hold(&self, at: &Address, config: &Arc<LockConfig>, hold: &HoldId) -> HeldLock {
        match self.acquire(at, config, hold, TTL * 5).await {
            Ok(Acquisition::Held(held)) => held,
            Ok(other) => panic!("{} did not get {at}: {}", self.name, describe(&other)),
            Err(error) => panic!("{} did not get {at}: {error}", self.name),
        }
    }

    /// Asks once; what it is told.
    pub async fn attempt(&self, at: &Address, config: &Arc<LockConfig>) -> Acquisition {
        answered(async || self.acquire(at, config, &HoldId::random(), Duration::ZERO).await).await
    }

    /// Renews for the time to live of the class.
    pub async fn renew(&self, at: &Address, config: &LockConfig, hold: &HoldId) -> Renewal {
        let ttl = Duration::from_millis(config.ttl_ms);
        answered(async || self.client.backend().renew(at, config, hold, ttl).await).await
    }

    pub async fn release(&self, at: &Address, config: &LockConfig, hold: &HoldId) {
        self.client.backend().release(at, config, hold).await.unwrap();
    }
}

/// Asks again while the store does not answer in time, as a sidecar does, but not for long.
async fn answered<T>(mut ask: impl AsyncFnMut() -> Result<T, BackendError>) -> T {
    let until = Instant::now() + TTL;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) if !error.is_retryable() || Instant::now() >= until => panic!("{error}"),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A busy machine may be slow to answer; that is no difference.
pub fn patient(mut config: RedisConfig) -> RedisConfig {
    config.response_timeout = Duration::from_secs(20);
    config
}

pub fn describe(acquisition: &Acquisition) -> String {
    match acquisition {
        Acquisition::Held(held) => format!("held with fence {}", held.fence),
        Acquisition::Locked { waiters, .. } => format!("locked, {waiters} waiting"),
        Acquisition::TooMany { most } => format!("too many, {most} at the most"),
        Acquisition::QueueFull { waiters } => format!("queue full, {waiters} waiting"),
        Acquisition::Cancelled => "cancelled".into(),
    }
}

/// For how long a test waits for what is to come, however slow the asking is.
const SOON: Duration = Duration::from_secs(60);

/// Waits until a condition holds; the bound is generous, the poll is short.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        if condition().await {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("never happened: {what}");
}

// === Memory ===

pub struct MemoryWorld {
    hub: Arc<Hub>,
    locks: Arc<MemoryLocks>,
    semaphores: Arc<MemorySemaphores>,
}

impl MemoryWorld {
    pub async fn start() -> Self {
        let hub = Hub::new();
        let locks = MemoryLocks::new(hub.clone(), Arc::new(SystemClock));
        let semaphores = MemorySemaphores::new(hub.clone(), Arc::new(SystemClock));
        MemoryWorld { hub, locks, semaphores }
    }
}

#[async_trait]
impl World for MemoryWorld {
    fn substrate(&self) -> Substrate {
        Substrate::Memory
    }

    async fn sidecar(&self, name: &str) -> Sidecar {
        Sidecar::new(name, SessionId::random(), self.locks.clone(), self.hub.clone())
    }

    async fn provision(&self, _: &Address) {}

    async fn recreate(&self, _: &Address) -> Fence {
        Fence::new(0)
    }
}

#[async_trait]
impl PermitsWorld for MemoryWorld {
    async fn pod(&self, name: &str) -> Sidecar {
        Sidecar::new(name, SessionId::random(), self.semaphores.clone(), self.hub.clone())
    }
}
