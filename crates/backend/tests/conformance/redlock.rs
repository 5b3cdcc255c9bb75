//! The suite on three real redis-servers that know nothing of each other.
//!
//! Two bodies are not run, for what they promise is not promised here: waiters of different processes
//! are not served in their order, and no waiter stands in a queue of the store.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_backend::{
    hub::Hub,
    redis::{KnownEpoch, RedisAdmin, RedisConfig, Redlocks, Voter},
};
use holdfast_core::{Address, Fence, SessionId, Substrate, SystemClock};
use tokio::sync::watch;

use crate::{
    fixture::{Sidecar, World},
    server::RedisServer,
};

/// The namespace of the suite's addresses.
const NAMESPACE: &str = "default";

pub struct RedlockWorld(Vec<Member>);

struct Member {
    server: RedisServer,
    admin: RedisAdmin,
    epoch: watch::Sender<Option<KnownEpoch>>,
}

impl RedlockWorld {
    pub async fn start() -> Self {
        let mut members = Vec::new();
        for _ in 0..3 {
            let server = RedisServer::start(&[]);
            let admin = RedisAdmin::connect(&mk_redis(&server)).unwrap();
            admin.load_library().await.unwrap();
            admin.open_epoch(NAMESPACE, 1).await.unwrap();
            let replid = admin.probe().await.unwrap().replid;
            let epoch = watch::channel(Some(KnownEpoch { number: 1, replid, open: true })).0;
            members.push(Member { server, admin, epoch });
        }
        RedlockWorld(members)
    }
}

fn mk_redis(server: &RedisServer) -> RedisConfig {
    RedisConfig::new(&server.address()).unwrap()
}

#[async_trait]
impl World for RedlockWorld {
    fn substrate(&self) -> Substrate {
        Substrate::Redlock
    }

    async fn sidecar(&self, name: &str) -> Sidecar {
        let (session, hub) = (SessionId::random(), Hub::new());
        let voter = |Member { server, epoch, .. }: &Member| Voter {
            config: mk_redis(server),
            epoch: epoch.subscribe(),
        };
        let voters = self.0.iter().map(voter).collect();
        let clock = Arc::new(SystemClock);
        let locks = Redlocks::connect(voters, NAMESPACE, &session, hub.clone(), clock).unwrap();
        assert!(locks.subscribed(Duration::from_secs(5)).await, "no pushes");
        Sidecar::new(name, session, locks, hub)
    }

    async fn provision(&self, _: &Address) {}

    async fn recreate(&self, at: &Address) -> Fence {
        let mut top = 0;
        for Member { admin, .. } in &self.0 {
            top = top.max(admin.purge_class(&at.namespace, at.kind, &at.class).await.unwrap());
        }
        Fence::new(top)
    }
}

everywhere!(locks, crate::redlock::RedlockWorld, []);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_legal() {
    let world = RedlockWorld::start().await;
    crate::history::random_histories_are_legal(&world, 6, 200, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_holders_are_fenced() {
    let world = RedlockWorld::start().await;
    crate::stale::stale_holders_are_fenced(&world, Duration::from_millis(200), 30).await;
}
