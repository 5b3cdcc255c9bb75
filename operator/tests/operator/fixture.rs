//! An API server with the definitions and the admission policy, operators on it, and apps that hold
//! locks the way sidecars do.

use std::{
    path::PathBuf,
    process::Command,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_api::{
    bundle::{BUNDLE_CONFIG_MAP, BUNDLE_KEY, Bundle},
    conditions::READY,
    v1alpha1::{Backend, Lock},
};
use holdfast_backend::{
    hub::Hub,
    lease::{LeaseClient, LeaseLocks},
    redis::{Credentials, KnownEpoch, KnownRun, RedisConfig, RedisLocks},
};
use holdfast_core::{
    Address, ClassName, Fence, HoldId, Holder, Key, Kind, SessionId, Substrate, SystemClock,
    lock::{Acquire, Attempt, LockBackend, LockConfig},
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Secret},
    events::v1::Event,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use tokio::{sync::watch, time::Instant};

use crate::{apiserver::ApiServer, redis::RedisServer};

pub use crate::process::{OPERATOR, Operator};

/// Where operators live.
pub const SYSTEM: &str = "holdfast-system";
/// Things that take a moment take no longer than this on a busy machine.
pub const SOON: Duration = Duration::from_secs(40);

/// An API server that is ready for an operator.
pub struct Plane {
    pub server: ApiServer,
    /// Ends with the server.
    dir: PathBuf,
}

impl Plane {
    pub fn start() -> Self {
        let server = ApiServer::start();
        let dir = server.kubeconfig().parent().unwrap().join("operators");
        std::fs::create_dir(&dir).unwrap();
        let out = dir.to_str().unwrap();
        let made = Command::new(OPERATOR).args(["crd", "--out", out]).status().unwrap();
        assert!(made.success());
        server.kubectl(&["apply", "-f", out], "").unwrap();
        server.kubectl(&["wait", "--for=condition=Established", "crd", "--all"], "").unwrap();
        server.kubectl(&["create", "namespace", SYSTEM], "").unwrap();
        server.with_policy();
        Plane { server, dir }
    }

    pub async fn client(&self) -> Client {
        Client::try_from(self.server.config("admin", self.server.port()).await).unwrap()
    }

    /// Runs one more operator.
    pub fn operator(&self, name: &str, args: &[&str]) -> Operator {
        let log = self.dir.join(format!("{name}.log"));
        Operator::start(&self.server.kubeconfig(), log, name, args)
    }
}

/// The API server that most tests share, with one operator on it.
pub fn shared() -> &'static (Plane, Operator) {
    static SHARED: OnceLock<(Plane, Operator)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let plane = Plane::start();
        let operator = plane.operator("operator", &[]);
        (plane, operator)
    })
}

/// A namespace of a test's own.
pub struct Bed<'a> {
    pub plane: &'a Plane,
    pub client: Client,
    pub namespace: String,
}

impl<'a> Bed<'a> {
    pub async fn new(plane: &'a Plane) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let namespace = format!("shop-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let bed = Bed { plane, client: plane.client().await, namespace };
        bed.kubectl_cluster(&["create", "namespace", &bed.namespace], "").unwrap();
        bed
    }

