//! Backends of three servers of which a majority decides, and Locks on them.

use std::{sync::Arc, time::Duration};

use holdfast_api::v1alpha1::{Backend, backend::EpochStatus};
use holdfast_backend::{
    hub::Hub,
    redis::{Credentials, KnownEpoch, RedisConfig, Redlocks},
};
use holdfast_core::{
    SessionId, SystemClock,
    lock::{LockBackend, Release, Renewal},
};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::sync::watch;

use crate::{
    fixture::{Bed, acquire, acquire_soon, eventually, known_run, message, object},
    redis::RedisServer,
};

/// Locks of a namespace as a sidecar has them: its Secret, its bundle.
async fn redlocks(bed: &Bed<'_>, backend: &str) -> Arc<Redlocks> {
    let api: Api<Secret> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let data = api.get("holdfast-redis").await.unwrap().data.unwrap();
    let text =
        |part: &str| Some(String::from_utf8(data[&format!("{backend}.{part}")].0.clone()).unwrap());
    let credentials = Credentials { username: text("username"), password: text("password") };
    let bundle = bed.bundle().await.unwrap();
    let there = &bundle.backends[backend];
    let epoch = there.epoch.clone().map(|epoch| KnownEpoch {
        number: epoch.number,
        replid: epoch.replid,
        open: epoch.open,
        runs: epoch.runs.into_iter().map(known_run).collect(),
    });
    let addresses = &there.redis.as_ref().unwrap().addresses;
    let config = RedisConfig::new(&addresses[0]).unwrap();
    let config = config.with_credentials(Arc::new(move || Ok(credentials.clone())));
    let (_, epoch) = watch::channel(epoch);
    let who = (SessionId::random(), Hub::new(), Arc::new(SystemClock) as _);
    let locks = Redlocks::connect(&config, addresses, &bed.namespace, who, &epoch).unwrap();
    // A tenant's user may listen on every server.
    assert!(locks.subscribed(Duration::from_secs(30)).await);
    locks
}

fn declare(bed: &Bed<'_>, name: &str, servers: &[RedisServer]) {
    let addresses: Vec<String> = servers.iter().map(RedisServer::address).collect();
    let spec = format!("{{redis: {{mode: Redlock, addresses: [{}]}}}}", addresses.join(", "));
    bed.kubectl_cluster(&["apply", "-f", "-"], &object("Backend", name, &spec)).unwrap();
}

async fn epoch(bed: &Bed<'_>, name: &str) -> EpochStatus {
    bed.get_backend(name).await.unwrap().status.unwrap().epoch.unwrap()
}

fn ready(backend: &Backend) -> (String, String) {
    let conditions = backend.status.clone().unwrap_or_default().conditions;
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    ready.map(|ready| (ready.status, ready.message)).unwrap_or_default()
}

