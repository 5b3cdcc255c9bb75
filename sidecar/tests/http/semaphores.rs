//! Permits over HTTP.

use std::time::Duration;

use serde_json::Value;

use crate::client::{App, start_with};

const CLASSES: &str = r#"
apiVersion: holdfast.dev/v1alpha1
kind: Semaphore
metadata: {name: pool}
spec: {backend: main, permits: 3, ttlSeconds: 30}
---
apiVersion: holdfast.dev/v1alpha1
kind: Semaphore
metadata: {name: shared}
spec: {backend: main, permits: 3, maxPerHolder: 2, ttlSeconds: 30, keys: [a, b]}
---
apiVersion: holdfast.dev/v1alpha1
kind: Semaphore
metadata: {name: short}
spec: {backend: main, permits: 1, ttlSeconds: 4}
"#;

async fn grant(app: &App, name: &str, query: &str) -> Value {
    let answer = app.post(&format!("/v1/semaphores/{name}/acquire?{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

async fn release(app: &App, name: &str, hold: &Value) {
    let id = hold["holdId"].as_str().unwrap();
    let answer = app.post(&format!("/v1/semaphores/{name}/release?holdId={id}")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn permits_are_granted_until_they_are_out_and_come_back() {
    let app = start_with(CLASSES).await;
    let two = grant(&app, "pool", "permits=2").await;
    assert_eq!((&two["permits"], &two["guarantee"]), (&2.into(), &"Process".into()));
    let one = grant(&app, "pool", "").await;
    assert_ne!(one["fence"], two["fence"]);
    app.post("/v1/semaphores/pool/acquire").await.is_problem(409, "locked");
    let state = app.get("/v1/semaphores/pool").await.body;
    assert_eq!(
        (&state["used"], &state["permits"], &state["holds"]),
        (&3.into(), &3.into(), &2.into())
    );
    assert_eq!(state["holders"][0]["fence"], two["fence"]);
    release(&app, "pool", &two).await;
    release(&app, "pool", &two).await;
    grant(&app, "pool", "permits=2").await;
}

#[tokio::test]
async fn what_can_never_fit_is_refused_and_says_what_can() {
    let app = start_with(CLASSES).await;
    let answer = app.post("/v1/semaphores/shared/acquire?key=a&permits=3&waitSeconds=30").await;
    assert!(answer.body["detail"].as_str().unwrap().contains("2 at the most"), "{}", answer.body);
    answer.is_problem(422, "cost_too_large");
    app.post("/v1/semaphores/pool/acquire?permits=0").await.is_problem(422, "invalid_field");
    app.post("/v1/semaphores/shared/acquire?key=c").await.is_problem(422, "key_not_allowed");
    app.post("/v1/semaphores/pol/acquire").await.is_problem(404, "class_not_found");
    // A lock has no permits.
    app.post("/v1/locks/pool/acquire").await.is_problem(404, "class_not_found");
}

#[tokio::test]
async fn one_pod_gets_no_more_than_its_share_of_a_key() {
    let app = start_with(CLASSES).await;
    let first = grant(&app, "shared", "key=a&permits=2").await;
    app.post("/v1/semaphores/shared/acquire?key=a").await.is_problem(409, "locked");
    grant(&app, "shared", "key=b&permits=2").await;
    release(&app, "shared", &first).await;
    grant(&app, "shared", "key=a").await;
}

#[tokio::test]
async fn one_release_hands_over_to_several_who_wait() {
    let app = start_with(CLASSES).await;
    let all = grant(&app, "pool", "permits=3").await;
    let waiting = async {
        tokio::join!(
            grant(&app, "pool", "waitSeconds=20"),
            grant(&app, "pool", "waitSeconds=20&permits=2"),
        )
    };
    let releasing = async {
        while app.get("/v1/semaphores/pool").await.body["waiters"] != 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        release(&app, "pool", &all).await;
    };
    let ((one, two), ()) = tokio::join!(waiting, releasing);
    assert_ne!(one["fence"], two["fence"]);
    assert_eq!(app.get("/v1/semaphores/pool").await.body["used"], 3);
}

#[tokio::test]
async fn the_same_request_is_the_same_hold_and_a_hold_belongs_to_its_class() {
    let app = start_with(CLASSES).await;
    let hold = grant(&app, "pool", "requestId=r1&permits=2").await;
    assert_eq!(grant(&app, "pool", "requestId=r1&permits=2").await["holdId"], hold["holdId"]);
    assert_eq!(app.get("/v1/semaphores/pool").await.body["used"], 2);
    let id = hold["holdId"].as_str().unwrap();
    app.post(&format!("/v1/semaphores/short/release?holdId={id}"))
        .await
        .is_problem(410, "hold_lost");
    let renewed = app.post(&format!("/v1/semaphores/pool/renew?holdId={id}")).await;
    assert_eq!((renewed.status, &renewed.body["fence"]), (200, &hold["fence"]));
}

#[tokio::test]
async fn holds_are_renewed_and_their_events_are_those_of_locks() {
    let app = start_with(CLASSES).await;
    let hold = grant(&app, "short", "").await;
    let mut stream = app.stream(&hold).await;
    assert_eq!(stream.next().await.unwrap().0, "granted");
    tokio::time::sleep(Duration::from_secs(5)).await;
    app.post("/v1/semaphores/short/acquire").await.is_problem(409, "locked");
    release(&app, "short", &hold).await;
    let mut told = stream.next().await.unwrap().0;
    // On a slow machine a renewal may be late: that is said, and taken back.
    while ["suspended", "granted"].contains(&told.as_str()) {
        told = stream.next().await.unwrap().0;
    }
    assert_eq!(told, "released");
}

#[tokio::test]
async fn force_release_takes_the_hold_with_a_fence_or_all() {
    let app = start_with(CLASSES).await;
    let (one, two) = (grant(&app, "pool", "").await, grant(&app, "pool", "").await);
    let mut stream = app.stream(&one).await;
    stream.next().await;
    let fence = one["fence"].as_str().unwrap();
    let taken = app.post(&format!("/v1/semaphores/pool/force-release?fence={fence}")).await.body;
    assert_eq!(taken["takenFrom"][0]["fence"], one["fence"]);
    assert_eq!(taken["takenFrom"].as_array().unwrap().len(), 1);
    assert_eq!(stream.next().await.unwrap().0, "lost");
    app.post("/v1/semaphores/pool/force-release?fence=x").await.is_problem(422, "invalid_field");
    let taken = app.post("/v1/semaphores/pool/force-release").await.body;
    assert_eq!(taken["takenFrom"][0]["fence"], two["fence"]);
    let next = grant(&app, "pool", "").await;
    let number = |hold: &Value| hold["fence"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(number(&next) > number(&two) + 1);
}
