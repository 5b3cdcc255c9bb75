//! Pods that hold by annotation: on Leases and on Redis, in order with everybody else, and told.
//! There is no scheduler and no kubelet here: the tests bind pods and say how they end.

use std::{sync::Arc, time::Duration};

use holdfast_backend::redis::RedisSemaphores;
use holdfast_core::{
    Fence, HoldId, Holder, Kind, SessionId,
    lock::{Acquire, Attempt, LockBackend, Release},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};

use crate::{
    fixture::{Bed, eventually, object},
    redis::RedisServer,
};

pub const FENCE: &str = "holdfast.dev/hold-fence";
pub const STATE: &str = "holdfast.dev/hold-state";

/// A pod as the webhook leaves it.
pub fn mk_pod(name: &str, hold: &str, more: &str) -> String {
    let label = hold.replace('/', ".");
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{holdfast.dev/hold: \
         '{label}'}}, annotations: {{holdfast.dev/hold: '{hold}'{more}}}}}, spec: {{\
         automountServiceAccountToken: false, schedulingGates: [{{name: holdfast.dev/hold}}], \
         containers: [{{name: app, image: app}}]}}}}"
    )
}

impl Bed<'_> {
    /// Creates gated pods, one after the other.
    pub fn held_pods(&self, names: &[&str], hold: &str) {
        // Nobody else makes it here.
        let account = self.kubectl(&["create", "serviceaccount", "default"], "");
        assert!(account.as_ref().err().is_none_or(|why| why.contains("exists")), "{account:?}");
        for name in names {
            self.kubectl(&["create", "-f", "-"], &mk_pod(name, hold, "")).unwrap();
        }
    }

    pub async fn pod(&self, name: &str) -> Option<Pod> {
        Api::<Pod>::namespaced(self.client.clone(), &self.namespace).get_opt(name).await.unwrap()
    }

    /// The pods that may run now: let go, and not ended.
    pub async fn let_go(&self) -> Vec<String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let pods = api.list(&ListParams::default()).await.unwrap().items;
        pods.iter()
            .filter(|pod| is_let_go(pod) && !is_over(pod))
            .map(ResourceExt::name_any)
            .collect()
    }

    /// Waits until these pods, and no others, may run.
    pub async fn until_let_go(&self, names: &[&str]) {
        let mut seen = Vec::new();
        eventually(&format!("only {names:?} to be let go; {seen:?}"), async || {
            seen = self.let_go().await;
            assert!(seen.len() <= names.len(), "{seen:?} where {names:?} were to run");
            seen == names
        })
        .await;
    }

    pub async fn until_state(&self, name: &str, starts: &str) -> String {
        let mut seen = String::new();
        eventually(&format!("{name} to be {starts:?}"), async || {
            let pod = self.pod(name).await.unwrap();
            seen = pod.annotations().get(STATE).cloned().unwrap_or_default();
            seen.starts_with(starts)
        })
        .await;
        seen
    }

    pub async fn fence(&self, name: &str) -> u64 {
        self.pod(name).await.unwrap().annotations()[FENCE].parse().unwrap()
    }

    /// Says how a pod ended, as its kubelet would.
    pub fn end(&self, name: &str, phase: &str) {
        self.set_phase(name, &format!("{{\"status\": {{\"phase\": \"{phase}\"}}}}"));
    }

    pub fn set_phase(&self, name: &str, status: &str) {
        let args = ["patch", "pod", name, "--subresource=status", "--type=merge", "-p", status];
        self.kubectl(&args, "").unwrap();
    }

    /// Binds a pod to a node and says that it runs, as scheduler and kubelet would.
    pub fn run(&self, name: &str) {
        let path = format!("/api/v1/namespaces/{}/pods/{name}/binding", self.namespace);
        let binding = format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Binding\", \"metadata\": {{\"name\": \"{name}\"}}, \
             \"target\": {{\"kind\": \"Node\", \"name\": \"n\"}}}}"
        );
        self.kubectl(&["create", "--raw", &path, "-f", "-"], &binding).unwrap();
        self.end(name, "Running");
    }

    pub fn semaphore(&self, name: &str, spec: &str) {
        self.kubectl(&["apply", "-f", "-"], &object("Semaphore", name, spec)).unwrap();
    }
}

