//! Elections: two pods on one Redis, as their apps see it.

use std::{sync::Arc, time::Duration};

use holdfast_api::bundle::Bundle;
use holdfast_core::{Holder, SessionId, Substrate, SystemClock};
use holdfast_runtime::Readiness;
use holdfast_sidecar::{
    Listen, Serving, config::Bundles, connect::Backends, service::Identity, snapshot::Connect,
};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    client::{App, CLASSES, Stream, mk_bundle_on, start},
    server::RedisServer,
};

/// A pod on a Redis, and how its sidecar is given other bundles.
async fn pod_with_bundles(name: &str, redis: &RedisServer) -> (App, Bundles) {
    pod_with_classes(name, redis, CLASSES).await
}

async fn pod_with_classes(name: &str, redis: &RedisServer, classes: &str) -> (App, Bundles) {
    let (namespace, session) = ("default".into(), SessionId::random());
    let identity = Identity {
        namespace: Arc::clone(&namespace),
        holder: Holder::new(name).unwrap(),
        session: session.clone(),
        service_account: "default".into(),
        in_pod: false,
    };
    let serving = Serving::start(identity, &["127.0.0.1:0".parse().unwrap()], false).await.unwrap();
    let (hub, clock) = (serving.hub.clone(), Arc::new(SystemClock));
    let backends = Backends::new(namespace, session, hub, clock, None, None);
    let url = format!("redis://{}", redis.address());
    let epoch = backends.adopt_redis("redis", &url, Duration::ZERO).unwrap();
    let connect: Arc<dyn Connect> = Arc::new(backends);
    let bundles = Bundles::new(serving.sidecar.clone(), connect, Readiness::default(), None);
    bundles.apply(&mk_bundle_on("redis", Substrate::Redis, classes));
    assert!(epoch.opened(Duration::from_secs(5)).await);
    // The keeper of the epoch lives as long as the test.
    Box::leak(Box::new(epoch));
    let Listen::Tcp(address) = serving.listens[0].clone() else { unreachable!() };
    (App { serving, address }, bundles)
}

/// A pod on a Redis.
pub async fn pod(name: &str, redis: &RedisServer) -> App {
    pod_with_bundles(name, redis).await.0
}

