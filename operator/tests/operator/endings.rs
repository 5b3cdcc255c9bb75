//! Deletion: nothing granted any more, nothing left behind, no fence lower than before.

use std::time::Duration;

use holdfast_core::lock::{LockBackend, Renewal};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap};
use kube::{Api, api::ListParams};
use tokio::time::Instant;

use crate::{
    fixture::{Bed, SYSTEM, acquire, acquire_soon, eventually},
    redis::RedisServer,
};

async fn count_leases(bed: &Bed<'_>) -> usize {
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    leases.list(&ListParams::default()).await.unwrap().items.len()
}

/// B11.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_class_is_drained_and_grants_nothing_meanwhile() {
    let bed = Bed::shared().await;
    bed.lock("orders", "{ttlSeconds: 10}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (config, locks, at) =
        (bed.config("orders").await, bed.leases().await, bed.at("orders", "default"));
    let (hold, first) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    let renew = async || locks.renew(&at, &config, &hold, Duration::from_secs(10)).await;
    eventually("the operator to see it", async || {
        bed.get_lock("orders").await.unwrap().status.unwrap().held == 1
    })
    .await;
    // It is renewed once at the least after that.
    let before = Instant::now();
    eventually("a renewal", async || matches!(renew().await, Ok(Renewal::Renewed { .. }))).await;
    bed.kubectl(&["delete", "lock", "orders", "--wait=false"], "").unwrap();
    let others = bed.leases().await;
    // It keeps on renewing as a sidecar does, and is told that it is over.
    eventually("the hold to be lost", async || {
        assert_eq!(acquire(&*others, &at, &config, "pod-2").await, None, "granted while draining");
        matches!(renew().await, Ok(Renewal::Lost))
    })
    .await;
    eventually("the class to be gone", async || bed.get_lock("orders").await.is_none()).await;
    let took = before.elapsed();
    assert!(took >= Duration::from_secs(9), "gone while pod-1 still believed: {took:?}");
    assert!(took < Duration::from_secs(25), "{took:?}");
    assert_eq!(count_leases(&bed).await, 0);
    eventually("the bundle without it", async || bed.bundle().await.unwrap().classes.is_empty())
        .await;

    bed.lock("orders", "{ttlSeconds: 10}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (_, second) = acquire_soon(&*others, &at, &bed.config("orders").await, "pod-2").await;
    assert!(second > first, "{second} after {first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unheld_class_is_gone_at_once_with_all_that_was_made_of_it() {
    let bed = Bed::shared().await;
    bed.lock("orders", "{ttlSeconds: 60, keys: [a, b, c]}");
    bed.until_ready("orders", "True", "Reconciled").await;
    bed.kubectl(&["delete", "lock", "orders", "--timeout=30s"], "").unwrap();
    assert_eq!(count_leases(&bed).await, 0);
    eventually("the Role to go", async || {
        bed.kubectl(&["get", "role", "holdfast-leases"], "").is_err()
    })
    .await;
}

/// The fence of a Redis class over deletion and creation, with everything in the store gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_class_on_redis_leaves_the_floor_of_its_fences_behind() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("floor", &redis, "");
    bed.lock("orders", "{ttlSeconds: 2, backend: floor}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let at = bed.at("orders", "order/1");
    let mut last = None;
    for round in 0..3 {
        let (locks, config) = (bed.redis("floor").await, bed.config("orders").await);
        let (_, fence) = acquire_soon(&*locks, &at, &config, "pod-1").await;
        assert!(Some(fence) > last, "round {round}: {fence} after {last:?}");
        last = Some(fence);
        // Held: it runs out before the class is gone.
        let asked = Instant::now();
        bed.kubectl(&["delete", "lock", "orders", "--timeout=40s"], "").unwrap();
        assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        let left = redis.keys(&format!("hf:{}:{{*", bed.namespace));
        assert_eq!(left, Vec::<String>::new(), "left in the store");
        let maps: Api<ConfigMap> = Api::namespaced(bed.client.clone(), SYSTEM);
        let floors = maps.get("holdfast-fence-floors").await.unwrap().data.unwrap();
        let floor: u64 = floors[&format!("{}.lock.orders", bed.namespace)].parse().unwrap();
        assert!(floor >= fence.sequence());
        bed.lock("orders", "{ttlSeconds: 2, backend: floor}");
        bed.until_ready("orders", "True", "Reconciled").await;
        assert_eq!(bed.config("orders").await.fence_floor.get(), floor);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_redis_does_not_wedge_a_deletion() {
    let bed = Bed::shared().await;
    let mut redis = RedisServer::start(&[]);
    bed.backend("dead", &redis, "");
    bed.lock("orders", "{ttlSeconds: 2, backend: dead}");
    bed.until_ready("orders", "True", "Reconciled").await;
    redis.kill();
    bed.until_ready("orders", "False", "BackendUnavailable").await;
    let asked = Instant::now();
    bed.kubectl(&["delete", "lock", "orders", "--timeout=60s"], "").unwrap();
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    eventually("the Event", async || !bed.events("orders", "BackendLost").await.is_empty()).await;
    let notes = bed.events("orders", "BackendLost").await;
    assert!(notes.len() == 1 && notes[0].contains("does not answer"), "{notes:?}");
    bed.kubectl_cluster(&["delete", "backend", "dead", "--timeout=30s"], "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_goes_away_is_let_go_with_a_dead_redis_and_held_leases() {
    let bed = Bed::shared().await;
    let mut redis = RedisServer::start(&[]);
    bed.backend("gone", &redis, "");
    bed.lock("cached", "{ttlSeconds: 60, backend: gone}");
    bed.lock("orders", "{ttlSeconds: 60}");
    bed.until_ready("cached", "True", "Reconciled").await;
    bed.until_ready("orders", "True", "Reconciled").await;
    let (config, locks, at) =
        (bed.config("orders").await, bed.leases().await, bed.at("orders", "default"));
    acquire_soon(&*locks, &at, &config, "pod-1").await;
    redis.kill();
    bed.kubectl_cluster(&["delete", "namespace", &bed.namespace, "--wait=false"], "").unwrap();
    assert!(bed.get_namespace().await.metadata.deletion_timestamp.is_some());
    // What the namespace controller of a whole cluster would do.
    let asked = Instant::now();
    bed.kubectl(&["delete", "locks,leases", "--all", "--timeout=60s"], "").unwrap();
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    assert_eq!(count_leases(&bed).await, 0);
    bed.kubectl_cluster(&["delete", "backend", "gone", "--timeout=30s"], "").unwrap();
}
