//! `GET /` as leader-elector answers it.

use holdfast_core::Holder;
use holdfast_sidecar::{Compat, Local};

use crate::client::{App, mk_bundle};

const CLASSES: &str = r#"
apiVersion: holdfast.dev/v1alpha1
kind: LeaderElection
metadata: {name: boss}
spec: {backend: main, leaseDurationSeconds: 2, retryPeriodSeconds: 1}
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