async fn until(bed: &Bed<'_>, name: &str, status: &str, words: &str) {
    eventually(&format!("Backend {name} Ready={status}: {words}"), async || {
        let (is, why) = ready(&bed.get_backend(name).await.unwrap());
        is == status && why.contains(words)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_majority_goes_on_while_a_server_is_away_or_has_forgotten() {
    let bed = Bed::shared().await;
    let mut servers: Vec<RedisServer> = (0..3).map(|_| RedisServer::start(&[])).collect();
    declare(&bed, "three", &servers);
    until(&bed, "three", "True", "is open on all 3 servers").await;
    // As long as a quarantine, which a slow machine must have seen before it is over.
    bed.lock("orders", "{ttlSeconds: 10, backend: three}");
    let lock = bed.until_ready("orders", "True", "Reconciled").await;
    assert_eq!(lock.status.unwrap().guarantee.as_deref(), Some("Majority(2 of 3)"));
    let (at, config) = (bed.at("orders", "order/17"), bed.config("orders").await);
    let locks = redlocks(&bed, "three").await;
    let (hold, fence) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    assert_eq!(acquire(&*locks, &at, &config, "pod-2").await, None);
    eventually("the holder in the status", async || {
        let status = bed.get_lock("orders").await.unwrap().status.unwrap();
        let renewal = locks.renew(&at, &config, &hold, Duration::from_secs(10)).await;
        assert!(!matches!(renewal, Ok(Renewal::Lost)), "{renewal:?}");
        status.held == 1
            && (&*status.holders[0].pod, &*status.holders[0].fence)
                == ("pod-1", &*fence.to_string())
    })
    .await;
    assert_eq!(locks.release(&at, &config, &hold).await, Ok(Release::Released));

    // Taken by force, over all of them.
    let (_, fence) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    let note = "holdfast.dev/force-release=order/17";
    bed.kubectl(&["annotate", "lock", "orders", note], "").unwrap();
    eventually("ForceReleased", async || !bed.events("orders", "ForceReleased").await.is_empty())
        .await;
    let (hold, next) = acquire_soon(&*locks, &at, &config, "pod-3").await;
    assert!(next > fence, "{next} after {fence}");
    locks.release(&at, &config, &hold).await.unwrap();

    // One dies: nothing changes but the sentence.
    let before = epoch(&bed, "three").await;
    servers[0].kill();
    until(&bed, "three", "True", "2 of 3 servers, which is a majority; without a vote").await;
    let (hold, fence) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    assert!(fence > next);
    locks.release(&at, &config, &hold).await.unwrap();
    bed.until_ready("orders", "True", "Reconciled").await;

    // It comes back and has forgotten: a new number, and it has no vote for a while.
    servers[0].restart();
    until(&bed, "three", "True", "in quarantine").await;
    let during = epoch(&bed, "three").await;
    assert_eq!((during.number, during.open), (before.number + 1, true));
    assert_eq!(during.runs.iter().filter(|run| run.open).count(), 2);
    eventually("the bundle to tell", async || {
        let bundle = bed.bundle().await.unwrap();
        let epoch = bundle.backends["three"].epoch.clone().unwrap();
        epoch.number == during.number && epoch.runs.iter().filter(|run| run.open).count() == 2
    })
    .await;
    let locks = redlocks(&bed, "three").await;
    let (hold, next) = acquire_soon(&*locks, &at, &config, "pod-2").await;
    assert!(next > fence && next.epoch() == during.number);
    locks.release(&at, &config, &hold).await.unwrap();
    bed.until_ready("orders", "True", "Reconciled").await;
    until(&bed, "three", "True", "is open on all 3 servers").await;

    // A majority is away: no grants, and a sentence that says what is needed.
    servers[1].kill();
    servers[2].kill();
    until(&bed, "three", "False", "1 of 3 servers have a vote, and 2 are needed").await;
    assert_eq!(acquire(&*locks, &at, &config, "pod-4").await, None);
    bed.until_ready("orders", "False", "BackendUnavailable").await;

    // Deleted without most of its servers: let go in the end.
    bed.kubectl(&["delete", "lock", "orders", "--wait=false"], "").unwrap();
    eventually("the class to be gone", async || bed.get_lock("orders").await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_keeps_locks_only_and_says_what_to_do() {
    let bed = Bed::shared().await;
    let servers: Vec<RedisServer> = (0..3).map(|_| RedisServer::start(&[])).collect();
    declare(&bed, "locks-only", &servers);
    until(&bed, "locks-only", "True", "is open").await;
    for (kind, resource, spec) in [
        ("Semaphore", "semaphore", "{permits: 2, backend: locks-only}"),
        ("LeaderElection", "leaderelection", "{backend: locks-only}"),
        (
            "RateLimit",
            "ratelimit",
            "{backend: locks-only, limits: [{name: a, limit: 5, windowSeconds: 60}]}",
        ),
    ] {
        bed.kubectl(&["apply", "-f", "-"], &object(kind, "wrong", spec)).unwrap();
        let path = "jsonpath={.status.conditions[?(@.type=='Ready')].message}";
        eventually(&format!("{kind} to be refused"), async || {
            let why = bed.kubectl(&["get", resource, "wrong", "-o", path], "").unwrap();
            why.contains("Redlock keeps locks only") && why.contains("set backend to")
        })
        .await;
    }
    for (name, more, words) in [
        ("fifo", "fairness: Fifo", "cannot promise an order"),
        ("loose", "consistency: BestEffort", "always Strict"),
    ] {
        bed.lock(name, &format!("{{backend: locks-only, {more}}}"));
        let lock = bed.until_ready(name, "False", "Invalid").await;
        assert!(message(&lock).contains(words), "{}", message(&lock));
    }
}
