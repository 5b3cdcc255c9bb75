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
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: windows}
spec:
  backend: main
  limits: [{name: w, algorithm: FixedWindow, limit: 2, windowSeconds: 3}]
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: sliding}
spec:
  backend: main
  limits: [{name: w, algorithm: SlidingWindow, limit: 2, windowSeconds: 3}]
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: slow}
spec:
  backend: main
  limits: [{name: l, limit: 1, windowSeconds: 3, burst: 1}]
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: leased}
spec:
  backend: main
  accuracy: Leased
  leased: {batch: 10, maxStalenessSeconds: 30}
  limits: [{name: l, algorithm: FixedWindow, limit: 50, windowSeconds: 2678400}]
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
    // One token of the two is there, the other one 20 s after the first check.
    let after: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((10..=20).contains(&after), "{after} s");
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
    let (begun, mut waited) = (tokio::time::Instant::now(), 0);
    for _ in 0..10 {
        let answer = app.post("/v1/ratelimits/fast/check?waitSeconds=5").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        waited += answer.body["waitedMs"].as_u64().unwrap();
    }
    assert!(waited > 0);
    // Ten a second, one at a time: nine tenths of a second at the least, however slow this goes.
    assert!(begun.elapsed().as_millis() >= 850, "{:?}", begun.elapsed());
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

/// Windows have no slots to give; who waits is let in when one begins.
#[tokio::test]
async fn a_check_waits_for_a_window_too() {
    let app = start_with(CLASSES).await;
    for class in ["windows", "sliding"] {
        let path = format!("/v1/ratelimits/{class}/check?waitSeconds=20");
        let (begun, mut waited) = (tokio::time::Instant::now(), 0);
        for _ in 0..5 {
            let answer = app.post(&path).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            waited += answer.body["waitedMs"].as_u64().unwrap();
        }
        // Five at two in three seconds: at least one window has gone by, however slow this goes.
        let took = begun.elapsed();
        assert!(waited > 0 && took.as_millis() >= 2_500, "{class}: {waited} ms of {took:?}");
        let path = format!("/v1/ratelimits/{class}/check?cost=2&waitSeconds=0.001");
        let hurried = app.post(&path);
        hurried.await.is_problem(429, "quota_exceeded");
    }
}

#[tokio::test]
async fn a_check_waits_for_a_permit_and_gets_it_when_it_is_released() {
    let app = start_with(CLASSES).await;
    let first = app.post("/v1/ratelimits/exports/check").await;
    let permit = first.body["permit"].as_str().unwrap();
    let waits = app.post("/v1/ratelimits/exports/check?waitSeconds=20");
    let release = async {
        let class = app.serving.sidecar.snapshot.load().rate_limit("exports").unwrap().clone();
        while class.metrics.waiting.get() == 0 {
            tokio::task::yield_now().await;
        }
        app.post(&format!("/v1/ratelimits/exports/release?permit={permit}")).await
    };
    let (waited, _) = tokio::join!(waits, release);
    assert_eq!(waited.status, 200, "{waited:?}");
    assert_ne!(waited.body["permit"], first.body["permit"]);
}

/// One more than may wait is answered at once, and those who wait give their slots back at the end.
#[tokio::test]
async fn no_more_checks_wait_than_may() {
    let app = start_with(CLASSES).await;
    let class = app.serving.sidecar.snapshot.load().rate_limit("slow").unwrap().clone();
    app.post("/v1/ratelimits/slow/check").await;
    class.metrics.waiting.set(holdfast_sidecar::service::MAX_WAITING_PER_CLASS);
    let crowded = app.post("/v1/ratelimits/slow/check?waitSeconds=30").await;
    crowded.is_problem(429, "quota_exceeded");
    assert!(crowded.body["detail"].as_str().unwrap().contains("did not wait"), "{crowded:?}");
    class.metrics.waiting.set(0);
    assert_eq!(app.post("/v1/ratelimits/slow/check?waitSeconds=30").await.status, 200);
    assert_eq!(class.metrics.waiting.get(), 0, "a place is left");
}

#[tokio::test]
async fn a_leased_class_says_its_bound_and_puts_back_at_the_end() {
    let app = start_with(CLASSES).await;
    for left in (0..50).rev() {
        let answer = app.post("/v1/ratelimits/leased/check").await;
        assert_eq!(answer.status, 200, "{left} left: {answer:?}");
        assert_eq!(answer.body["remaining"], left);
    }
    app.post("/v1/ratelimits/leased/check").await.is_problem(429, "quota_exceeded");
    app.post("/v1/ratelimits/leased/check?cost=51").await.is_problem(422, "cost_too_large");
    let view = app.get("/v1/ratelimits/leased").await;
    let bound = serde_json::json!({"perSidecar": 10, "atMost": 50});
    assert_eq!(view.body["overAdmission"], bound);
    assert!(app.get("/v1/ratelimits/api").await.body["overAdmission"].is_null());
    for _ in 0..5 {
        app.post("/v1/ratelimits/leased/check?key=other").await;
    }
    let client = app.serving.sidecar.snapshot.load().rate_limit("leased").unwrap().client.clone();
    assert!(client.in_hand() > 0);
    app.serving.close(false).await;
    assert_eq!(client.in_hand(), 0);
}
