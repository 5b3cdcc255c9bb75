//! Servers, sessions and addresses for the tests here.

use std::{sync::Arc, time::Duration};

use holdfast_backend::{
    hub::{Hub, Inbox},
    redis::{KnownEpoch, RedisAdmin, RedisConfig, RedisLocks},
};
use holdfast_core::{
    Address, BackendError, ClassName, Fence, HoldId, Holder, Key, Kind, SessionId,
    lock::{Acquire, Attempt, Consistency, Fairness, Grant, Keys, LockBackend, LockConfig, Push},
};
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use tokio::{sync::watch, time::timeout};

use crate::server::RedisServer;

pub const NAMESPACE: &str = "shop";
pub const TTL: Duration = Duration::from_secs(30);
/// A busy machine may be slow to answer; that is no difference. Whoever wants silence to be noticed
/// says how soon.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server with an open epoch.
pub struct Store {
    pub server: RedisServer,
    pub admin: RedisAdmin,
    pub epoch: watch::Sender<Option<KnownEpoch>>,
}

/// One session of a store.
pub struct Session {
    pub id: SessionId,
    pub hub: Arc<Hub>,
    pub locks: Arc<RedisLocks>,
}

impl Store {
    pub async fn start(args: &[&str]) -> Self {
        Self::on(RedisServer::start(args)).await
    }

    /// A store that runs already.
    pub async fn on(server: RedisServer) -> Self {
        let admin = RedisAdmin::connect(&mk_redis(&server)).unwrap();
        admin.load_library().await.unwrap();
        let store = Store { server, admin, epoch: watch::channel(None).0 };
        store.open(1).await;
        store
    }

    /// Does what the operator does after a quarantine.
    pub async fn open(&self, number: u64) {
        // A server that has just been killed is found out by the first call.
        let replid = eventually("the store answers", async || self.admin.probe().await.ok()).await;
        self.admin.open_epoch(NAMESPACE, number).await.unwrap();
        let replid = replid.replid;
        self.epoch.send_replace(Some(KnownEpoch::of_one(number, replid, true)));
    }

    pub fn session(&self) -> Session {
        self.session_as(mk_redis(&self.server))
    }

    pub fn session_as(&self, config: RedisConfig) -> Session {
        let (id, hub) = (SessionId::random(), Hub::new());
        let epoch = self.epoch.subscribe();
        let locks = RedisLocks::connect(config, NAMESPACE, id.clone(), hub.clone(), epoch).unwrap();
        Session { id, hub, locks }
    }

    /// Runs one command as the default user.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        command_as(&format!("redis://{}/", self.server.address()), words).await
    }
}

pub async fn command_as<T: redis::FromRedisValue>(
    url: &str,
    words: &[&str],
) -> redis::RedisResult<T> {
    let mut connection = connect(url).await?;
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
}

/// A patient connection: by itself the `redis` crate gives an answer half a second.
pub async fn connect(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&settings).await
}

/// The next push to a hold: one that is lost must not keep a test for ever.
pub async fn pushed(inbox: &mut Inbox) -> Push {
    timeout(TTL, inbox.recv()).await.expect("nothing was pushed")
}

impl Session {
    pub fn request(&self, config: &Arc<LockConfig>, hold: &HoldId) -> Acquire {
        Acquire {
            config: config.clone(),
            hold: hold.clone(),
            session: self.id.clone(),
            holder: Holder::new("pod-é").unwrap(),
            ttl: Duration::from_millis(config.ttl_ms),
            max_hold: Duration::ZERO,
            enqueue: true,
            permits: 1,
        }
    }

    pub async fn try_acquire(
        &self,
        at: &Address,
        config: &Arc<LockConfig>,
        hold: &HoldId,
    ) -> Result<Attempt, BackendError> {
        self.locks.acquire(at, &self.request(config, hold)).await
    }

    pub async fn grant(&self, at: &Address, config: &Arc<LockConfig>, hold: &HoldId) -> Grant {
        match self.try_acquire(at, config, hold).await {
            Ok(Attempt::Granted(grant)) => grant,
            other => panic!("no grant of {at}: {other:?}"),
        }
    }

    /// Acquires a fresh hold and releases it; its fence.
    pub async fn fence(&self, at: &Address, config: &Arc<LockConfig>) -> Fence {
        let hold = HoldId::random();
        let grant = self.grant(at, config, &hold).await;
        self.locks.release(at, config, &hold).await.unwrap();
        grant.fence
    }
}

pub fn mk_redis(server: &RedisServer) -> RedisConfig {
    mk_redis_at(&server.address())
}

pub fn mk_redis_at(address: &str) -> RedisConfig {
    let mut config = RedisConfig::new(address).unwrap();
    (config.response_timeout, config.connect_timeout) = (PATIENCE, PATIENCE);
    config
}

pub fn mk_config() -> Arc<LockConfig> {
    Arc::new(LockConfig {
        generation: 1,
        ttl_ms: TTL.as_millis() as u64,
        max_hold_ms: 0,
        min_hold_ms: 0,
        lock_delay_ms: 0,
        permits: 1,
        max_per_holder: 0,
        keys: Keys::Any,
        max_waiters: 100,
        fairness: Fairness::Fifo,
        consistency: Consistency::Strict,
        fence_floor: Fence::new(0),
    })
}

pub fn mk_address(key: &str) -> Address {
    mk_address_in(NAMESPACE, key)
}

pub fn mk_address_in(namespace: &str, key: &str) -> Address {
    Address {
        kind: Kind::Lock,
        namespace: namespace.into(),
        class: ClassName::new("orders").unwrap(),
        key: Key::new(key).unwrap(),
    }
}

/// For how long a test waits for what is to come, however slow the asking is.
const SOON: Duration = Duration::from_secs(60);

/// Waits until something is there; the bound is generous, the poll is short.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + SOON;
    while tokio::time::Instant::now() < until {
        if let Some(found) = ask().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
