//! The routes without a socket; TLS is tested with the certificates.

use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use prometheus::Registry;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;

async fn post(path: &str, body: impl Into<Body>) -> (StatusCode, String) {
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let request =
        Request::post(path).header("content-type", "application/json").body(body.into()).unwrap();
    let router = router(Arc::new(InjectSettings::default()), metrics);
    let response = router.oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

fn mk_review(namespace: &str, labels: Value, spec: Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace, "operation": "CREATE", "userInfo": {"username": "a"},
            "object": {
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"generateName": "web-", "labels": labels}, "spec": spec
            },
            "oldObject": null, "dryRun": false
        }
    })
}

async fn respond(path: &str, review: &Value) -> Value {
    let (status, body) = post(path, review.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    answer["response"].clone()
}

#[tokio::test]
async fn review_is_answered_by_path() {
    let spec = json!({"containers": [{"name": "web", "image": "web:1"}]});
    let asked = mk_review("shop", json!({"holdfast.dev/inject": "true"}), spec.clone());
    let silent = mk_review("shop", json!({"app": "web"}), spec.clone());
    assert!(respond(POD_PATH, &asked).await["patch"].is_array());
    assert!(respond(NAMESPACE_PATH, &silent).await["patch"].is_array());
    let left_alone = respond(POD_PATH, &silent).await;
    assert_eq!(left_alone["allowed"], true);
    assert_eq!(left_alone["patch"], Value::Null);

    let wrong = mk_review("shop", json!({"holdfast.dev/inject": "on"}), spec);
    let denied = respond(POD_PATH, &wrong).await;
    assert_eq!(denied["allowed"], false);
    assert!(denied["status"]["message"].as_str().unwrap().contains("not \"on\""), "{denied}");

    let host = json!({"hostNetwork": true, "containers": [{"name": "web", "image": "web:1"}]});
    let skipped =
        respond(POD_PATH, &mk_review("shop", json!({"holdfast.dev/inject": "true"}), host)).await;
    assert_eq!(skipped["allowed"], true);
    assert!(skipped["warnings"][0].as_str().unwrap().contains("host's network"), "{skipped}");
}

#[tokio::test]
async fn bad_bodies_are_refused_with_a_reason() {
    let (status, text) = post(POD_PATH, "{").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
    let (status, text) = post(POD_PATH, vec![b' '; MAX_BODY_BYTES + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{text}");
    let deep = "[".repeat(200_000);
    let (status, text) = post(POD_PATH, deep).await;
    assert!(status.is_client_error(), "{status} {text}");
    let (status, text) = post("/other", "{}").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{text}");
    let empty = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"});
    let (status, text) = post(POD_PATH, empty.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("\"allowed\":false"), "{text}");
}
