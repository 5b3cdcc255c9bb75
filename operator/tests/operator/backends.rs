//! Backends: conditions, epochs, tenants, and locks that live on one.

use std::time::Duration;

use holdfast_api::v1alpha1::Backend;
use holdfast_core::lock::LockBackend;
use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use tokio::time::Instant;

use crate::{
    fixture::{Bed, acquire, acquire_soon, eventually, message},
    redis::RedisServer,
};

fn condition(backend: &Backend, type_: &str) -> (String, String, String) {
    let conditions = backend.status.clone().unwrap_or_default().conditions;
    let found = conditions.into_iter().find(|condition| condition.type_ == type_);
    found.map(|c| (c.status, c.reason, c.message)).unwrap_or_default()
}

async fn until(bed: &Bed<'_>, name: &str, status: &str, reason: &str) -> Backend {
    let mut seen = None;
    eventually(&format!("Backend {name} Ready={status} for {reason}"), async || {
        seen = bed.get_backend(name).await;
        let (is, why, _) = condition(seen.as_ref().unwrap(), "Ready");
        is == status && why == reason
    })
    .await;
    seen.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_locks_unsafe_is_a_condition_with_a_sentence() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&["--appendonly", "yes"]);
    bed.backend("plain", &redis, "");
    let backend = until(&bed, "plain", "True", "Reconciled").await;
    let types: Vec<_> =
        backend.status.clone().unwrap().conditions.into_iter().map(|c| c.type_).collect();
    assert_eq!(types, ["Ready", "EvictionSafe", "Persistent", "Replicated"]);
    assert_eq!(condition(&backend, "EvictionSafe").0, "True");
    assert_eq!(condition(&backend, "Persistent").0, "True");
    assert_eq!(condition(&backend, "Replicated").0, "False");
    let status = backend.status.clone().unwrap();
    assert_eq!(status.role.as_deref(), Some("master"));
    assert_eq!(status.epoch.map(|epoch| (epoch.number, epoch.open)), Some((1, true)));

    let lru = RedisServer::start(&["--maxmemory-policy", "allkeys-lru"]);
    bed.backend("lru", &lru, "");
    let backend = until(&bed, "lru", "False", "Unsafe").await;
    let (is_safe, _, why) = condition(&backend, "EvictionSafe");
    assert_eq!(is_safe, "False");
    assert!(why.contains("allkeys-lru") && why.contains("noeviction"), "{why}");
    assert_eq!(condition(&backend, "Persistent").0, "False");

    let leader = redis.address();
    let port = leader.rsplit(':').next().unwrap();
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", port]);
    bed.backend("replica", &replica, "");
    let backend = until(&bed, "replica", "False", "Unsafe").await;
    assert!(condition(&backend, "Ready").2.contains("primary"), "{backend:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_redis_shows_holders_and_waiters_and_is_bound_to_its_namespace() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("shared-a", &redis, "");
    bed.lock("orders", "{ttlSeconds: 60, backend: shared-a}");
    let lock = bed.until_ready("orders", "True", "Reconciled").await;
    assert_eq!(lock.status.unwrap().guarantee.as_deref(), Some("BestEffort"));
    let (locks, config) = (bed.redis("shared-a").await, bed.config("orders").await);
    let at = bed.at("orders", "order/17");
    let (hold, fence) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    let mut request = holdfast_core::lock::Acquire {
        config: config.clone(),
        hold: holdfast_core::HoldId::random(),
        session: holdfast_core::SessionId::random(),
        holder: holdfast_core::Holder::new("pod-2").unwrap(),
        ttl: Duration::from_secs(60),
        max_hold: Duration::ZERO,
        enqueue: true,
        permits: 1,
    };
    locks.acquire(&at, &request).await.unwrap();
    eventually("holder and waiter in the status", async || {
        let status = bed.get_lock("orders").await.unwrap().status.unwrap();
        status.held == 1
            && status.waiting == Some(1)
            && status.holders[0].key == "order/17"
            && status.holders[0].pod == "pod-1"
            && status.holders[0].fence == fence.to_string()
    })
    .await;
    locks.cancel(&at, &config, &request.hold).await.unwrap();

    // Another namespace's user reaches none of it.
    let other = Bed::shared().await;
    other.lock("orders", "{ttlSeconds: 60, backend: shared-a}");
    other.until_ready("orders", "True", "Reconciled").await;
    let foreign = other.redis("shared-a").await;
    request.hold = holdfast_core::HoldId::random();
    foreign.query(&at, &config).await.expect_err("read another namespace's lock");

    let note = "holdfast.dev/force-release=order/17";
    bed.kubectl(&["annotate", "lock", "orders", note], "").unwrap();
    eventually("ForceReleased", async || !bed.events("orders", "ForceReleased").await.is_empty())
        .await;
    let (_, next) = acquire_soon(&*locks, &at, &config, "pod-3").await;
    assert!(next > fence);
    let renewal = locks.renew(&at, &config, &hold, Duration::from_secs(60)).await.unwrap();
    assert_eq!(renewal, holdfast_core::lock::Renewal::Lost);
}