pub fn is_let_go(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
    gates.into_iter().flatten().all(|gate| gate.name != "holdfast.dev/hold")
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_lease_lets_pods_go_one_by_one_in_their_order() {
    let bed = Bed::shared().await;
    bed.lock("nightly", "{}");
    bed.held_pods(&["a", "b", "c"], "lock/nightly");
    bed.until_let_go(&["a"]).await;
    assert_eq!(bed.until_state("a", "Granted").await, "Granted");
    bed.until_state("b", "Waiting: at place 1").await;
    bed.until_state("c", "Waiting: at place 2").await;
    eventually("the class shows it", async || {
        let status = bed.get_lock("nightly").await.unwrap().status.unwrap();
        status.waiting == Some(2) && status.holders.iter().any(|holder| holder.pod == "a")
    })
    .await;
    let mut last = bed.fence("a").await;
    let status = bed.get_lock("nightly").await.unwrap().status.unwrap();
    assert_eq!(status.holders[0].fence, last.to_string());
    bed.end("a", "Succeeded");
    bed.until_let_go(&["b"]).await;
    bed.until_state("a", "Released").await;
    bed.end("b", "Failed");
    bed.until_let_go(&["c"]).await;
    for next in ["b", "c"] {
        let fence = bed.fence(next).await;
        assert!(fence > last, "{fence} after {last}");
        last = fence;
    }
    eventually("all is told", async || {
        bed.events("a", "HoldGranted").await.len() == 1
            && bed.events("a", "HoldReleased").await.len() == 1
            && bed.events("b", "HoldWaiting").await.len() == 1
            && bed.events("nightly", "HoldGranted").await.len() == 3
    })
    .await;
    // What is over is not done again: the Lease stays released.
    bed.end("c", "Succeeded");
    bed.until_state("c", "Released").await;
    let (locks, config) = (bed.leases().await, bed.config("nightly").await);
    assert!(
        crate::fixture::acquire(&*locks, &bed.at("nightly", "default"), &config, "x")
            .await
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_apps_stand_in_one_queue_on_redis() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("gates", &redis, "");
    bed.semaphore("pool", "{backend: gates, permits: 2, ttlSeconds: 60}");
    bed.held_pods(&["a", "b"], "semaphore/pool");
    bed.until_let_go(&["a", "b"]).await;
    let permits = RedisSemaphores::beside(bed.redis("gates").await);
    let bundle = bed.bundle().await.unwrap();
    let class = bundle.class(Kind::Semaphore, "pool").unwrap();
    let config = class.config.lock(holdfast_core::Substrate::Redis).unwrap();
    let at = holdfast_core::Address { kind: Kind::Semaphore, ..bed.at("pool", "default") };
    let request = Acquire {
        config: Arc::new(config.clone()),
        hold: HoldId::random(),
        session: SessionId::random(),
        holder: Holder::new("app").unwrap(),
        ttl: Duration::from_secs(60),
        max_hold: Duration::ZERO,
        enqueue: true,
        permits: 1,
    };
    let queued = permits.acquire(&at, &request).await.unwrap();
    assert_eq!(queued, Attempt::Queued { position: 1 });
    // It stays in the queue for as long as it beats.
    let (beats, session) = (permits.clone(), request.session.clone());
    let of = (at.clone(), config.clone());
    let beating = tokio::spawn(async move {
        loop {
            drop(beats.beat(&of.0, &of.1, &session).await);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    bed.held_pods(&["c", "d"], "semaphore/pool");
    bed.until_state("c", "Waiting: at place 2").await;
    bed.until_state("d", "Waiting: at place 3").await;
    // The app came before the pods.
    bed.end("a", "Succeeded");
    let mut fence = Fence::new(0);
    eventually("the app's turn", async || match permits.acquire(&at, &request).await {
        Ok(Attempt::Granted(grant)) => {
            fence = grant.fence;
            true
        }
        _ => false,
    })
    .await;
    beating.abort();
    bed.until_state("c", "Waiting: at place 1").await;
    assert_eq!(bed.let_go().await, ["b"]);
    assert_eq!(permits.release(&at, &config, &request.hold).await.unwrap(), Release::Released);
    bed.until_let_go(&["b", "c"]).await;
    assert!(bed.fence("c").await > fence.to_string().parse().unwrap());
    bed.until_state("d", "Waiting: at place 1").await;
    bed.end("b", "Failed");
    bed.until_let_go(&["c", "d"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_per_holder_is_one_pods_and_permits_have_weight() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("weights", &redis, "");
    bed.semaphore(
        "pool",
        "{backend: weights, permits: 4, maxPerHolder: 2, ttlSeconds: 3, keys: [x]}",
    );
    bed.held_pods(&[], "semaphore/pool");
    for name in ["a", "b", "c"] {
        let pod = mk_pod(name, "semaphore/pool", ", holdfast.dev/hold-permits: '2'");
        bed.kubectl(&["create", "-f", "-"], &pod).unwrap();
    }
    bed.until_let_go(&["a", "b"]).await;
    bed.until_state("c", "Waiting: at place 1").await;
    bed.end("a", "Succeeded");
    bed.until_let_go(&["b", "c"]).await;
    let pod = mk_pod("d", "semaphore/pool", ", holdfast.dev/hold-permits: '3'");
    bed.kubectl(&["create", "-f", "-"], &pod).unwrap();
    let said = bed.until_state("d", "Blocked").await;
    assert!(said.contains("one hold of semaphore/pool has at most 2"), "{said}");
    let pod = mk_pod("e", "semaphore/pool", ", holdfast.dev/hold-key: other");
    bed.kubectl(&["create", "-f", "-"], &pod).unwrap();
    let said = bed.until_state("e", "Blocked").await;
    assert!(said.contains("no key \"other\"") && said.contains("hold-key"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_is_told_and_gone_once_it_is_seen_to() {
    let bed = Bed::shared().await;
    bed.lock("nightly", "{access: [{serviceAccounts: [batch], verbs: [Acquire]}]}");
    bed.until_ready("nightly", "True", "Reconciled").await;
    bed.held_pods(&["lost"], "lock/nigthly");
    bed.held_pods(&["stranger"], "lock/nightly");
    let said = bed.until_state("lost", "Blocked").await;
    assert!(said.contains("did you mean \"nightly\"?"), "{said}");
    let said = bed.until_state("stranger", "Blocked").await;
    assert!(said.contains("ServiceAccount \"default\" may not acquire"), "{said}");
    eventually("Events", async || {
        bed.events("lost", "HoldBlocked").await.len() == 1
            && bed.events("stranger", "HoldBlocked").await.len() == 1
    })
    .await;
    // Both are seen to by people, and both pods go, each with a hold of its own.
    bed.lock("nigthly", "{}");
    bed.lock("nightly", "{access: [{serviceAccounts: [batch, default]}]}");
    bed.until_let_go(&["lost", "stranger"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_on_leases_let_so_many_pods_go_in_their_order() {
    let bed = Bed::shared().await;
    bed.semaphore("pool", "{backend: lease, permits: 2}");
    bed.held_pods(&["a", "b", "c", "d"], "semaphore/pool");
    bed.until_let_go(&["a", "b"]).await;
    bed.until_state("d", "Waiting: at place 2").await;
    let first = bed.fence("a").await.max(bed.fence("b").await);
    bed.end("b", "Failed");
    bed.until_let_go(&["a", "c"]).await;
    assert!(bed.fence("c").await > first);
    bed.end("a", "Succeeded");
    bed.end("c", "Succeeded");
    bed.until_let_go(&["d"]).await;
}
