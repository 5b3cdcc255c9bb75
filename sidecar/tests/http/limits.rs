//! Bad input gets a clear error and changes nothing.

use hyper::Method;

use crate::client::{start, start_with};

#[tokio::test]
async fn what_cannot_be_is_refused_with_a_sentence() {
    let app = start().await;
    let cases = [
        ("/v1/locks/jbo/acquire", 404, "class_not_found", "did you mean \"job\"?"),
        ("/v1/locks/job/aquire", 404, "not_found", "GET /v1"),
        ("/v1/locks/job/acquire?waitSecond=1", 422, "invalid_field", "waitSecond"),
        ("/v1/locks/job/acquire?waitSeconds=61", 422, "invalid_field", "from 0 to 60"),
        ("/v1/locks/job/acquire?waitSeconds=NaN", 422, "invalid_field", "waitSeconds"),
        ("/v1/locks/job/acquire?waitSeconds=-1", 422, "invalid_field", "waitSeconds"),
        ("/v1/locks/job/acquire?ttlSeconds=5", 422, "invalid_field", "ttlSeconds"),
        ("/v1/locks/job/acquire?ttlSeconds=0.01", 422, "invalid_field", "ttlSeconds"),
        ("/v1/locks/job/acquire?key=", 422, "invalid_field", "key"),
        ("/v1/locks/job/acquire?requestId=", 422, "invalid_field", "requestId"),
        ("/v1/locks/job/acquire?renew=maybe", 422, "invalid_field", "renew"),
        ("/v1/locks/job/acquire?bind=container", 422, "invalid_field", "container"),
        ("/v1/locks/job/acquire?renew=manual&bind=stream", 422, "invalid_field", "bind"),
        ("/v1/locks/job/acquire?heartbeatSeconds=1", 422, "invalid_field", "heartbeat"),
        ("/v1/locks/job/renew", 422, "invalid_field", "holdId"),
        ("/v1/locks/job/release?holdId=a%20b", 422, "invalid_field", "holdId"),
        // The request is read before the class is looked for, in every call with a hold.
        ("/v1/locks/jbo/release", 422, "invalid_field", "holdId"),
        ("/v1/locks/jbo/renew", 422, "invalid_field", "holdId"),
    ];
    for (path, status, code, hint) in cases {
        let answer = app.post(path).await;
        answer.is_problem(status, code);
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains(hint), "{path}: {detail}");
    }
    assert_eq!(app.get("/v1/status").await.body["locks"].as_array().unwrap().len(), 0);
    app.get("/v1/locks/job/acquire").await.is_problem(405, "method_not_allowed");
}

#[tokio::test]
async fn a_key_has_at_most_512_bytes() {
    let app = start().await;
    let long = "k".repeat(513);
    app.post(&format!("/v1/locks/job/acquire?key={long}")).await.is_problem(422, "invalid_field");
    let fits = "k".repeat(512);
    assert_eq!(app.post(&format!("/v1/locks/job/acquire?key={fits}")).await.status, 200);
}

#[tokio::test]
async fn bodies_are_small_json_and_do_not_contradict_the_query() {
    let app = start().await;
    let path = "/v1/locks/job/acquire";
    let large = format!(r#"{{"key":"{}"}}"#, "k".repeat(70_000));
    app.post_json(path, &large).await.is_problem(413, "too_large");
    app.post_json(path, "{").await.is_problem(400, "bad_request");
    app.post_json(path, r#"{"kee":"a"}"#).await.is_problem(422, "invalid_field");
    app.post_json(&format!("{path}?key=a"), r#"{"key":"b"}"#)
        .await
        .is_problem(422, "invalid_field");
    let text = app.send(Method::POST, path, &[("content-type", "text/plain")], "{}").await;
    text.is_problem(415, "not_json");
    let both = app.post_json(&format!("{path}?key=a"), r#"{"ttlSeconds":0.5}"#).await;
    assert_eq!((both.status, &both.body["ttlMs"]), (200, &500.into()), "{both:?}");
}

#[tokio::test]
async fn web_pages_and_foreign_hosts_are_refused() {
    let app = start().await;
    let page = app.send(Method::GET, "/v1", &[("origin", "http://evil.example")], "").await;
    page.is_problem(403, "forbidden");
    let rebound = app.send(Method::GET, "/v1", &[("host", "evil.example")], "").await;
    rebound.is_problem(421, "misdirected");
}

#[tokio::test]
async fn a_full_queue_refuses_the_next_waiter() {
    let app = start().await;
    app.hold("slow", "").await;
    let waiting = "/v1/locks/slow/acquire?waitSeconds=8";
    let full = async {
        while app.get("/v1/locks/slow").await.body["waiters"] != 2 {}
        app.post(waiting).await
    };
    let (_, _, full) = tokio::join!(app.post(waiting), app.post(waiting), full);
    full.is_problem(429, "queue_full");
    assert_eq!(full.body["waiters"], 2);
}

#[tokio::test]
async fn a_class_with_fixed_keys_names_them() {
    let app = start_with(
        "{apiVersion: holdfast.dev/v1alpha1, kind: Lock, metadata: {name: shard}, \
         spec: {keys: [north, south]}}",
    )
    .await;
    let answer = app.post("/v1/locks/shard/acquire?key=nort").await;
    answer.is_problem(422, "key_not_allowed");
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains("did you mean \"north\"?") && detail.contains("north, south"));
    assert_eq!(app.post("/v1/locks/shard/acquire?key=south").await.status, 200);
}
