//! The suite on a real redis-server, and on a real Valkey.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_backend::{
    hub::Hub,
    redis::{LocalEpoch, RedisAdmin, RedisConfig, RedisLocks, RedisSemaphores},
};
use holdfast_core::{Address, Fence, SessionId, Substrate};

use crate::{
    fixture::{PermitsWorld, Sidecar, World, patient},
    server::RedisServer,
};

/// The namespace of the suite's addresses.
const NAMESPACE: &str = "default";

pub struct RedisWorld {
    server: RedisServer,
    admin: RedisAdmin,
    epoch: LocalEpoch,
}

impl RedisWorld {
    pub async fn start() -> Self {
        Self::on(RedisServer::start(&[])).await
    }

    async fn on(server: RedisServer) -> Self {
        let config = patient(RedisConfig::new(&server.address()).unwrap());
        let admin = RedisAdmin::connect(&config).unwrap();
        admin.load_library().await.unwrap();
        let epoch = LocalEpoch::start(config, NAMESPACE, Duration::ZERO).unwrap();
        assert!(epoch.opened(Duration::from_secs(5)).await, "no epoch");
        RedisWorld { server, admin, epoch }
    }
}

#[async_trait]
impl World for RedisWorld {
    fn substrate(&self) -> Substrate {
        Substrate::Redis
    }

    async fn sidecar(&self, name: &str) -> Sidecar {
        let (session, hub) = (SessionId::random(), Hub::new());
        let config = patient(RedisConfig::new(&self.server.address()).unwrap());
        let known = self.epoch.known();
        let locks =
            RedisLocks::connect(config, NAMESPACE, session.clone(), hub.clone(), known).unwrap();
        assert!(locks.subscribed(Duration::from_secs(5)).await, "no pushes");
        Sidecar::new(name, session, locks, hub)
    }

    async fn provision(&self, _: &Address) {}

    async fn recreate(&self, at: &Address) -> Fence {
        Fence::new(self.admin.purge_class(&at.namespace, at.kind, &at.class).await.unwrap())
    }
}

#[async_trait]
impl PermitsWorld for RedisWorld {
    async fn pod(&self, name: &str) -> Sidecar {
        let (session, hub) = (SessionId::random(), Hub::new());
        let config = patient(RedisConfig::new(&self.server.address()).unwrap());
        let known = self.epoch.known();
        let locks =
            RedisLocks::connect(config, NAMESPACE, session.clone(), hub.clone(), known).unwrap();
        assert!(locks.subscribed(Duration::from_secs(5)).await, "no pushes");
        Sidecar::new(name, session, RedisSemaphores::beside(locks), hub)
    }
}

semaphores_everywhere!(permits, crate::redis::RedisWorld);

everywhere!(
    locks,
    crate::redis::RedisWorld,
    [waiters_are_served_first_come_first_served, a_dead_waiter_costs_its_heartbeat_not_a_hold]
);

/// The same, where the store is Valkey.
pub struct Valkey;

impl Valkey {
    pub async fn start() -> RedisWorld {
        RedisWorld::on(RedisServer::valkey(&[])).await
    }
}

everywhere!(
    locks_on_valkey,
    crate::redis::Valkey,
    [waiters_are_served_first_come_first_served, a_dead_waiter_costs_its_heartbeat_not_a_hold]
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_legal() {
    let world: Arc<dyn World> = Arc::new(RedisWorld::start().await);
    let passed = crate::history::random_histories_are_legal(&*world, 200, 200).await;
    assert!(passed >= 10, "too little happened: {passed} passed on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_holders_are_fenced() {
    let world = RedisWorld::start().await;
    crate::stale::stale_holders_are_fenced(&world, Duration::from_millis(100), 40).await;
}
