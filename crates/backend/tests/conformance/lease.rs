//! The suite on a real API server, with the chart's admission policy in force.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use holdfast_backend::{
    hub::Hub,
    lease::{LeaseClient, LeaseLocks, names},
};
use holdfast_core::{Address, Fence, SessionId, Substrate, SystemClock};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};

use crate::{
    apiserver::ApiServer,
    fixture::{Sidecar, World},
};

pub struct LeaseWorld {
    server: &'static ApiServer,
    leases: Api<Lease>,
}

impl LeaseWorld {
    pub async fn start() -> Self {
        static READY: OnceLock<()> = OnceLock::new();
        let server = ApiServer::shared();
        READY.get_or_init(|| server.with_policy());
        let config = server.config("admin", server.port()).await;
        let leases = Api::namespaced(Client::try_from(config).unwrap(), "default");
        LeaseWorld { server, leases }
    }
}

#[async_trait]
impl World for LeaseWorld {
    fn substrate(&self) -> Substrate {
        Substrate::Lease
    }

    async fn sidecar(&self, name: &str) -> Sidecar {
        let config = self.server.config("admin", self.server.port()).await;
        let client = LeaseClient::new(&config).unwrap();
        let hub = Hub::new();
        let locks = LeaseLocks::new(client, hub.clone(), Arc::new(SystemClock));
        Sidecar::new(name, SessionId::random(), locks, hub)
    }

    async fn provision(&self, at: &Address) {
        let lease = names::unheld(&at.namespace, at.kind, &at.class, &at.key);
        self.leases.create(&PostParams::default(), &lease).await.unwrap();
    }

    async fn recreate(&self, at: &Address) -> Fence {
        let name = names::lease_name(at.kind, &at.class, &at.key);
        self.leases.delete(&name, &DeleteParams::default()).await.unwrap();
        self.provision(at).await;
        Fence::new(0)
    }
}

// First come, first served is promised among the waiters of one process only, so the bodies about
// the order of several processes are not here.
everywhere!(locks, crate::lease::LeaseWorld, []);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_legal() {
    crate::history::random_histories_are_legal(&LeaseWorld::start().await, 4, 8, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_holders_are_fenced() {
    let world = LeaseWorld::start().await;
    crate::stale::stale_holders_are_fenced(&world, Duration::from_secs(1), 6).await;
}
