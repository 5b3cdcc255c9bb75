//! Locks on a majority of three real servers, as apps see them.

use std::sync::Arc;

use holdfast_api::bundle::{Bundle, BundleBackend, Epoch, EpochRun, RedisAddress};
use holdfast_backend::redis::{RedisAdmin, RedisConfig};
use holdfast_core::{Holder, SessionId, Substrate, SystemClock};
use holdfast_runtime::Readiness;
use holdfast_sidecar::{
    Listen, Serving, config::Bundles, connect::Backends, service::Identity, snapshot::Connect,
};
use tokio::time::{Duration, Instant, sleep};

use crate::{
    client::{Answer, App, mk_bundle_with},
    server::RedisServer,
};

const CLASSES: &str = r#"
apiVersion: holdfast.dev/v1alpha1
kind: Lock
metadata: {name: orders}
spec: {backend: three, ttlSeconds: 20}
"#;

/// What the operator does, in one epoch.
async fn bundle(servers: &[RedisServer]) -> Bundle {
    let addresses: Vec<String> = servers.iter().map(RedisServer::address).collect();
    let mut runs = Vec::new();
    for address in &addresses {
        let admin = RedisAdmin::connect(&RedisConfig::new(address).unwrap()).unwrap();
        admin.load_library().await.unwrap();
        admin.open_epoch("default", 1).await.unwrap();
        let (server, replid) = (address.clone(), admin.probe().await.unwrap().replid);
        runs.push(EpochRun { server, replid, tags: Vec::new(), open: true });
    }
    let redis = RedisAddress {
        addresses,
        cluster: false,
        master_name: None,
        tls: false,
        ca: None,
        database: 0,
        ack: None,
    };
    let epoch = Epoch { number: 1, replid: String::new(), open: true, runs };
    let three = BundleBackend {
        redis: Some(redis),
        epoch: Some(epoch),
        ..BundleBackend::of(Substrate::Redlock)
    };
    mk_bundle_with("three", three, CLASSES)
}

async fn pod(name: &str, bundle: &Bundle) -> (App, Bundles) {
    let (namespace, session) = ("default".into(), SessionId::random());
    let identity = Identity {
        namespace: Arc::clone(&namespace),
        holder: Holder::new(name).unwrap(),
        session: session.clone(),
        service_account: "default".into(),
        in_pod: false,
    };
    let serving = Serving::start(identity, &["127.0.0.1:0".parse().unwrap()], false).await.unwrap();
    let (hub, clock) = (serving.hub.clone(), Arc::new(SystemClock));
    let backends = Backends::new(namespace, session, hub, clock, None, None);
    let connect: Arc<dyn Connect> = Arc::new(backends);
    let bundles = Bundles::new(serving.sidecar.clone(), connect, Readiness::default(), None);
    bundles.apply(bundle);
    let Listen::Tcp(address) = serving.listens[0].clone() else { unreachable!() };
    (App { serving, address }, bundles)
}

/// What a request is told that does not wait. It has a second for all servers, a twentieth of the
/// time to live: a slow machine may need more, above all when it has to connect first.
async fn at_once(app: &App) -> Answer {
    let mut answer = app.post("/v1/locks/orders/acquire").await;
    for _ in 0..10 {
        if answer.status != 503 {
            break;
        }
        answer = app.post("/v1/locks/orders/acquire").await;
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_three_servers_is_handed_over_renewed_and_outlives_one_of_them() {
    let mut servers: Vec<RedisServer> = (0..3).map(|_| RedisServer::start(&[])).collect();
    let bundle = bundle(&servers).await;
    let ((a, _bundles_a), (b, _bundles_b)) =
        (pod("pod-a", &bundle).await, pod("pod-b", &bundle).await);
    let held = a.hold("orders", "waitSeconds=10").await;
    assert_eq!(held["guarantee"], "Majority(2 of 3)");
    at_once(&b).await.is_problem(409, "locked");
    let waiting = async {
        let held = b.hold("orders", "waitSeconds=20&ttlSeconds=5").await;
        (held, Instant::now())
    };
    let releasing = async {
        while b.get("/v1/locks/orders").await.body["waiters"] != 1 {
            sleep(Duration::from_millis(10)).await;
        }
        let released = Instant::now();
        assert_eq!(a.release("orders", &held).await.status, 200);
        released
    };
    let ((next, at_last), released) = tokio::join!(waiting, releasing);
    let fence = |held: &serde_json::Value| held["fence"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(fence(&next) > fence(&held));
    let took = at_last - released;
    assert!(took < Duration::from_secs(5), "handed over after {took:?}");

    // It is renewed beyond its time to live (5 s) by itself, again and again, with one server less.
    servers[0].kill();
    sleep(Duration::from_secs(13)).await;
    let id = next["holdId"].as_str().unwrap();
    let info = b.get(&format!("/v1/holds/{id}")).await;
    assert_eq!(info.status, 200, "{}", info.body);
    let renewed = b.post(&format!("/v1/locks/orders/renew?holdId={id}")).await;
    assert_eq!(renewed.status, 200, "{}", renewed.body);
    at_once(&a).await.is_problem(409, "locked");
    assert_eq!(b.release("orders", &next).await.status, 200);
    let held = a.hold("orders", "waitSeconds=20").await;
    assert!(fence(&held) > fence(&next));
    assert_eq!(a.release("orders", &held).await.status, 200);

    // Without a majority it says so.
    servers[1].kill();
    let refused = a.post("/v1/locks/orders/acquire").await;
    assert_eq!(refused.status, 503, "{}", refused.body);
}
