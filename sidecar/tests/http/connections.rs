//! How many connections a pod has to a Redis, whatever it does there.

use std::{sync::Arc, time::Duration};

use holdfast_api::bundle::{Bundle, Epoch, RedisAddress};
use holdfast_backend::redis::{RedisAdmin, RedisConfig};
use holdfast_core::{SessionId, Substrate, SystemClock};
use holdfast_runtime::Readiness;
use holdfast_sidecar::{Listen, Serving, config::Bundles, connect::Backends, snapshot::Connect};
use tokio::time::sleep;

use crate::{
    client::{App, CLASSES, mk_bundle_on},
    lifecycle::mk_identity,
    server::RedisServer,
};

/// With those of the other tests, every kind that a Redis can have.
const MORE: &str = r#"
---
apiVersion: holdfast.dev/v1alpha1
kind: Semaphore
metadata: {name: pool}
spec: {backend: redis, permits: 100}
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: api}
spec: {backend: redis, limits: [{name: l, limit: 1000, windowSeconds: 60}]}
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: leased}
spec: {backend: redis, accuracy: Leased, limits: [{name: l, limit: 1000, windowSeconds: 60}]}
"#;

/// A bundle as an operator writes it once the epoch is open.
async fn mk_opened(redis: &RedisServer) -> Bundle {
    let admin = RedisAdmin::connect(&RedisConfig::new(&redis.address()).unwrap()).unwrap();
    admin.load_library().await.unwrap();
    admin.open_epoch("default", 1).await.unwrap();
    let replid = admin.probe().await.unwrap().replid;
    let mut bundle = mk_bundle_on("redis", Substrate::Redis, &[CLASSES, MORE].concat());
    let backend = bundle.backends.get_mut("redis").unwrap();
    backend.epoch = Some(Epoch { number: 1, replid, open: true, runs: Vec::new() });
    backend.redis = Some(RedisAddress {
        cluster: false,
        addresses: vec![redis.address()],
        master_name: None,
        tls: false,
        ca: None,
        database: 0,
        ack: None,
    });
    bundle
}

#[tokio::test]
async fn one_connection_carries_everything_and_one_more_the_pushes() {
    let redis = RedisServer::start(&[]);
    let bundle = mk_opened(&redis).await;
    for _ in 0..1_000 {
        if redis.clients().is_empty() {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(redis.clients(), Vec::<String>::new(), "the operator's is gone");

    let session = SessionId::random();
    let listen: Listen = "127.0.0.1:0".parse().unwrap();
    let serving = Serving::start(mk_identity(session.clone()), &[listen], false).await.unwrap();
    let (hub, clock) = (serving.hub.clone(), Arc::new(SystemClock));
    let backends = Backends::new("default".into(), session, hub, clock, None, None);
    let connect: Arc<dyn Connect> = Arc::new(backends);
    Bundles::new(serving.sidecar.clone(), connect, Readiness::default(), None).apply(&bundle);
    let Listen::Tcp(address) = serving.listens[0].clone() else { unreachable!() };
    let app = &App { serving, address };

    let held = app.hold("slow", "").await;
    let led = app.post("/v1/elections/boss/campaign?waitSeconds=5").await;
    assert_eq!(led.body["state"], "leading", "{led:?}");
    let fence = held["fence"].as_str().unwrap();
    let guard = format!("/v1/fences/slow/check?fence={fence}");
    let calls = (0..30).flat_map(|i| {
        [
            (format!("/v1/locks/job/acquire?key=k{i}"), 200),
            // Two wait, and no third one may.
            ("/v1/locks/slow/acquire?waitSeconds=0.5".to_owned(), 0),
            (format!("/v1/semaphores/pool/acquire?permits=2&key=k{i}"), 200),
            (format!("/v1/ratelimits/api/check?key=k{i}"), 200),
            (format!("/v1/ratelimits/leased/check?key=k{i}"), 200),
            (guard.clone(), 200),
        ]
    });
    let calls = calls.map(|(path, wanted)| async move {
        let answer = app.post(&path).await;
        assert!(wanted == 0 || answer.status == wanted, "{path}: {answer:?}");
    });
    futures::future::join_all(calls).await;

    let clients = redis.clients();
    assert_eq!(clients.len(), 2, "{clients:#?}");
    let subscribed = clients.iter().filter(|client| !client.contains(" sub=0 ")).count();
    assert_eq!(subscribed, 1, "{clients:#?}");
}
