//! Sidecars on one API server, and Leases as the operator makes them.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_backend::{
    hub::Hub,
    lease::{LeaseClient, LeaseLocks, names},
    waiter::{Acquisition, HeldLock, LockClient},
};
use holdfast_core::{
    Address, BackendError, ClassName, Clock, Fence, HoldId, Holder, Key, Kind, SessionId,
    SystemClock,
    lock::{Acquire, Consistency, Fairness, Keys, LockBackend, LockConfig},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::PostParams};
use serde_json::json;

use crate::apiserver::ApiServer;

/// The API server of this binary, with the admission policy in force.
pub fn plane() -> &'static ApiServer {
    static READY: OnceLock<()> = OnceLock::new();
    let server = ApiServer::shared();
    READY.get_or_init(|| server.with_policy());
    server
}

/// One pod.
pub struct Sidecar {
    pub name: Holder,
    pub session: SessionId,
    pub hub: Arc<Hub>,
    pub locks: Arc<LeaseLocks>,
    pub client: Arc<LockClient>,
}

impl Sidecar {
    /// A pod with the administrator's rights, straight at the API server.
    pub async fn new(server: &ApiServer, name: &str) -> Self {
        Self::with(server, name, "admin", server.port(), Arc::new(SystemClock)).await
    }

    /// A pod that reaches the API server through a relay.
    pub async fn through(server: &ApiServer, name: &str, port: u16) -> Self {
        Self::with(server, name, "admin", port, Arc::new(SystemClock)).await
    }

    pub async fn with(
        server: &ApiServer,
        name: &str,
        user: &str,
        port: u16,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let client = LeaseClient::new(&server.config(user, port).await).unwrap();
        Self::of(client, name, clock)
    }

    /// A pod that follows all Leases by one watch.
    pub async fn sharing(server: &ApiServer, name: &str, user: &str, port: u16) -> Self {
        let client = LeaseClient::new(&server.config(user, port).await).unwrap();
        client.share_watches(true);
        Self::of(client, name, Arc::new(SystemClock))
    }

    fn of(client: LeaseClient, name: &str, clock: Arc<dyn Clock>) -> Self {
        let (hub, session) = (Hub::new(), SessionId::random());
        let locks = LeaseLocks::new(client, hub.clone(), clock.clone());
        let client = LockClient::new(locks.clone(), hub.clone(), clock, session.clone());
        Sidecar { name: Holder::new(name).unwrap(), session, hub, locks, client }
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
        match self.acquire(at, config, hold, Duration::from_secs(20)).await {
            Ok(Acquisition::Held(held)) => held,
            Ok(_) => panic!("{} did not get {at}", self.name),
            Err(error) => panic!("{} did not get {at}: {error}", self.name),
        }
    }

    /// The holder's name and fence as this pod reads them.
    pub async fn sees(&self, at: &Address, config: &LockConfig) -> Option<(Holder, Fence)> {
        let view = self.locks.query(at, config).await.unwrap();
        view.holder.map(|holder| (holder.holder, holder.fence))
    }
}

pub fn mk_config(ttl: Duration) -> Arc<LockConfig> {
    Arc::new(LockConfig {
        generation: 1,
        ttl_ms: ttl.as_millis() as u64,
        max_hold_ms: 0,
        min_hold_ms: 0,
        lock_delay_ms: 0,
        permits: 1,
        max_per_holder: 0,
        keys: Keys::Fixed(vec![Key::default_key()]),
        max_waiters: 100,
        fairness: Fairness::Fifo,
        consistency: Consistency::Strict,
        fence_floor: Fence::new(0),
    })
}

pub fn lease_of(at: &Address) -> String {
    names::lease_name(at.kind, &at.class, &at.key)
}

pub async fn leases(server: &ApiServer) -> Api<Lease> {
    let config = server.config("admin", server.port()).await;
    Api::namespaced(Client::try_from(config).unwrap(), "default")
}

/// Creates the Lease of an address, unheld.
pub async fn provision(server: &ApiServer, at: &Address) {
    let lease = names::unheld(&at.namespace, at.kind, &at.class, &at.key);
    leases(server).await.create(&PostParams::default(), &lease).await.unwrap();
}

/// Allows the user `sidecar` what the operator's Roles do: to get, watch and patch these Leases.
pub async fn allow(server: &ApiServer, role: &str, leases: &[String]) {
    let metadata = json!({ "name": role, "namespace": "default" });
    let rules = json!([{ "apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
                         "resourceNames": leases, "verbs": ["get", "watch", "patch"] }]);
    let group = "rbac.authorization.k8s.io";
    let version = format!("{group}/v1");
    let both = json!({
        "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rules },
            { "apiVersion": version, "kind": "RoleBinding", "metadata": metadata,
              "roleRef": { "apiGroup": group, "kind": "Role", "name": role },
              "subjects": [{ "apiGroup": group, "kind": "User", "name": "sidecar" }] },
        ]
    });
    server.kubectl(&["apply", "-f", "-"], &both.to_string()).unwrap();
    // The API server hears of its own Roles a little later.
    let what = format!("leases.coordination.k8s.io/{}", leases[0]);
    let args = ["auth", "can-i", "patch", &what, "-n", "default", "--as", "sidecar"];
    eventually("the rights are given", async || server.kubectl(&args, "").is_ok()).await;
}

/// An address that nothing else uses, with its Lease.
pub async fn fresh(server: &ApiServer) -> Address {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let at = Address {
        kind: Kind::Lock,
        namespace: "default".into(),
        class: ClassName::new(format!("c{n}")).unwrap(),
        key: Key::default_key(),
    };
    provision(server, &at).await;
    at
}

/// For how long a test waits for what is to come, however slow the asking is.
const SOON: Duration = Duration::from_secs(60);

/// Waits until a condition holds; the bound is generous, the poll is short.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let until = tokio::time::Instant::now() + SOON;
    while tokio::time::Instant::now() < until {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never happened: {what}");
}
