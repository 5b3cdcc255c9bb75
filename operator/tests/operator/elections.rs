//! LeaderElections: from a class to its Lease, its status, and the way to the leader's pod.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use holdfast_api::v1alpha1::LeaderElection;
use holdfast_core::lock::{LockBackend, Renewal};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod, discovery::v1::EndpointSlice};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::apiserver::cluster_box;
use crate::fixture::{Bed, acquire, acquire_soon, eventually, object};

async fn until<F: Fn(&LeaderElection) -> bool>(bed: &Bed<'_>, name: &str, is: F) -> LeaderElection {
    let api: Api<LeaderElection> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let mut seen = None;
    eventually(&format!("{name} to become as wanted"), async || {
        seen = api.get_opt(name).await.unwrap();
        seen.as_ref().is_some_and(&is)
    })
    .await;
    seen.unwrap()
}

fn is_ready(election: &LeaderElection) -> bool {
    let status = election.status.as_ref();
    status.is_some_and(|status| status.conditions.iter().any(|c| c.status == "True"))
}

fn leader(election: &LeaderElection) -> Option<&str> {
    election.status.as_ref()?.leader.as_ref().map(|leader| leader.pod.as_str())
}

/// A pod that no kubelet runs, with an address all the same.
async fn pod(bed: &Bed<'_>, name: &str, address: &str) {
    let yaml = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{automountServiceAccountToken: \
         false, containers: [{{name: app, image: none, ports: [{{name: http, containerPort: 8080}}]}}]}}}}"
    );
    bed.kubectl(&["apply", "-f", "-"], &yaml).unwrap();
    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let status = json!({ "status": { "podIP": address, "podIPs": [{ "ip": address }] } });
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_shows_in_the_status_and_label_and_route_follow_it() {
    let bed = Bed::shared().await;
    bed.kubectl(&["create", "serviceaccount", "default"], "").ok();
    pod(&bed, "pod-1", "10.1.0.1").await;
    pod(&bed, "pod-2", "10.1.0.2").await;
    let service = "{apiVersion: v1, kind: Service, metadata: {name: web}, \
                   spec: {clusterIP: None, ports: [{name: http, port: 80, targetPort: http}]}}";
    bed.kubectl(&["apply", "-f", "-"], service).unwrap();
    let spec = "{leaseDurationSeconds: 30, leaderLabel: {name: example.com/role, value: leader}, \
                service: {name: web}}";
    bed.kubectl(&["apply", "-f", "-"], &object("LeaderElection", "boss", spec)).unwrap();
    let election = until(&bed, "boss", is_ready).await;
    assert_eq!(election.status.unwrap().guarantee.as_deref(), Some("Consensus"));
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let lease = leases.get("holdfast-leaderelection-boss").await.unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some(""), "created unheld");

    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let slices: Api<EndpointSlice> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let labelled = async || -> Vec<String> {
        let all = pods.list(&Default::default()).await.unwrap().items;
        let marked = all.iter().filter(|pod| {
            pod.labels().get("example.com/role").map(String::as_str) == Some("leader")
        });
        marked.map(ResourceExt::name_any).collect()
    };
    let routed = async || -> Vec<String> {
        let slice = slices.get_opt("holdfast-boss").await.unwrap();
        let endpoints = slice.map(|slice| slice.endpoints).unwrap_or_default();
        endpoints.iter().flat_map(|endpoint| endpoint.addresses.clone()).collect()
    };
    let (locks, (config, at)) = (bed.leases().await, bed.term("boss").await);
    let mut terms = Vec::new();
    for (name, address) in [("pod-1", "10.1.0.1"), ("pod-2", "10.1.0.2")] {
        let (hold, fence) = acquire_soon(&*locks, &at, &config, name).await;
        terms.push(fence);
        let election = until(&bed, "boss", |election| leader(election) == Some(name)).await;
        let shown = election.status.unwrap().leader.unwrap();
        assert_eq!(shown.term, fence.to_string());
        assert_eq!(labelled().await, [name], "the label is there before the status says so");
        assert_eq!(routed().await, [address]);
        let slice = slices.get("holdfast-boss").await.unwrap();
        assert_eq!(slice.labels()["kubernetes.io/service-name"], "web");
        let port = &slice.ports.unwrap()[0];
        assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
        locks.release(&at, &config, &hold).await.unwrap();
    }
    assert!(terms[1] > terms[0]);
    until(&bed, "boss", |election| leader(election).is_none()).await;
    assert_eq!(labelled().await, Vec::<String>::new());
    assert_eq!(routed().await, Vec::<String>::new());
    eventually("the Event", async || !bed.events("boss", "LeaderChanged").await.is_empty()).await;

    let table = bed.kubectl(&["get", "le"], "").unwrap();
    for column in ["READY", "LEADER", "TERM", "BACKEND", "GUARANTEE", "AGE"] {
        assert!(table.contains(column), "{table}");
    }
    bed.kubectl(&["delete", "le", "boss", "--timeout=40s"], "").unwrap();
    assert!(leases.get_opt("holdfast-leaderelection-boss").await.unwrap().is_none());
}

