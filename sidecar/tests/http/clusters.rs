//! Two pods on a Redis Cluster, as their apps see it, while slots move.

use std::time::Duration;

use holdfast_api::bundle::{Bundle, Epoch, EpochRun, RedisAddress};
use holdfast_backend::redis::{keys::ObjectKeys, slots::slot_of};
use holdfast_core::{Address, ClassName, Holder, Key, Kind, Substrate};
use holdfast_sidecar::{Listen, Local};

use crate::{
    client::{App, CLASSES, mk_bundle_on},
    servers::{RedisCluster, open_epoch},
};

const MORE: &str = r#"---
apiVersion: holdfast.dev/v1alpha1
kind: Semaphore
metadata: {name: pool}
spec: {backend: main, permits: 3, ttlSeconds: 30}
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: mail}
spec:
  backend: main
  limits: [{name: l, algorithm: FixedWindow, limit: 5, windowSeconds: 2678400}]
"#;

/// What the operator would publish.
async fn mk_bundle(cluster: &RedisCluster) -> Bundle {
    // The leases' one class is not of interest here.
    let classes = CLASSES.rsplit_once("---").unwrap().0;
    let mut bundle = mk_bundle_on("sharded", Substrate::Redis, &format!("{classes}{MORE}"));
    let known = open_epoch(&cluster.servers[0].address(), "default", 1, &[]).await;
    let runs = known.runs.into_iter().map(|run| EpochRun {
        server: run.server,
        replid: run.replid,
        tags: run.tags,
        open: run.open,
    });
    let backend = bundle.backends.get_mut("sharded").unwrap();
    backend.redis = Some(RedisAddress {
        addresses: cluster.addresses()[..1].to_vec(),
        cluster: true,
        master_name: None,
        tls: false,
        ca: None,
        database: 0,
        ack: None,
    });
    let (replid, open) = (String::new(), known.open);
    backend.epoch = Some(Epoch { number: known.number, replid, open, runs: runs.collect() });
    bundle
}

async fn pod(name: &str, bundle: &Bundle) -> App {
    let local = Local {
        namespace: "default".into(),
        holder: Holder::new(name).unwrap(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        page: false,
    };
    let (serving, _) = local.start(bundle, None).await.unwrap();
    let Listen::Tcp(address) = serving.listens[0].clone() else { unreachable!() };
    App { serving, address }
}

fn slot(kind: Kind, class: &str) -> u16 {
    let (class, key) = (ClassName::new(class).unwrap(), Key::default_key());
    slot_of(&ObjectKeys::new(&Address { kind, namespace: "default".into(), class, key }).record())
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_are_renewed_and_handed_over_while_their_slot_moves() {
    let cluster = RedisCluster::start(3, 0).patient();
    let bundle = mk_bundle(&cluster).await;
    let (a, b) = (pod("pod-a", &bundle).await, pod("pod-b", &bundle).await);
    let held = a.hold("job", "waitSeconds=10").await;
    assert_eq!(held["guarantee"], "BestEffort");
    let at = slot(Kind::Lock, "job");
    for _ in 0..40 {
        cluster.move_slot(at, (cluster.owner(at) + 1) % 3);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // It lasts four seconds, and was renewed through all of that.
    b.post("/v1/locks/job/acquire").await.is_problem(409, "locked");
    let state = b.get("/v1/locks/job").await.body;
    assert_eq!(
        (&state["holder"]["fence"], &state["holder"]["pod"]),
        (&held["fence"], &"pod-a".into()),
        "{state}"
    );
    let (waiting, released) = tokio::join!(b.hold("job", "waitSeconds=20"), async {
        while b.get("/v1/locks/job").await.body["waiters"] != 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cluster.move_slot(at, (cluster.owner(at) + 1) % 3);
        a.release("job", &held).await
    });
    assert_eq!(released.status, 200, "{released:?}");
    let fence = |hold: &serde_json::Value| hold["fence"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(fence(&waiting) > fence(&held));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_lives_on_a_cluster() {
    let cluster = RedisCluster::start(3, 0).patient();
    let bundle = mk_bundle(&cluster).await;
    let (a, b) = (pod("pod-a", &bundle).await, pod("pod-b", &bundle).await);
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=10").await;
    assert_eq!((won.status, &won.body["state"]), (200, &"leading".into()), "{won:?}");
    b.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    let two = a.post("/v1/semaphores/pool/acquire?permits=2").await;
    assert_eq!(two.status, 200, "{two:?}");
    b.post("/v1/semaphores/pool/acquire?permits=2").await.is_problem(409, "locked");
    let moved = slot(Kind::Semaphore, "pool");
    cluster.move_slot(moved, (cluster.owner(moved) + 1) % 3);
    b.post("/v1/semaphores/pool/acquire?permits=2").await.is_problem(409, "locked");
    assert_eq!(b.post("/v1/semaphores/pool/acquire?permits=1").await.status, 200);
    for (pod, passes) in [(&a, true), (&b, true), (&a, false)] {
        let answer = pod.post("/v1/ratelimits/mail/check?cost=2").await;
        assert_eq!(answer.status, if passes { 200 } else { 429 }, "{answer:?}");
    }
}