/// C2, C3: a flush and a restart without a file.
#[tokio::test(flavor = "multi_thread")]
async fn lost_data_raises_the_epoch_after_a_quarantine_and_fences_go_on() {
    let bed = Bed::shared().await;
    let mut redis = RedisServer::start(&[]);
    bed.backend("forgetful", &redis, "");
    bed.lock("orders", "{ttlSeconds: 2, backend: forgetful}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let at = bed.at("orders", "a");
    let config = bed.config("orders").await;
    let locks = bed.redis("forgetful").await;
    let (_, mut last) = acquire_soon(&*locks, &at, &config, "pod").await;
    for loss in ["flush", "restart", "one marker"] {
        let before = bed.get_backend("forgetful").await.unwrap().status.unwrap().epoch.unwrap();
        let lost = Instant::now();
        match loss {
            "flush" => redis.command("FLUSHALL"),
            "restart" => redis.restart(),
            _ => redis.command(&format!("DEL hf:{}:epoch", bed.namespace)),
        }
        // The old bundle grants nothing any more, whatever the operator knows.
        assert_eq!(acquire(&*locks, &at, &config, "early").await, None, "{loss}");
        let mut opened = None;
        eventually(&format!("a new epoch after: {loss}"), async || {
            let status = bed.get_backend("forgetful").await.unwrap().status.unwrap();
            opened = status.epoch.filter(|epoch| epoch.open && epoch.number > before.number);
            opened.is_some()
        })
        .await;
        assert!(lost.elapsed() >= Duration::from_secs(2), "{loss}: no quarantine");
        bed.until_ready("orders", "True", "Reconciled").await;
        let locks = bed.redis("forgetful").await;
        let (_, fence) = acquire_soon(&*locks, &at, &config, "pod").await;
        assert!(fence > last, "{loss}: {fence} after {last}");
        last = fence;
    }
    let numbers = bed.get_backend("forgetful").await.unwrap().status.unwrap().epoch.unwrap();
    assert_eq!(numbers.number, 4);
}

/// A hold that was granted under a longer time to live is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_waits_for_holds_from_before_a_class_was_changed() {
    let bed = Bed::shared().await;
    let mut redis = RedisServer::start(&[]);
    bed.backend("shorter", &redis, "");
    bed.lock("orders", "{ttlSeconds: 15, backend: shorter}");
    bed.until_ready("orders", "True", "Reconciled").await;
    // The operator says when it has looked at a changed Backend: it knows of the class by then.
    let here = format!("{{kubernetes.io/metadata.name: {}}}", bed.namespace);
    bed.backend("shorter", &redis, &format!(", namespaces: {{matchLabels: {here}}}"));
    eventually("a look at the Backend", async || {
        let backend = bed.get_backend("shorter").await.unwrap();
        backend.status.unwrap().observed_generation == backend.metadata.generation
    })
    .await;
    bed.lock("orders", "{ttlSeconds: 1, backend: shorter}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let granted = Instant::now();
    redis.restart();
    until(&bed, "shorter", "False", "Quarantine").await;
    let locks = bed.redis("shorter").await;
    let config = bed.config("orders").await;
    assert_eq!(acquire(&*locks, &bed.at("orders", "a"), &config, "early").await, None);
    until(&bed, "shorter", "True", "Reconciled").await;
    assert!(granted.elapsed() >= Duration::from_secs(15), "{:?}", granted.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_told_once_and_comes_back() {
    let bed = Bed::shared().await;
    let mut redis = RedisServer::start(&["--appendonly", "yes"]);
    bed.backend("away", &redis, "");
    bed.lock("orders", "{ttlSeconds: 1, backend: away}");
    bed.until_ready("orders", "True", "Reconciled").await;
    redis.kill();
    until(&bed, "away", "False", "BackendUnavailable").await;
    let lock = bed.until_ready("orders", "False", "BackendUnavailable").await;
    assert!(message(&lock).contains("Backend \"away\" is not ready"), "{}", message(&lock));
    let api: Api<Event> = Api::namespaced(bed.client.clone(), "default");
    let lost = async || {
        let events = api.list(&ListParams::default()).await.unwrap().items;
        let ours = events.into_iter().filter(|event| {
            event.reason.as_deref() == Some("BackendLost")
                && event.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some("away")
        });
        ours.count()
    };
    assert_eq!(lost().await, 1);
    redis.restart();
    bed.until_ready("orders", "True", "Reconciled").await;
    let (locks, config) = (bed.redis("away").await, bed.config("orders").await);
    acquire_soon(&*locks, &bed.at("orders", "a"), &config, "pod").await;
    assert_eq!(lost().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_created_again_starts_above_its_old_epoch() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("again", &redis, "");
    until(&bed, "again", "True", "Reconciled").await;
    bed.kubectl_cluster(&["delete", "backend", "again", "--timeout=40s"], "").unwrap();
    redis.command("FLUSHALL");
    bed.backend("again", &redis, "");
    let backend = until(&bed, "again", "True", "Reconciled").await;
    assert_eq!(backend.status.unwrap().epoch.unwrap().number, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_admits_the_namespaces_it_selects() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("chosen", &redis, ", namespaces: {matchLabels: {team: a}}");
    bed.lock("orders", "{backend: chosen}");
    // A moment before, the operator may not have heard of the Backend at all.
    eventually("the sentence about its labels", async || {
        message(&bed.until_ready("orders", "False", "BackendNotFound").await).contains("team=a")
    })
    .await;
    bed.kubectl_cluster(&["label", "namespace", &bed.namespace, "team=a"], "").unwrap();
    bed.until_ready("orders", "True", "Reconciled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_a_backend_come_from_the_operators_namespace() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    redis.command("CONFIG SET requirepass sesame");
    let spec = format!(
        "{{redis: {{addresses: ['{}'], tenancy: Shared, credentialsSecretRef: {{name: admin}}}}}}",
        redis.address()
    );
    let apply = crate::fixture::object("Backend", "secret", &spec);
    bed.kubectl_cluster(&["apply", "-f", "-"], &apply).unwrap();
    until(&bed, "secret", "False", "BackendUnavailable").await;
    let system = crate::fixture::SYSTEM;
    let create = ["-n", system, "create", "secret", "generic", "admin"];
    let create = [&create[..], &["--from-literal=password=sesame"]].concat();
    bed.kubectl_cluster(&create, "").unwrap();
    until(&bed, "secret", "True", "Reconciled").await;
    bed.lock("orders", "{ttlSeconds: 5, backend: secret}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (locks, config) = (bed.redis("secret").await, bed.config("orders").await);
    acquire_soon(&*locks, &bed.at("orders", "a"), &config, "pod").await;
    // Nothing of it in what everybody may read, or in the log.
    let bundle = serde_json::to_string(&bed.bundle().await.unwrap()).unwrap();
    assert!(!bundle.contains("sesame"));
    assert!(!crate::fixture::shared().1.log().contains("sesame"));
    let api: Api<Backend> = Api::all(bed.client.clone());
    let text = serde_json::to_string(&api.get("secret").await.unwrap()).unwrap();
    assert!(!text.contains("sesame"));
}