/// On both stores: the Lease is watched, a Redis is asked.
#[tokio::test(flavor = "multi_thread")]
async fn label_and_route_follow_a_change_within_a_retry_period() {
    let bed = Bed::shared().await;
    bed.kubectl(&["create", "serviceaccount", "default"], "").ok();
    let addresses = [("pod-1", "10.1.0.1"), ("pod-2", "10.1.0.2")];
    for (name, address) in addresses {
        pod(&bed, name, address).await;
    }
    let redis = crate::redis::RedisServer::start(&[]);
    bed.backend("routes", &redis, "");
    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let slices: Api<EndpointSlice> = Api::namespaced(bed.client.clone(), &bed.namespace);
    for backend in ["lease", "routes"] {
        let name = format!("boss-{backend}");
        let service = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
             spec: {{clusterIP: None, ports: [{{port: 80}}]}}}}"
        );
        bed.kubectl(&["apply", "-f", "-"], &service).unwrap();
        let spec = format!(
            "{{backend: {backend}, leaseDurationSeconds: 30, retryPeriodSeconds: 8, \
             leaderLabel: {{name: {name}}}, service: {{name: {name}}}}}"
        );
        bed.kubectl(&["apply", "-f", "-"], &object("LeaderElection", &name, &spec)).unwrap();
        until(&bed, &name, is_ready).await;
        let (config, at) = bed.term(&name).await;
        let locks: Arc<dyn LockBackend> = match backend {
            "lease" => bed.leases().await,
            redis => bed.redis(redis).await,
        };
        for (leader, address) in [addresses[0], addresses[1], addresses[0]] {
            let (hold, _) = acquire_soon(&*locks, &at, &config, leader).await;
            let begun = Instant::now();
            eventually("the route", async || {
                let slice = slices.get_opt(&format!("holdfast-{name}")).await.unwrap();
                let of = slice.map(|slice| slice.endpoints).unwrap_or_default();
                of.len() == 1 && of[0].addresses == [address]
            })
            .await;
            let marked = pods.get(leader).await.unwrap().labels().get(&name).cloned();
            assert_eq!(marked.as_deref(), Some("true"));
            assert!(begun.elapsed() < Duration::from_secs(8), "{name}: {:?}", begun.elapsed());
            locks.release(&at, &config, &hold).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_shared_is_left_alone_by_the_policy_and_another_is_not() {
    let bed = Bed::shared().await;
    for (name, spec) in [("ours", "{}"), ("both", "{interop: ClientGo}")] {
        bed.kubectl(&["apply", "-f", "-"], &object("LeaderElection", name, spec)).unwrap();
        until(&bed, name, is_ready).await;
    }
    // As client-go writes: a holder, and no fence. For so long that it is shown before it runs out.
    let take = |name: &str| {
        let patch = r#"{"spec":{"holderIdentity":"go_1","leaseDurationSeconds":10}}"#;
        let lease = format!("lease/holdfast-leaderelection-{name}");
        bed.kubectl(&["patch", &lease, "--type=merge", "-p", patch], "")
    };
    assert!(take("ours").is_err(), "the policy refuses a holder without a fence");
    take("both").unwrap();
    let election = until(&bed, "both", |election| leader(election) == Some("go")).await;
    let guarantee = election.status.unwrap().guarantee;
    assert_eq!(guarantee.as_deref(), Some("Consensus (shared with client-go)"));
    // The label that makes it so cannot be put on another.
    let label = ["label", "lease/holdfast-leaderelection-ours", "holdfast.dev/interop=ClientGo"];
    let refusal = bed.kubectl(&label, "").expect_err("labelled");
    assert!(refusal.contains("cannot be put on"), "{refusal}");
    // Ours waits its full duration, and then takes over with a fence.
    let (locks, (config, at)) = (bed.leases().await, bed.term("both").await);
    assert!(acquire(&*locks, &at, &config, "pod-1").await.is_none());
    acquire_soon(&*locks, &at, &config, "pod-1").await;
}

/// A candidate that uses client-go's own leader election, in a process of its own.
struct GoCandidate {
    child: Child,
    lines: mpsc::Receiver<(String, u128)>,
}

impl GoCandidate {
    fn start(bed: &Bed<'_>, id: &str) -> Self {
        let mut child = Command::new(cluster_box())
            .args(["candidate", "--namespace", &bed.namespace, "--id", id, "--duration", "6s"])
            .args(["--lease", "holdfast-leaderelection-both", "--kubeconfig"])
            .arg(bed.plane.server.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let (what, at) = line.split_once(' ').unwrap();
                drop(told.send((what.to_owned(), at.parse().unwrap())));
            }
        });
        GoCandidate { child, lines }
    }

    /// When it says this next.
    fn until(&self, what: &str) -> u128 {
        loop {
            let (said, at) = self.lines.recv_timeout(Duration::from_secs(20)).expect(what);
            if said == what {
                return at;
            }
        }
    }

    fn is_silent(&self) -> bool {
        self.lines.try_recv().is_err()
    }

    /// Resigns in good order.
    fn stop(mut self) -> u128 {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
        self.until("stopped")
    }
}

