//! The fence guard over HTTP.

use crate::client::{CLASSES, start, start_with};

#[tokio::test]
async fn the_newest_fence_passes_and_an_older_one_is_told_so() {
    let app = start().await;
    let first = app.post("/v1/locks/job/acquire").await.body;
    let old = first["fence"].as_str().unwrap().to_owned();
    let passed = app.post(&format!("/v1/fences/job/check?fence={old}")).await;
    assert_eq!((passed.status, &passed.body["newest"]), (200, &first["fence"]), "{passed:?}");
    assert_eq!(passed.body["key"], "default");
    let hold = first["holdId"].as_str().unwrap();
    app.post(&format!("/v1/locks/job/release?holdId={hold}")).await;
    // Who released holds nothing, but nobody newer can be harmed.
    assert_eq!(app.post(&format!("/v1/fences/job/check?fence={old}")).await.status, 200);

    let second = app.post("/v1/locks/job/acquire").await.body;
    let stale = app.post(&format!("/v1/fences/job/check?fence={old}")).await;
    stale.is_problem(412, "fenced");
    assert!(stale.body["detail"].as_str().unwrap().contains("acquire again"), "{stale:?}");
    let body = format!("{{\"fence\": {}, \"of\": \"lock\"}}", second["fence"]);
    assert_eq!(app.post_json("/v1/fences/job/check", &body).await.status, 200);
    // Keys have fences of their own.
    assert_eq!(app.post(&format!("/v1/fences/job/check?fence={old}&key=x")).await.status, 200);
}

#[tokio::test]
async fn terms_are_fences_and_a_name_of_two_kinds_must_say_which() {
    let app = start().await;
    let term = app.post("/v1/elections/boss/campaign?waitSeconds=5").await.body;
    let check = format!("/v1/fences/boss/check?fence={}", term["term"].as_str().unwrap());
    assert_eq!(app.post(&check).await.status, 200);
    let both = format!(
        "{CLASSES}---\n{{apiVersion: holdfast.dev/v1alpha1, kind: Lock, metadata: {{name: boss}}, \
         spec: {{backend: main}}}}"
    );
    let app = start_with(&both).await;
    let which = app.post("/v1/fences/boss/check?fence=1").await;
    which.is_problem(422, "invalid_field");
    assert!(which.body["detail"].as_str().unwrap().starts_with("of is missing"), "{which:?}");
    assert_eq!(app.post("/v1/fences/boss/check?fence=1&of=election").await.status, 200);
}

#[tokio::test]
async fn bad_checks_say_what_to_do() {
    let app = start().await;
    app.post("/v1/fences/jub/check?fence=1").await.is_problem(404, "class_not_found");
    for query in ["", "?fence=", "?fence=-1", "?fence=1.5", "?fence=9223372036854775808", "?of=x"] {
        app.post(&format!("/v1/fences/job/check{query}")).await.is_problem(422, "invalid_field");
    }
    // `guarded` lets this pod acquire, and nothing else.
    app.post("/v1/fences/guarded/check?fence=1").await.is_problem(403, "forbidden");
}