    pub async fn shared() -> Bed<'static> {
        Bed::new(&shared().0).await
    }

    pub fn kubectl_cluster(&self, args: &[&str], input: &str) -> Result<String, String> {
        self.plane.server.kubectl(args, input)
    }

    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String, String> {
        self.plane.server.kubectl(&[&["-n", &self.namespace], args].concat(), input)
    }

    /// Whether the API server would let an account of the namespace do something.
    pub fn may(&self, account: &str, verb: &str, what: &str) -> bool {
        let account = format!("system:serviceaccount:{}:{account}", self.namespace);
        let group = format!("system:serviceaccounts:{}", self.namespace);
        let args = ["auth", "can-i", verb, what, "--as", &account, "--as-group", &group];
        self.kubectl(&args, "").is_ok()
    }

    /// Applies a Lock with a spec in YAML's flow style.
    pub fn lock(&self, name: &str, spec: &str) {
        self.try_lock(name, spec).unwrap();
    }

    pub fn try_lock(&self, name: &str, spec: &str) -> Result<String, String> {
        self.kubectl(&["apply", "-f", "-"], &object("Lock", name, spec))
    }

    pub async fn get_lock(&self, name: &str) -> Option<Lock> {
        Api::<Lock>::namespaced(self.client.clone(), &self.namespace).get_opt(name).await.unwrap()
    }

    /// Waits until the operator says of a Lock's newest generation what is expected: status,
    /// reason. Returns it.
    pub async fn until_ready(&self, name: &str, status: &str, reason: &str) -> Lock {
        let mut seen = None;
        eventually(&format!("{name} to be Ready={status} for {reason}; {:?}", seen), async || {
            seen = self.get_lock(name).await;
            seen.as_ref().is_some_and(|lock| is(lock, status, reason))
        })
        .await;
        seen.unwrap()
    }

    /// The bundle that sidecars read.
    pub async fn bundle(&self) -> Option<Bundle> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let map = api.get_opt(BUNDLE_CONFIG_MAP).await.unwrap()?;
        Some(serde_json::from_str(&map.data?[BUNDLE_KEY]).unwrap())
    }

    /// The configuration of a Lock, as sidecars know it.
    pub async fn config(&self, name: &str) -> Arc<LockConfig> {
        let bundle = self.bundle().await.unwrap();
        Arc::new(bundle.class(Kind::Lock, name).unwrap().config.lock(Substrate::Redis).unwrap())
    }

    /// What a term of a LeaderElection is a hold of, on Leases.
    pub async fn term(&self, name: &str) -> (Arc<LockConfig>, Address) {
        let bundle = self.bundle().await.unwrap();
        let class = bundle.class(Kind::LeaderElection, name).unwrap();
        let at = Address { kind: Kind::LeaderElection, ..self.at(name, "default") };
        (Arc::new(class.config.lock(Substrate::Lease).unwrap()), at)
    }

    pub fn at(&self, class: &str, key: &str) -> Address {
        Address {
            kind: Kind::Lock,
            namespace: self.namespace.as_str().into(),
            class: ClassName::new(class).unwrap(),
            key: Key::new(key).unwrap(),
        }
    }

    /// Locks on Leases, as a sidecar uses them.
    pub async fn leases(&self) -> Arc<LeaseLocks> {
        let config = self.plane.server.config("admin", self.plane.server.port()).await;
        let client = LeaseClient::new(&config).unwrap();
        LeaseLocks::new(client, Hub::new(), Arc::new(SystemClock))
    }

    /// A part of the namespace's Redis credentials.
    pub async fn credential(&self, name: &str) -> Option<String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let data = api.get("holdfast-redis").await.unwrap().data.unwrap();
        data.get(name).map(|text| String::from_utf8(text.0.clone()).unwrap())
    }

    /// Locks on a Redis, as a sidecar uses them: its Secret, its bundle.
    pub async fn redis(&self, backend: &str) -> Arc<RedisLocks> {
        let password = self.credential(&format!("{backend}.password")).await;
        self.redis_as(backend, password).await
    }

    /// The same with another password.
    pub async fn redis_as(&self, backend: &str, password: Option<String>) -> Arc<RedisLocks> {
        let username = self.credential(&format!("{backend}.username")).await;
        let credentials = Credentials { username, password };
        let bundle = self.bundle().await.unwrap();
        let there = &bundle.backends[backend];
        let epoch = there.epoch.clone().map(|epoch| KnownEpoch {
            number: epoch.number,
            replid: epoch.replid,
            open: epoch.open,
            runs: epoch.runs.into_iter().map(known_run).collect(),
        });
        let address = there.redis.as_ref().unwrap();
        let config = match address.cluster {
            true => RedisConfig::from_seeds(&address.addresses),
            false => RedisConfig::new(&address.addresses[0]),
        };
        let config = patient(config.unwrap());
        let config = config.with_credentials(Arc::new(move || Ok(credentials.clone())));
        let (_, epoch) = watch::channel(epoch);
        let (session, hub) = (SessionId::random(), Hub::new());
        RedisLocks::connect(config, &self.namespace, session, hub, epoch).unwrap()
    }

    /// Whether an Event of a reason was written about an object.
    pub async fn events(&self, about: &str, reason: &str) -> Vec<String> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let events = api.list(&ListParams::default()).await.unwrap().items;
        let ours = events.into_iter().filter(|event| {
            event.reason.as_deref() == Some(reason)
                && event.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(about)
        });
        ours.map(|event| event.note.unwrap_or_default()).collect()
    }

    /// Declares a Redis as a Backend.
    pub fn backend(&self, name: &str, redis: &RedisServer, more: &str) {
        let spec = format!("{{redis: {{addresses: ['{}']}}{more}}}", redis.address());
        self.kubectl_cluster(&["apply", "-f", "-"], &object("Backend", name, &spec)).unwrap();
    }

    pub async fn get_backend(&self, name: &str) -> Option<Backend> {
        Api::<Backend>::all(self.client.clone()).get_opt(name).await.unwrap()
    }

    pub async fn get_namespace(&self) -> Namespace {
        Api::<Namespace>::all(self.client.clone()).get(&self.namespace).await.unwrap()
    }
}

