//! Semaphores: from a class to permits on a Redis, what is shown of them, and the rules of the schema.
//! On Leases: [`leases`].

use std::{sync::Arc, time::Duration};

use holdfast_api::{conditions::READY, v1alpha1::Semaphore};
use holdfast_backend::redis::RedisSemaphores;
use holdfast_core::{
    Address, HoldId, Holder, Kind, SessionId, Substrate,
    lock::{Acquire, Attempt, Grant, LockBackend, LockConfig, Renewal},
};
use kube::Api;

use crate::{
    fixture::{Bed, eventually, object},
    redis::RedisServer,
};

mod leases;

pub async fn get(bed: &Bed<'_>, name: &str) -> Option<Semaphore> {
    let api: Api<Semaphore> = Api::namespaced(bed.client.clone(), &bed.namespace);
    api.get_opt(name).await.unwrap()
}

pub async fn until_ready(bed: &Bed<'_>, name: &str) -> Semaphore {
    let mut seen = None;
    eventually(&format!("Semaphore {name} to be ready"), async || {
        seen = get(bed, name).await;
        seen.as_ref().is_some_and(|semaphore| {
            let status = semaphore.status.clone().unwrap_or_default();
            status.conditions.iter().any(|condition| {
                condition.type_ == READY
                    && condition.status == "True"
                    && condition.observed_generation == semaphore.metadata.generation
            })
        })
    })
    .await;
    seen.unwrap()
}

/// As a sidecar of the namespace: the class as its bundle says, the store with its own credentials.
pub struct Pods {
    at: Address,
    config: Arc<LockConfig>,
    store: Arc<RedisSemaphores>,
}

impl Pods {
    pub async fn of(bed: &Bed<'_>, backend: &str, class: &str, key: &str) -> Self {
        let bundle = bed.bundle().await.unwrap();
        let class_of = bundle.class(Kind::Semaphore, class).unwrap();
        Pods {
            at: Address { kind: Kind::Semaphore, ..bed.at(class, key) },
            config: Arc::new(class_of.config.lock(Substrate::Redis).unwrap()),
            store: RedisSemaphores::beside(bed.redis(backend).await),
        }
    }

    fn ttl(&self) -> Duration {
        Duration::from_millis(self.config.ttl_ms)
    }

    async fn try_acquire(&self, pod: &str, permits: u32, enqueue: bool) -> (HoldId, Attempt) {
        let request = Acquire {
            config: self.config.clone(),
            hold: HoldId::random(),
            session: SessionId::random(),
            holder: Holder::new(pod).unwrap(),
            ttl: self.ttl(),
            max_hold: Duration::ZERO,
            enqueue,
            permits,
        };
        let attempt = self.store.acquire(&self.at, &request).await.unwrap();
        (request.hold, attempt)
    }

    pub async fn acquire(&self, pod: &str, permits: u32) -> (HoldId, Grant) {
        match self.try_acquire(pod, permits, false).await {
            (hold, Attempt::Granted(grant)) => (hold, grant),
            (_, other) => panic!("{pod} got no {permits} permits: {other:?}"),
        }
    }

