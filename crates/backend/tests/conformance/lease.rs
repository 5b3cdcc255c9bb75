//! The suite on a real API server, with the chart's admission policy in force.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use holdfast_backend::{
    hub::Hub,
    lease::{LeaseClient, LeaseLocks, LeaseSemaphores, names},
};
use holdfast_core::{
    Address, Fence, Kind, SessionId, Substrate, SystemClock,
    semaphore::slots::{SlotPlan, SlotState, plan},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;

use crate::{
    apiserver::ApiServer,
    fixture::{PermitsWorld, Sidecar, World},
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
        if at.kind == Kind::Semaphore {
            let permits = self.slots(at).await.len() as u32;
            for lease in self.slots(at).await.values() {
                let name = lease.metadata.name.as_deref().unwrap();
                self.leases.delete(name, &DeleteParams::default()).await.unwrap();
            }
            self.resize(at, permits).await;
            return Fence::new(0);
        }
        let name = names::lease_name(at.kind, &at.class, &at.key);
        self.leases.delete(&name, &DeleteParams::default()).await.unwrap();
        self.provision(at).await;
        Fence::new(0)
    }
}

impl LeaseWorld {
    /// The slots of a key, by their numbers.
    async fn slots(&self, at: &Address) -> BTreeMap<u32, Lease> {
        let class = format!("{}={}", names::LABEL_CLASS, at.class);
        let all = self.leases.list(&ListParams::default().labels(&class)).await.unwrap();
        let number =
            |lease: &Lease| names::slot_number(&at.class, &at.key, lease.metadata.name.as_deref()?);
        all.items.into_iter().filter_map(|lease| Some((number(&lease)?, lease))).collect()
    }
}

#[async_trait]
impl PermitsWorld for LeaseWorld {
    async fn pod(&self, name: &str) -> Sidecar {
        let config = self.server.config("admin", self.server.port()).await;
        let (client, hub) = (LeaseClient::new(&config).unwrap(), Hub::new());
        let locks = LeaseLocks::new(client, hub.clone(), Arc::new(SystemClock));
        Sidecar::new(name, SessionId::random(), LeaseSemaphores::beside(&locks), hub)
    }

    fn heaviest(&self) -> u32 {
        1
    }

    /// By the operator's own rules.
    async fn resize(&self, at: &Address, permits: u32) {
        loop {
            let slots = self.slots(at).await;
            let state = |lease: &Lease| {
                let notes = lease.metadata.annotations.clone().unwrap_or_default();
                let closed = notes.contains_key(names::CLOSED);
                let holder = lease.spec.clone().unwrap_or_default().holder_identity;
                match holder.is_some_and(|holder| !holder.is_empty()) {
                    true => SlotState::Held { closed },
                    false if closed => SlotState::Closed,
                    false => SlotState::Free,
                }
            };
            let there = slots.iter().map(|(number, lease)| (*number, state(lease))).collect();
            let plan = plan(permits, &there);
            if plan == SlotPlan::default() {
                return;
            }
            let closings = plan.close.iter().map(|number| (number, json!("true")));
            for (number, value) in closings.chain(plan.open.iter().map(|n| (n, json!(null)))) {
                let name = slots[number].metadata.name.as_deref().unwrap();
                let body = json!({ "metadata": {
                    "resourceVersion": slots[number].metadata.resource_version,
                    "annotations": { names::CLOSED: value },
                }});
                let params = PatchParams::default();
                self.leases.patch(name, &params, &Patch::Merge(&body)).await.unwrap();
            }
            for number in &plan.delete {
                let name = slots[number].metadata.name.as_deref().unwrap();
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: slots[number].metadata.uid.clone(),
                        resource_version: slots[number].metadata.resource_version.clone(),
                    }),
                    ..DeleteParams::default()
                };
                self.leases.delete(name, &params).await.unwrap();
            }
            for number in plan.create {
                let lease = names::unheld_slot("default", at.kind, &at.class, &at.key, number);
                self.leases.create(&PostParams::default(), &lease).await.unwrap();
            }
        }
    }
}

semaphores_everywhere!(permits, crate::lease::LeaseWorld, weighted: []);

// First come, first served is promised among the waiters of one process only, so the bodies about
// the order of several processes are not here.
everywhere!(locks, crate::lease::LeaseWorld, []);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_legal() {
    crate::history::random_histories_are_legal(&LeaseWorld::start().await, 8, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_holders_are_fenced() {
    let world = LeaseWorld::start().await;
    crate::stale::stale_holders_are_fenced(&world, Duration::from_secs(1), 6).await;
}
