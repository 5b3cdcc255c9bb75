//! The suite on three real redis-servers that know nothing of each other.
//!
//! Two bodies are not run, for what they promise is not promised here: waiters of different processes
//! are not served in their order, and no waiter stands in a queue of the store.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_backend::{hub::Hub, redis::Redlocks};
use holdfast_core::{Address, Fence, SessionId, Substrate, SystemClock};

use crate::{
    fixture::{Sidecar, World},
    servers::Servers,
};

/// The namespace of the suite's addresses.
const NAMESPACE: &str = "default";

pub struct RedlockWorld(Servers);

impl RedlockWorld {
    pub async fn start() -> Self {
        RedlockWorld(Servers::start(3, NAMESPACE).await)
    }
}

#[async_trait]
impl World for RedlockWorld {
    fn substrate(&self) -> Substrate {
        Substrate::Redlock
    }

    async fn sidecar(&self, name: &str) -> Sidecar {
        let (session, hub) = (SessionId::random(), Hub::new());
        let locks: Arc<Redlocks> =
            self.0.connect(session.clone(), hub.clone(), Arc::new(SystemClock));
        assert!(locks.subscribed(Duration::from_secs(5)).await, "no pushes");
        Sidecar::new(name, session, locks, hub)
    }

    async fn provision(&self, _: &Address) {}

    async fn recreate(&self, at: &Address) -> Fence {
        let mut top = 0;
        for admin in &self.0.admins {
            top = top.max(admin.purge_class(&at.namespace, at.kind, &at.class).await.unwrap());
        }
        Fence::new(top)
    }
}

everywhere!(locks, crate::redlock::RedlockWorld, []);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_legal() {
    let world = RedlockWorld::start().await;
    crate::history::random_histories_are_legal(&world, 200, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_holders_are_fenced() {
    let world = RedlockWorld::start().await;
    crate::stale::stale_holders_are_fenced(&world, Duration::from_millis(200), 30).await;
}
