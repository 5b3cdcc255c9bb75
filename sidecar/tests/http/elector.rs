//! `GET /` as leader-elector answers it.

use std::time::Duration;

use holdfast_core::{Holder, Substrate};
use holdfast_sidecar::{Compat, Local};

use crate::{
    client::{App, mk_bundle, mk_bundle_on},
    server::RedisServer,
};

const CLASSES: &str = r#"
apiVersion: holdfast.dev/v1alpha1
kind: LeaderElection
metadata: {name: boss}
spec: {backend: main, leaseDurationSeconds: 15, retryPeriodSeconds: 1}
---
apiVersion: holdfast.dev/v1alpha1
kind: LeaderElection
metadata: {name: deputy}
spec: {backend: main}
"#;

#[tokio::test]
async fn the_root_names_the_leader_of_the_pods_one_election() {
    let local = Local {
        namespace: "default".into(),
        holder: Holder::new("pod-a").unwrap(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        page: true,
    };
    let (mut serving, _) = local.start(&mk_bundle(CLASSES), None).await.unwrap();
    let wanted: Compat = "elector=127.0.0.1:0".parse().unwrap();
    let at = serving.compat(&wanted).await.unwrap().elector.unwrap();
    let holdfast_sidecar::Listen::Tcp(native) = serving.listens[0].clone() else { unreachable!() };
    let app = App { serving, address: at };
    app.get("/").await.is_problem(404, "not_found");
    assert_eq!(app.get("/boss").await.body, serde_json::json!({"name": ""}));
    let app = App { address: native, ..app };
    assert_eq!(app.post("/v1/elections/boss/campaign?waitSeconds=5").await.status, 200);
    let app = App { address: at, ..app };
    assert_eq!(app.get("/").await.body, serde_json::json!({"name": "pod-a"}));
    app.get("/bos").await.is_problem(404, "class_not_found");
    let app = App { address: native, ..app };
    app.post("/v1/elections/deputy/campaign").await;
    let app = App { address: at, ..app };
    let both = app.get("/").await;
    both.is_problem(404, "not_found");
    assert!(both.body["detail"].as_str().unwrap().contains("boss, deputy"), "{both:?}");
}

#[tokio::test]
async fn a_pod_that_stands_by_names_the_one_that_leads() {
    let server = RedisServer::start(&[]);
    let url = format!("redis://{}", server.address());
    let bundle = mk_bundle_on("redis", Substrate::Redis, CLASSES);
    let (mut pods, mut epochs) = (Vec::new(), Vec::new());
    for name in ["pod-a", "pod-b"] {
        let local = Local {
            namespace: "default".into(),
            holder: Holder::new(name).unwrap(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            page: false,
        };
        let (mut serving, epoch) = local.start(&bundle, Some(("redis", &url))).await.unwrap();
        epochs.push(epoch.unwrap());
        assert!(epochs.last().unwrap().opened(Duration::from_secs(30)).await);
        let wanted: Compat = "elector=127.0.0.1:0".parse().unwrap();
        let address = serving.compat(&wanted).await.unwrap().elector.unwrap();
        // The first is to lead before the second one asks.
        let wait = if pods.is_empty() { 20.0 } else { 0.5 };
        let boss = holdfast_wire::CampaignRequest { wait_seconds: Some(wait) };
        serving.sidecar.campaign("boss", &boss).await.unwrap();
        pods.push(App { serving, address });
    }
    for pod in &pods {
        assert_eq!(pod.get("/").await.body, serde_json::json!({"name": "pod-a"}));
    }
    // Its term is released, and the other leads; what was answered is forgotten in a second.
    let first = pods.remove(0);
    first.serving.close(true).await;
    let mut tries = 0;
    while pods[0].get("/").await.body != serde_json::json!({"name": "pod-b"}) {
        tries += 1;
        assert!(tries < 600, "nobody else leads");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