/// A busy machine may be slow to answer; that is no difference.
pub fn patient(mut config: RedisConfig) -> RedisConfig {
    config.response_timeout = Duration::from_secs(20);
    config
}

pub fn known_run(run: holdfast_api::bundle::EpochRun) -> KnownRun {
    KnownRun { server: run.server, replid: run.replid, tags: run.tags, open: run.open }
}

/// Whether the operator has judged the newest generation so.
fn is(lock: &Lock, status: &str, reason: &str) -> bool {
    let conditions = lock.status.as_ref().map(|status| status.conditions.clone());
    conditions.unwrap_or_default().iter().any(|condition| {
        condition.type_ == READY
            && condition.status == status
            && condition.reason == reason
            && condition.observed_generation == lock.metadata.generation
    })
}

/// The sentence of `Ready`.
pub fn message(lock: &Lock) -> String {
    let conditions = lock.status.clone().unwrap_or_default().conditions;
    conditions.into_iter().find(|c| c.type_ == READY).map(|c| c.message).unwrap_or_default()
}

/// An object in YAML.
pub fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: holdfast.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, \
         spec: {spec}}}"
    )
}

/// Acquires at once, or not at all.
pub async fn acquire(
    locks: &dyn LockBackend,
    at: &Address,
    config: &Arc<LockConfig>,
    pod: &str,
) -> Option<(HoldId, Fence)> {
    let request = Acquire {
        config: config.clone(),
        hold: HoldId::random(),
        session: SessionId::random(),
        holder: Holder::new(pod).unwrap(),
        ttl: Duration::from_millis(config.ttl_ms),
        max_hold: Duration::ZERO,
        enqueue: false,
        permits: 1,
    };
    match locks.acquire(at, &request).await {
        Ok(Attempt::Granted(grant)) => Some((request.hold, grant.fence)),
        _ => None,
    }
}

/// Acquires as soon as it is free.
pub async fn acquire_soon(
    locks: &dyn LockBackend,
    at: &Address,
    config: &Arc<LockConfig>,
    pod: &str,
) -> (HoldId, Fence) {
    let mut got = None;
    eventually(&format!("{pod} to get {at}"), async || {
        got = acquire(locks, at, config, pod).await;
        got.is_some()
    })
    .await;
    got.unwrap()
}

/// Waits until a condition holds; the bound is generous, the poll is short.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never happened: {what}");
}

/// Whether an object carries our finalizer.
pub fn is_guarded<K: ResourceExt>(object: &K) -> bool {
    object.finalizers().iter().any(|name| name == holdfast_api::names::FINALIZER)
}