impl Drop for GoCandidate {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

/// Real client-go and ours on one Lease: they take turns, and never lead together.
#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_of_client_go_and_ours_never_lead_together() {
    let bed = Bed::shared().await;
    let spec = "{interop: ClientGo, leaseDurationSeconds: 6, retryPeriodSeconds: 1}";
    bed.kubectl(&["apply", "-f", "-"], &object("LeaderElection", "both", spec)).unwrap();
    until(&bed, "both", is_ready).await;
    let (locks, (config, at)) = (bed.leases().await, bed.term("both").await);

    // client-go leads: ours gets nothing, however often it asks, until client-go has resigned.
    let go = GoCandidate::start(&bed, "go-1");
    go.until("leading");
    until(&bed, "both", |election| leader(election) == Some("go-1")).await;
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(8) {
        assert!(acquire(&*locks, &at, &config, "pod-1").await.is_none(), "two leaders");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(go.is_silent(), "it was disturbed");
    let resigned = go.stop();
    let (hold, first) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    assert!(now() > resigned);

    // Ours leads and renews: client-go gets nothing until ours has released.
    let go = GoCandidate::start(&bed, "go-2");
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(10) {
        // One that was not answered in time is done again.
        let renewed = locks.renew(&at, &config, &hold, Duration::from_secs(6)).await;
        assert!(!matches!(renewed, Ok(Renewal::Lost)), "{renewed:?}");
        assert!(go.is_silent(), "two leaders");
        sleep(Duration::from_millis(400)).await;
    }
    let released = now();
    locks.release(&at, &config, &hold).await.unwrap();
    assert!(go.until("leading") > released);

    // client-go dies without a word: ours takes over after a full, unchanged duration.
    let died = Instant::now();
    drop(go);
    let (_, second) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    assert!(died.elapsed() > Duration::from_secs(5), "{:?}", died.elapsed());
    assert!(second > first, "terms grow over the tenures of others");
}

/// A pod with a sidecar, as far as its metadata says, that is ready.
async fn candidate(bed: &Bed<'_>, name: &str, priority: Option<i64>) {
    let priority = priority.map_or(String::new(), |n| format!(", holdfast.dev/priority: '{n}'"));
    let yaml = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: \
         {{holdfast.dev/injected: 'true'}}, annotations: {{holdfast.dev/candidate: boss{priority}}}}}, \
         spec: {{automountServiceAccountToken: false, containers: [{{name: app, image: none}}]}}}}"
    );
    bed.kubectl(&["create", "serviceaccount", "default"], "").ok();
    bed.kubectl(&["apply", "-f", "-"], &yaml).unwrap();
    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
}