/// The classes, with a leader that is wanted.
fn mk_transfer(to: &str) -> Bundle {
    let annotated = format!("{{name: boss, annotations: {{holdfast.dev/transfer-to: {to}}}}}");
    mk_bundle_on("redis", Substrate::Redis, &CLASSES.replace("{name: boss}", &annotated))
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

/// The release goes on by itself; meanwhile nothing else of the sidecar may wait for it.
#[tokio::test]
async fn who_has_resigned_leads_no_more_whatever_the_store_answers() {
    let redis = RedisServer::start(&[]);
    let classes = CLASSES.replace("leaseDurationSeconds: 2", "leaseDurationSeconds: 15");
    let a = pod_with_classes("pod-a", &redis, &classes).await.0;
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=5").await.body;
    let mut told = events(&a).await;
    until(&mut told, "leading").await;
    redis.pause(true);
    let path = "/v1/elections/boss/resign?pauseSeconds=0";
    let (resigned, _) = tokio::join!(a.post(path), until(&mut told, "standby"));
    assert_eq!(resigned.status, 503, "{resigned:?}");
    a.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    let begun = Instant::now();
    let still = a.post("/v1/elections/boss/campaign?waitSeconds=0.3").await.body;
    assert_eq!(still["state"], "standby", "{still}");
    assert!(begun.elapsed() >= Duration::from_millis(300), "its old term was taken for a new one");
    let gone = a.post(&format!("{path}&withdraw=true")).await;
    assert_eq!(gone.status, 503, "{gone:?}");
    let again = a.post("/v1/elections/boss/campaign").await.body;
    assert_eq!(again["state"], "standby", "{again}");
    a.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    redis.pause(false);
    let again = a.post("/v1/elections/boss/campaign?waitSeconds=10").await.body;
    assert_eq!(again["state"], "leading", "{again}");
    assert!(term(&again) > term(&won));
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
async fn a_leader_stops_at_its_renew_deadline_and_the_store_keeps_its_term_for_longer() {
    let redis = RedisServer::start(&[]);
    let long =
        "{backend: main, leaseDurationSeconds: 6, renewDeadlineSeconds: 2, retryPeriodSeconds: 1}";
    let classes =
        CLASSES.replace("{backend: main, leaseDurationSeconds: 2, retryPeriodSeconds: 1}", long);
    assert_ne!(classes, CLASSES);
    let (a, _) = pod_with_classes("pod-a", &redis, &classes).await;
    let (b, _) = pod_with_classes("pod-b", &redis, &classes).await;
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=5").await.body;
    assert!(won["holdForMs"].as_u64().unwrap() <= 2_000, "{won}");
    b.post("/v1/elections/boss/campaign").await;
    let (mut told, mut of_b) = (events(&a).await, events(&b).await);
    until(&mut told, "leading").await;
    let begun = Instant::now();
    redis.pause(true);
    until(&mut told, "suspended").await;
    let lost = until(&mut told, "standby").await;
    assert!(lost["reason"].as_str().unwrap().contains("expired"), "{lost}");
    assert!(begun.elapsed() < Duration::from_millis(2_300), "{:?}", begun.elapsed());
    a.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    redis.pause(false);
    // Nobody leads until the whole lease is over.
    let next = until(&mut of_b, "leading").await;
    assert!(begun.elapsed() > Duration::from_millis(3_500), "{:?}", begun.elapsed());
    assert!(term(&next) > term(&won));
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

#[tokio::test]
async fn a_transfer_suspends_the_leader_and_goes_to_the_pod_that_is_named() {
    let redis = RedisServer::start(&[]);
    let (a, of_a) = pod_with_bundles("pod-a", &redis).await;
    let (b, of_b) = pod_with_bundles("pod-b", &redis).await;
    let (c, of_c) = pod_with_bundles("pod-c", &redis).await;
    let first = a.post("/v1/elections/boss/campaign?waitSeconds=5").await.body;
    // b queues before c, and would be next.
    b.post("/v1/elections/boss/campaign").await;
    sleep(Duration::from_millis(200)).await;
    c.post("/v1/elections/boss/campaign").await;
    let (mut told, mut of_b_told, mut of_c_told) =
        (events(&a).await, events(&b).await, events(&c).await);
    until(&mut told, "leading").await;
    for bundles in [&of_a, &of_b, &of_c] {
        bundles.apply(&mk_transfer("pod-c"));
    }
    // The leader is asked to finish, and still holds its term.
    let asked = until(&mut told, "suspended").await;
    assert!(asked["reason"].as_str().unwrap().contains("pod \"pod-c\" is to lead"), "{asked}");
    assert!(asked["holdForMs"].as_u64().unwrap() > 0);
    let refusal = a.get("/v1/elections/boss/leading").await;
    refusal.is_problem(409, "not_leading");
    assert_eq!(c.get("/v1/elections/boss").await.body["leader"]["pod"], "pod-a");
    a.post("/v1/elections/boss/resign?pauseSeconds=0").await;
    let second = until(&mut of_c_told, "leading").await;
    assert!(term(&second) > term(&first));
    let stands = until(&mut of_b_told, "standby").await;
    assert_eq!(b.get("/v1/elections/boss").await.body["leader"]["pod"], "pod-c", "{stands}");

    // An app that does not finish is deposed when one lease is over; then the named one leads.
    for bundles in [&of_a, &of_b, &of_c] {
        bundles.apply(&mk_transfer("pod-b"));
    }
    let begun = Instant::now();
    until(&mut of_c_told, "suspended").await;
    let third = until(&mut of_b_told, "leading").await;
    assert!(begun.elapsed() >= Duration::from_millis(1_800), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_millis(3_500), "{:?}", begun.elapsed());
    assert!(term(&third) > term(&second));
}

#[tokio::test]
async fn a_transfer_to_a_pod_that_does_not_stand_leaves_nobody_waiting_for_ever() {
    let redis = RedisServer::start(&[]);
    let (a, of_a) = pod_with_bundles("pod-a", &redis).await;
    let first = a.post("/v1/elections/boss/campaign?waitSeconds=5").await.body;
    let mut told = events(&a).await;
    of_a.apply(&mk_transfer("nobody"));
    until(&mut told, "suspended").await;
    let waits = until(&mut told, "standby").await;
    assert!(waits["reason"].is_string(), "{waits}");
    // It waits for two leases, then leads again, and is not asked to hand over once more.
    let begun = Instant::now();
    let again = until(&mut told, "leading").await;
    assert!(term(&again) > term(&first));
    assert!(begun.elapsed() >= Duration::from_millis(3_000), "{:?}", begun.elapsed());
    assert!(timeout(Duration::from_secs(3), told.next()).await.is_err(), "asked again");
    assert_eq!(a.get("/v1/elections/boss/leading").await.status, 200);
}
