//! What pods cost a real API server: a hundred idle ones a watch each, candidates one writer.

use std::{sync::Arc, time::Duration};

use holdfast_api::bundle::{BUNDLE_CONFIG_MAP, BUNDLE_KEY, Bundle, BundleBackend};
use holdfast_backend::lease::{LeaseClient, names};
use holdfast_core::{ClassName, Key, Kind, SessionId, Substrate, SystemClock};
use holdfast_runtime::Readiness;
use holdfast_sidecar::{Serving, config::Bundles, connect::Backends, snapshot::Connect};
use holdfast_wire::ResignRequest;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    apiserver::ApiServer,
    client::{CLASSES, mk_bundle, mk_bundle_on, mk_bundle_with},
    lifecycle::mk_identity,
};

const PODS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_pod_costs_one_watch_and_no_request() {
    // One of its own: it counts for all namespaces, and other tests read ConfigMaps, too.
    let server = &ApiServer::start();
    let config = server.config("admin", server.port()).await;
    let maps: Api<ConfigMap> =
        Api::namespaced(Client::try_from(config.clone()).unwrap(), "default");
    let bundle = mk_bundle(CLASSES);
    let text = serde_json::to_string(&bundle).unwrap();
    let map = json!({"metadata": {"name": BUNDLE_CONFIG_MAP}, "data": {BUNDLE_KEY: text}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    let watches = || server.watches("configmaps");
    let requests = || server.metric("apiserver_request_total", &["resource=\"configmaps\""]);
    let (watches_before, requests_before) = (watches(), requests());

    let stop = CancellationToken::new();
    let mut pods = Vec::new();
    for _ in 0..PODS {
        let identity = mk_identity(SessionId::random());
        let session = identity.session.clone();
        let serving = Serving::start(identity, &[], false).await.unwrap();
        let (hub, clock) = (serving.hub.clone(), Arc::new(SystemClock));
        let backends = Backends::new("default".into(), session, hub, clock, None, None);
        let connect: Arc<dyn Connect> = Arc::new(backends);
        let bundles = Bundles::new(serving.sidecar.clone(), connect, Readiness::default(), None);
        let client = Client::try_from(config.clone()).unwrap();
        tokio::spawn(bundles.watch(client, stop.clone()));
        pods.push(serving);
    }
    let all_have = async |hash: &str| {
        for _ in 0..600 {
            if pods.iter().all(|pod| pod.sidecar.snapshot.load().hash == hash) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("not every pod has taken the bundle {hash}");
    };
    all_have(&bundle.hash).await;
    // Each has read it before it watches.
    for _ in 0..300 {
        if watches().saturating_sub(watches_before) >= PODS as u64 {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(watches() - watches_before, PODS as u64);
    assert_eq!(requests() - requests_before, PODS as u64, "one read each");

    // Nothing changes, nothing is asked.
    let quiet = requests();
    sleep(Duration::from_secs(8)).await;
    assert_eq!(requests(), quiet);

    // One write reaches all of them, by the watches they have.
    let more = format!(
        "{CLASSES}---\n{{apiVersion: holdfast.dev/v1alpha1, kind: Lock, metadata: {{name: more}}, spec: {{}}}}"
    );
    let next = mk_bundle(&more);
    let patch = json!({"data": {BUNDLE_KEY: serde_json::to_string(&next).unwrap()}});
    maps.patch(BUNDLE_CONFIG_MAP, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    all_have(&next.hash).await;
    assert_eq!(requests() - quiet, 1, "the write itself");
    stop.cancel();
}

const LEASE: &str = "holdfast-leaderelection-quiet";

/// A pod that stands in elections.
async fn candidate(config: &Config, bundle: &Bundle, classes: &[ClassName]) -> Serving {
    let identity = mk_identity(SessionId::random());
    let session = identity.session.clone();
    let serving = Serving::start(identity, &[], false).await.unwrap();
    let (hub, clock) = (serving.hub.clone(), Arc::new(SystemClock));
    let client = Some(LeaseClient::new(config).unwrap());
    let backends = Backends::new("default".into(), session, hub, clock, client, None);
    let connect: Arc<dyn Connect> = Arc::new(backends);
    Bundles::new(serving.sidecar.clone(), connect, Readiness::default(), None).apply(bundle);
    for class in classes {
        serving.sidecar.elections.campaign(&serving.sidecar, class);
    }
    serving
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_writes_its_renewals_and_standbys_ask_for_nothing() {
    let server = ApiServer::shared();
    let config = server.config("admin", server.port()).await;
    let election = "{apiVersion: holdfast.dev/v1alpha1, kind: LeaderElection, \
                    metadata: {name: quiet}, spec: {}}";
    let bundle = mk_bundle_on("lease", Substrate::Lease, election);
    let class = ClassName::new("quiet").unwrap();
    let lease = names::unheld("default", Kind::LeaderElection, &class, &Key::default_key());
    let leases: Api<Lease> = Api::namespaced(Client::try_from(config.clone()).unwrap(), "default");
    leases.create(&PostParams::default(), &lease).await.unwrap();

    let mut pods = Vec::new();
    for _ in 0..3 {
        let serving = candidate(&config, &bundle, std::slice::from_ref(&class)).await;
        pods.push(serving);
    }
    let leaders = || pods.iter().filter(|pod| pod.sidecar.leading("quiet").is_ok()).count();
    for _ in 0..600 {
        if leaders() == 1 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(leaders(), 1);
    // What settles after the race for the first term is not what an hour costs.
    sleep(Duration::from_secs(2)).await;
    let before = server.requests(LEASE).len();
    sleep(Duration::from_secs(32)).await;
    let asked = server.requests(LEASE).split_off(before);
    assert!(asked.iter().all(|request| request == "patch 200"), "only renewals: {asked:?}");
    // A third of 15 s apart, give or take: 12 a minute; client-go's defaults make 68.
    assert!((5..=8).contains(&asked.len()), "{asked:?}");
    assert_eq!(leaders(), 1);

    // Standbys are told by their watch when a leader resigns: they lead as soon as they have written.
    let mut took = Vec::new();
    for _ in 0..3 {
        let leads = |pod: &&Serving| pod.sidecar.leading("quiet").is_ok();
        let leader = pods.iter().find(leads).unwrap();
        let begun = Instant::now();
        leader.sidecar.resign("quiet", &ResignRequest::default()).await.unwrap();
        while leaders() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "nobody leads");
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((leaders(), leads(&leader)), (1, false));
        took.push(begun.elapsed());
    }
    took.sort();
    // Without their watches they would wait for the end of a record of 15 s.
    assert!(took[1] < Duration::from_secs(2), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_in_several_elections_follows_them_by_one_watch_where_that_is_allowed() {
    // One of its own: its metrics count the watches of all.
    let server = &ApiServer::start();
    let config = server.config("admin", server.port()).await;
    let leases: Api<Lease> = Api::namespaced(Client::try_from(config.clone()).unwrap(), "default");
    let (mut yaml, mut classes) = (String::new(), Vec::new());
    for name in ["red", "green", "blue"] {
        yaml += &format!(
            "---\n{{apiVersion: holdfast.dev/v1alpha1, kind: LeaderElection, \
             metadata: {{name: {name}}}, spec: {{}}}}\n"
        );
        let class = ClassName::new(name).unwrap();
        let lease = names::unheld("default", Kind::LeaderElection, &class, &Key::default_key());
        leases.create(&PostParams::default(), &lease).await.unwrap();
        classes.push(class);
    }
    let shared = BundleBackend { share_watch: true, ..BundleBackend::of(Substrate::Lease) };
    let bundle = mk_bundle_with("lease", shared, &yaml);
    let watches = || server.watches("leases");
    let before = watches();
    // The first leads in all, the second stands by in all.
    let mut pods = Vec::new();
    for _ in 0..2 {
        let serving = candidate(&config, &bundle, &classes).await;
        let is_settled = || match pods.is_empty() {
            true => classes.iter().all(|class| serving.sidecar.leading(class.as_str()).is_ok()),
            false => watches().saturating_sub(before) == 1,
        };
        let begun = Instant::now();
        while !is_settled() {
            assert!(begun.elapsed() < Duration::from_secs(30), "nobody leads, or none follows");
            sleep(Duration::from_millis(50)).await;
        }
        pods.push(serving);
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(watches().saturating_sub(before), 1, "of the one that stands by, in three");

    // Each is told by it of its own.
    for class in &classes {
        let begun = Instant::now();
        // It stands back for so long that the other one leads on a slow machine, too.
        let resign = ResignRequest { pause_seconds: Some(60.0), ..ResignRequest::default() };
        pods[0].sidecar.resign(class.as_str(), &resign).await.unwrap();
        while pods[1].sidecar.leading(class.as_str()).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(8), "{class} has no leader");
            sleep(Duration::from_millis(5)).await;
        }
    }
}
