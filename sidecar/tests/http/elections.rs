//! Elections: two pods on one Redis, as their apps see it.

use std::time::Duration;

use holdfast_core::{Holder, Substrate};
use holdfast_sidecar::{Listen, Local};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    client::{App, CLASSES, Stream, mk_bundle_on, start},
    server::RedisServer,
};

/// A pod on a Redis.
async fn pod(name: &str, redis: &RedisServer) -> App {
    let local = Local {
        namespace: "default".into(),
        holder: Holder::new(name).unwrap(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        page: false,
    };
    let bundle = mk_bundle_on("redis", Substrate::Redis, CLASSES);
    let (serving, epoch) = local
        .start(&bundle, Some(("redis", &format!("redis://{}", redis.address()))))
        .await
        .unwrap();
    let epoch = epoch.unwrap();
    assert!(epoch.opened(Duration::from_secs(5)).await);
    // The keeper of the epoch lives as long as the test.
    Box::leak(Box::new(epoch));
    let Listen::Tcp(address) = serving.listens[0].clone() else { unreachable!() };
    App { serving, address }
}

async fn events(app: &App) -> Stream {
    app.follow("/v1/elections/boss/events").await
}

/// Reads events until one says this.
async fn until(stream: &mut Stream, state: &str) -> Value {
    let next = async {
        loop {
            let (event, data) = stream.next().await.unwrap();
            assert_eq!(data["state"], event);
            if event == state {
                return data;
            }
        }
    };
    timeout(Duration::from_secs(20), next).await.unwrap_or_else(|_| panic!("never {state}"))
}

fn term(state: &Value) -> u64 {
    state["term"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn one_candidate_leads_and_a_resignation_hands_over_with_a_higher_term() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (pod("pod-a", &redis).await, pod("pod-b", &redis).await);
    a.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=5").await;
    assert_eq!((won.status, &won.body["state"]), (200, &"leading".into()), "{won:?}");
    let second = b.post("/v1/elections/boss/campaign").await;
    assert_eq!(second.body["state"], "standby");
    b.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    let seen = b.get("/v1/elections/boss").await.body;
    assert_eq!((&seen["leader"]["pod"], &seen["leading"]), (&"pod-a".into(), &false.into()));
    assert_eq!(seen["leader"]["term"], won.body["term"]);
    assert_eq!(a.get("/v1/elections/boss").await.body["leading"], true);

    let mut told = events(&b).await;
    until(&mut told, "standby").await;
    let begun = Instant::now();
    let resigned = a.post("/v1/elections/boss/resign").await;
    assert_eq!((resigned.status, &resigned.body["state"]), (200, &"standby".into()));
    a.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    let next = until(&mut told, "leading").await;
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(term(&next) > term(&won.body));
    assert_eq!(b.get("/v1/elections/boss/leading").await.status, 200);

    // Who resigned is a candidate again, and gets it back when the other goes for good.
    let gone = b.post("/v1/elections/boss/resign?withdraw=true").await;
    assert_eq!(gone.body["state"], "notCandidate");
    let again = a.post("/v1/elections/boss/campaign?waitSeconds=10").await;
    assert_eq!(again.body["state"], "leading");
    assert!(term(&again.body) > term(&next));
}

#[tokio::test]
async fn a_dead_leader_is_replaced_within_its_lease_and_one_retry() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (pod("pod-a", &redis).await, pod("pod-b", &redis).await);
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=5").await.body;
    b.post("/v1/elections/boss/campaign").await;
    let mut told = events(&b).await;
    // Dropping it is a crash: nothing is released.
    drop(a);
    let begun = Instant::now();
    let next = until(&mut told, "leading").await;
    assert!(begun.elapsed() < Duration::from_millis(3_500), "{:?}", begun.elapsed());
    assert!(term(&next) > term(&won));
}

#[tokio::test]
async fn a_leader_cut_off_from_its_store_is_suspended_before_it_is_deposed() {
    let redis = RedisServer::start(&[]);
    let a = pod("pod-a", &redis).await;
    a.post("/v1/elections/boss/campaign?waitSeconds=5").await;
    let mut told = events(&a).await;
    until(&mut told, "leading").await;
    let begun = Instant::now();
    redis.pause(true);
    let late = until(&mut told, "suspended").await;
    assert!(late["holdForMs"].as_u64().unwrap() > 0, "a warning comes before the end");
    a.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    let lost = until(&mut told, "standby").await;
    assert!(lost["reason"].as_str().unwrap().contains("expired"), "{lost}");
    assert!(begun.elapsed() < Duration::from_millis(2_000), "before the store lets go");
    redis.pause(false);
    until(&mut told, "leading").await;
}

#[tokio::test]
async fn bad_requests_of_elections_say_what_to_do_and_change_nothing() {
    let app = start().await;
    app.post("/v1/elections/bos/campaign").await.is_problem(404, "class_not_found");
    let missing = app.get("/v1/elections/bos").await;
    assert!(missing.body["detail"].as_str().unwrap().contains("did you mean \"boss\"?"));
    app.post("/v1/elections/boss/campaign?waitSeconds=61").await.is_problem(422, "invalid_field");
    app.post("/v1/elections/boss/campaign?what=1").await.is_problem(422, "invalid_field");
    app.post("/v1/elections/boss/resign?pauseSeconds=-1").await.is_problem(422, "invalid_field");
    app.get("/v1/elections/boss/events").await.is_problem(409, "not_leading");
    // A term is not a lock that anybody may release.
    app.post("/v1/elections/boss/acquire").await.is_problem(404, "not_found");
    assert_eq!(app.get("/v1/elections/boss").await.body["state"], "notCandidate");
    assert_eq!(app.post("/v1/elections/boss/resign").await.body["state"], "notCandidate");
}

#[tokio::test]
async fn a_paused_candidate_stands_back_and_a_term_cannot_be_released_as_a_lock() {
    let app = start().await;
    let won = app.post("/v1/elections/boss/campaign?waitSeconds=5").await.body;
    let id = won["holdId"].as_str().unwrap();
    app.post(&format!("/v1/locks/job/release?holdId={id}")).await.is_problem(410, "hold_lost");
    assert_eq!(app.get("/v1/elections/boss/leading").await.status, 200);
    app.post("/v1/elections/boss/resign?pauseSeconds=1.5").await;
    sleep(Duration::from_millis(1_000)).await;
    assert_eq!(app.get("/v1/elections/boss").await.body["state"], "standby");
    let mut told = events(&app).await;
    assert!(term(&until(&mut told, "leading").await) > term(&won));
}