fn asked(election: &LeaderElection) -> Option<&str> {
    election.annotations().get("holdfast.dev/transfer-to").map(String::as_str)
}

/// The pod that the bundle says is to lead.
async fn heir(bed: &Bed<'_>) -> Option<String> {
    let bundle = bed.bundle().await?;
    let class = bundle.class(holdfast_core::Kind::LeaderElection, "boss")?;
    let holdfast_api::bundle::ClassConfig::LeaderElection(config) = &class.config else {
        return None;
    };
    config.transfer_to.as_ref().map(ToString::to_string)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_is_told_to_sidecars_and_ends_when_it_has_come_true_or_cannot() {
    let bed = Bed::shared().await;
    candidate(&bed, "pod-1", None).await;
    candidate(&bed, "pod-2", None).await;
    let spec = "{leaseDurationSeconds: 60}";
    bed.kubectl(&["apply", "-f", "-"], &object("LeaderElection", "boss", spec)).unwrap();
    until(&bed, "boss", is_ready).await;
    let (locks, (config, at)) = (bed.leases().await, bed.term("boss").await);
    let (hold, _) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    until(&bed, "boss", |election| leader(election) == Some("pod-1")).await;
    let transfer = |to: &str| {
        let to = format!("holdfast.dev/transfer-to={to}");
        bed.kubectl(&["annotate", "--overwrite", "le/boss", &to], "").unwrap();
    };
    transfer("pod-2");
    eventually("the bundle names it", async || heir(&bed).await.as_deref() == Some("pod-2")).await;
    locks.release(&at, &config, &hold).await.unwrap();
    acquire_soon(&*locks, &at, &config, "pod-2").await;
    until(&bed, "boss", |e| leader(e) == Some("pod-2") && asked(e).is_none()).await;
    eventually("the bundle names nobody", async || heir(&bed).await.is_none()).await;

    for (to, why) in [("nobody", "there is no pod"), ("No-Name", "no pod's name")] {
        transfer(to);
        until(&bed, "boss", |election| asked(election).is_none()).await;
        eventually("the refusal", async || {
            let notes = bed.events("boss", "TransferRefused").await;
            notes.iter().any(|note| note.contains(why))
        })
        .await;
        until(&bed, "boss", is_ready).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_candidate_of_a_higher_priority_is_to_lead() {
    let bed = Bed::shared().await;
    candidate(&bed, "pod-low", Some(-5)).await;
    candidate(&bed, "pod-none", None).await;
    let spec = "{leaseDurationSeconds: 60}";
    bed.kubectl(&["apply", "-f", "-"], &object("LeaderElection", "boss", spec)).unwrap();
    until(&bed, "boss", is_ready).await;
    let (locks, (config, at)) = (bed.leases().await, bed.term("boss").await);
    let (hold, _) = acquire_soon(&*locks, &at, &config, "pod-none").await;
    until(&bed, "boss", |election| leader(election) == Some("pod-none")).await;
    assert_eq!(asked(&until(&bed, "boss", is_ready).await), None, "a lower one is not preferred");

    candidate(&bed, "pod-high", Some(10)).await;
    until(&bed, "boss", |election| asked(election) == Some("pod-high")).await;
    eventually("the Event", async || {
        let notes = bed.events("boss", "TransferRequested").await;
        notes.iter().any(|note| note.contains("priority 10") && note.contains("\"pod-none\" has 0"))
    })
    .await;
    locks.release(&at, &config, &hold).await.unwrap();
    acquire_soon(&*locks, &at, &config, "pod-high").await;
    until(&bed, "boss", |e| leader(e) == Some("pod-high") && asked(e).is_none()).await;
}
