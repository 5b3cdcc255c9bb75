//! Check, peek, refund, release: rate limits over HTTP.

use crate::client::start_with;

const CLASSES: &str = r#"
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: api}
spec:
  backend: main
  limits:
  - {name: bucket, algorithm: TokenBucket, limit: 3, windowSeconds: 60, burst: 5}
  - {name: fixed, algorithm: FixedWindow, limit: 100, windowSeconds: 3600}
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: fast}
spec:
  backend: main
  limits: [{name: l, limit: 10, windowSeconds: 1, burst: 1}]
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: shadowed}
spec:
  backend: main
  shadow: true
  limits: [{name: l, limit: 1, windowSeconds: 3600}]
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: exports}
spec:
  backend: main
  limits: [{name: running, algorithm: Concurrency, limit: 1, windowSeconds: 600}]
"#;

#[tokio::test]
async fn a_check_passes_until_the_limit_and_says_when_to_come_back() {
    let app = start_with(CLASSES).await;
    let first = app.post("/v1/ratelimits/api/check?cost=4").await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.body["remaining"], 1);
    assert_eq!(first.headers["ratelimit-policy"], r#""bucket";q=3;w=60, "fixed";q=100;w=3600"#);
    assert!(first.headers["ratelimit"].to_str().unwrap().starts_with(r#""bucket";r=1;t=80, "#));
    let refused = app.post_json("/v1/ratelimits/api/check", r#"{"cost":2}"#).await;
    refused.is_problem(429, "quota_exceeded");
    assert_eq!(refused.body["violated-policies"], serde_json::json!(["bucket"]));
    assert_eq!(refused.headers["retry-after"], "20");
    app.post("/v1/ratelimits/api/check?cost=6").await.is_problem(422, "cost_too_large");
    app.post("/v1/ratelimits/api/check?cost=0").await.is_problem(422, "invalid_field");
    app.post("/v1/ratelimits/apu/check").await.is_problem(404, "class_not_found");
    let other = app.post("/v1/ratelimits/api/check?key=other&cost=5").await;
    assert_eq!(other.status, 200, "a key has counts of its own");
}

#[tokio::test]
async fn a_peek_charges_nothing_and_a_refund_gives_back() {
    let app = start_with(CLASSES).await;
    app.post("/v1/ratelimits/api/check?cost=5").await;
    for _ in 0..2 {
        let peek = app.get("/v1/ratelimits/api").await;
        assert_eq!((peek.status, &peek.body["allowed"]), (200, &false.into()));
    }
    assert_eq!(app.post("/v1/ratelimits/api/refund?cost=2").await.status, 200);
    assert_eq!(app.get("/v1/ratelimits/api").await.body["remaining"], 2);
}

#[tokio::test]
async fn a_shadow_lets_pass_and_says_what_it_would_have_done() {
    let app = start_with(CLASSES).await;
    app.post("/v1/ratelimits/shadowed/check").await;
    let second = app.post("/v1/ratelimits/shadowed/check").await;
    assert_eq!((second.status, &second.body["wouldBeLimited"]), (200, &true.into()));
}

#[tokio::test]
async fn a_check_that_waits_gets_the_next_slot() {
    let app = start_with(CLASSES).await;
    app.post("/v1/ratelimits/fast/check").await;
    let begun = tokio::time::Instant::now();
    let waited = app.post("/v1/ratelimits/fast/check?waitSeconds=5").await;
    assert_eq!(waited.status, 200, "{waited:?}");
    assert!(waited.body["waitedMs"].as_u64().unwrap() > 0);
    assert!(begun.elapsed().as_millis() >= 50, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_permit_is_held_until_it_is_released() {
    let app = start_with(CLASSES).await;
    let first = app.post("/v1/ratelimits/exports/check").await;
    let permit = first.body["permit"].as_str().unwrap();
    app.post("/v1/ratelimits/exports/check").await.is_problem(429, "quota_exceeded");
    let path = format!("/v1/ratelimits/exports/release?permit={permit}");
    assert_eq!(app.post(&path).await.body["released"], true);
    assert_eq!(app.post(&path).await.body["released"], false);
    assert_eq!(app.post("/v1/ratelimits/exports/check").await.status, 200);
}