    pub async fn renew(&self, hold: &HoldId) -> Renewal {
        self.store.renew(&self.at, &self.config, hold, self.ttl()).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_semaphore_shows_its_permits_and_gives_one_hold_or_all_back_by_force() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("permits", &redis, "");
    // Nothing runs out here.
    let declare = |permits: u32| {
        let spec = format!("{{backend: permits, permits: {permits}, ttlSeconds: 300}}");
        bed.kubectl(&["apply", "-f", "-"], &object("Semaphore", "pool", &spec)).unwrap();
    };
    declare(5);
    let semaphore = until_ready(&bed, "pool").await;
    assert_eq!(semaphore.status.unwrap().guarantee.as_deref(), Some("BestEffort"));
    let pods = Pods::of(&bed, "permits", "pool", "a").await;
    let ((one, first), (two, second)) =
        (pods.acquire("pod-1", 2).await, pods.acquire("pod-2", 2).await);
    let waiting = pods.try_acquire("pod-3", 3, true).await;
    assert_eq!(waiting.1, Attempt::Queued { position: 1 });
    eventually("the status counts", async || {
        let status = get(&bed, "pool").await.unwrap().status.unwrap();
        let named: Vec<_> = status
            .holders
            .iter()
            .map(|h| (h.key.as_str(), h.pod.as_str(), h.permits, h.fence.clone()))
            .collect();
        (status.held, status.used, status.waiting) == (2, 4, 1)
            && named
                == [
                    ("a", "pod-1", 2, first.fence.to_string()),
                    ("a", "pod-2", 2, second.fence.to_string()),
                ]
    })
    .await;
    let table = bed.kubectl(&["get", "semaphore", "pool"], "").unwrap();
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(
        words[..8],
        ["NAME", "READY", "USED", "PERMITS", "WAITING", "BACKEND", "GUARANTEE", "AGE"]
    );
    assert_eq!(words[8..15], ["pool", "True", "4", "5", "1", "permits", "BestEffort"]);
    pods.store.cancel(&pods.at, &pods.config, &waiting.0).await.unwrap();

    // Fewer permits take nothing away.
    declare(3);
    until_ready(&bed, "pool").await;
    let smaller = Pods::of(&bed, "permits", "pool", "a").await;
    assert!(matches!(smaller.renew(&one).await, Renewal::Renewed { .. }));
    let refused = smaller.try_acquire("pod-4", 1, false).await.1;
    assert!(matches!(refused, Attempt::Locked { .. }), "{refused:?}");

    let force = |what: &str| {
        let note = format!("holdfast.dev/force-release={what}");
        bed.kubectl(&["annotate", "--overwrite", "semaphore", "pool", &note], "").unwrap();
    };
    force(&format!("a#{}", first.fence));
    eventually("one is taken", async || smaller.renew(&one).await == Renewal::Lost).await;
    assert!(matches!(smaller.renew(&two).await, Renewal::Renewed { .. }), "the other is kept");
    eventually("the annotation is gone", async || {
        !get(&bed, "pool")
            .await
            .unwrap()
            .metadata
            .annotations
            .unwrap_or_default()
            .contains_key("holdfast.dev/force-release")
    })
    .await;
    force("a");
    eventually("all are taken", async || smaller.renew(&two).await == Renewal::Lost).await;
    eventually("ForceReleased", async || bed.events("pool", "ForceReleased").await.len() == 2)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_semaphore_created_again_starts_above_its_old_fences() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("permits-again", &redis, "");
    let spec = "{backend: permits-again, permits: 2, ttlSeconds: 1}";
    let mut last = None;
    for _ in 0..2 {
        bed.kubectl(&["apply", "-f", "-"], &object("Semaphore", "pool", spec)).unwrap();
        until_ready(&bed, "pool").await;
        let (_, grant) = Pods::of(&bed, "permits-again", "pool", "a").await.acquire("pod", 2).await;
        assert!(Some(grant.fence) > last, "{:?} after {last:?}", grant.fence);
        last = Some(grant.fence);
        // Its hold runs out first; then nothing of it is left in the store.
        bed.kubectl(&["delete", "semaphore", "pool", "--timeout=30s"], "").unwrap();
        assert_eq!(get(&bed, "pool").await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_of_a_semaphore_admits_and_refuses() {
    let bed = Bed::shared().await;
    let apply = |name: &str, spec: &str| {
        bed.kubectl(&["apply", "-f", "-"], &object("Semaphore", name, spec))
    };
    let table = [
        ("permits: 1", "permits: 0", "greater than or equal to 1"),
        ("permits: 10000", "permits: 10001", "less than or equal to 10000"),
        ("permits: 1", "ttlSeconds: 5", "Required value"),
        (
            "permits: 3, maxPerHolder: 3",
            "permits: 3, maxPerHolder: 4",
            "maxPerHolder must not be greater than permits",
        ),
        (
            "permits: 3, maxPerHolder: 1",
            "permits: 3, maxPerHolder: 0",
            "greater than or equal to 1",
        ),
        (
            "permits: 1, ttlSeconds: 5, maxHoldSeconds: 5",
            "permits: 1, ttlSeconds: 5, maxHoldSeconds: 4",
            "maxHoldSeconds must not be less than ttlSeconds",
        ),
        ("permits: 1, ttlSeconds: 86400", "permits: 1, ttlSeconds: 86401", "less than or equal to"),
        ("permits: 1, keys: [a, b]", "permits: 1, keys: [a, a]", "Duplicate value"),
        (
            "permits: 1, queue: {maxWaiters: 10000}",
            "permits: 1, queue: {maxWaiters: 10001}",
            "less than or equal to 10000",
        ),
        ("permits: 1, fairness: None", "permits: 1, fairness: Lifo", "Unsupported value"),
        (
            "permits: 1, access: [{serviceAccounts: [a]}]",
            "permits: 1, access: [{serviceAccounts: []}]",
            "should have at least 1 items",
        ),
    ];
    for (i, (good, bad, why)) in table.into_iter().enumerate() {
        let name = format!("rule-{i}");
        let refusal = apply(&name, &format!("{{backend: r, {bad}}}")).expect_err(bad);
        assert!(refusal.contains(why), "{bad}: {refusal}");
        apply(&name, &format!("{{backend: r, {good}}}")).unwrap();
    }
    for (spec, why) in [
        ("{backend: lease, permits: 65}", "at most 64 permits, each is a Lease object"),
        (
            "{backend: lease, permits: 64, keys: [a, b, c, d, e]}",
            "permits times keys is at most 256",
        ),
        (
            "{backend: lease, permits: 1, fairness: Fifo}",
            "the lease backend cannot promise an order",
        ),
        ("{backend: lease, permits: 1, consistency: BestEffort}", "always Strict"),
        ("{backend: memory, permits: 1}", "exists in `holdfast dev` only"),
        ("{permits: 1}", "Required value"),
    ] {
        let refusal = apply("where", spec).expect_err(spec);
        assert!(refusal.contains(why), "{spec}: {refusal}");
    }
    apply("where", "{backend: lease, permits: 64, keys: [a, b, c, d], fairness: None}").unwrap();
    apply("moved", "{backend: r1, permits: 1}").unwrap();
    let refusal = apply("moved", "{backend: r2, permits: 1}").expect_err("moved");
    assert!(refusal.contains("backend cannot be changed"), "{refusal}");
    let refusal = apply(&"s".repeat(53), "{backend: r, permits: 1}").expect_err("a long name");
    assert!(refusal.contains("at most 52 characters"), "{refusal}");
}
