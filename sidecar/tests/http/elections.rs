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

pub async fn pod_with_classes(name: &str, redis: &RedisServer, classes: &str) -> (App, Bundles) {
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
    assert!(epoch.opened(Duration::from_secs(30)).await);
    // The keeper of the epoch lives as long as the test.
    Box::leak(Box::new(epoch));
    let Listen::Tcp(address) = serving.listens[0].clone() else { unreachable!() };
    (App { serving, address }, bundles)
}

/// A pod on a Redis.
pub async fn pod(name: &str, redis: &RedisServer) -> App {
    pod_with_bundles(name, redis).await.0
}

/// The classes, with another lease.
fn with_lease(lease: &str) -> String {
    let classes = CLASSES.replace("leaseDurationSeconds: 8", lease);
    assert_ne!(classes, CLASSES);
    classes
}

/// The classes, with a leader that is wanted.
fn mk_transfer(classes: &str, to: &str) -> Bundle {
    let annotated = format!("{{name: boss, annotations: {{holdfast.dev/transfer-to: {to}}}}}");
    mk_bundle_on("redis", Substrate::Redis, &classes.replace("{name: boss}", &annotated))
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
    timeout(Duration::from_secs(30), next).await.unwrap_or_else(|_| panic!("never {state}"))
}

/// Reads events until the leader is asked to let this pod lead. A late renewal suspends it, too.
async fn until_asked(stream: &mut Stream, heir: &str) -> Value {
    let asks = format!("pod \"{heir}\" is to lead");
    loop {
        let data = until(stream, "suspended").await;
        if data["reason"].as_str().is_some_and(|reason| reason.contains(&asks)) {
            return data;
        }
    }
}

fn term(state: &Value) -> u64 {
    state["term"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn one_candidate_leads_and_a_resignation_hands_over_with_a_higher_term() {
    let redis = RedisServer::start(&[]);
    let classes = with_lease("leaseDurationSeconds: 15");
    let a = pod_with_classes("pod-a", &redis, &classes).await.0;
    let b = pod_with_classes("pod-b", &redis, &classes).await.0;
    a.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=20").await;
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
    // Long before the lease is over.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
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
    let classes = with_lease("leaseDurationSeconds: 60");
    let a = pod_with_classes("pod-a", &redis, &classes).await.0;
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=20").await.body;
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
    let again = a.post("/v1/elections/boss/campaign?waitSeconds=30").await.body;
    assert_eq!(again["state"], "leading", "{again}");
    assert!(term(&again) > term(&won));
}

#[tokio::test]
async fn a_dead_leader_is_replaced_within_its_lease_and_one_retry() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (pod("pod-a", &redis).await, pod("pod-b", &redis).await);
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=20").await.body;
    b.post("/v1/elections/boss/campaign").await;
    let mut told = events(&b).await;
    // Dropping it is a crash: nothing is released.
    drop(a);
    let begun = Instant::now();
    let next = until(&mut told, "leading").await;
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    assert!(term(&next) > term(&won));
}

#[tokio::test]
async fn a_leader_cut_off_from_its_store_is_suspended_before_it_is_deposed() {
    let redis = RedisServer::start(&[]);
    // Between the warning (7.5 s) and the end (10 s) there is time for a slow machine.
    let classes = with_lease("leaseDurationSeconds: 15");
    let a = pod_with_classes("pod-a", &redis, &classes).await.0;
    a.post("/v1/elections/boss/campaign?waitSeconds=20").await;
    let mut told = events(&a).await;
    until(&mut told, "leading").await;
    let begun = Instant::now();
    redis.pause(true);
    let late = until(&mut told, "suspended").await;
    assert!(late["holdForMs"].as_u64().unwrap() > 0, "a warning comes before the end");
    a.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    let lost = until(&mut told, "standby").await;
    assert!(lost["reason"].as_str().unwrap().contains("expired"), "{lost}");
    assert!(begun.elapsed() < Duration::from_secs(15), "before the store lets go");
    redis.pause(false);
    until(&mut told, "leading").await;
}

#[tokio::test]
async fn a_leader_stops_at_its_renew_deadline_and_the_store_keeps_its_term_for_longer() {
    let redis = RedisServer::start(&[]);
    let classes = with_lease("leaseDurationSeconds: 15, renewDeadlineSeconds: 6");
    let (a, _) = pod_with_classes("pod-a", &redis, &classes).await;
    let (b, _) = pod_with_classes("pod-b", &redis, &classes).await;
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=20").await.body;
    assert!(won["holdForMs"].as_u64().unwrap() <= 6_000, "{won}");
    b.post("/v1/elections/boss/campaign").await;
    let (mut told, mut of_b) = (events(&a).await, events(&b).await);
    until(&mut told, "leading").await;
    let begun = Instant::now();
    redis.pause(true);
    until(&mut told, "suspended").await;
    let lost = until(&mut told, "standby").await;
    assert!(lost["reason"].as_str().unwrap().contains("expired"), "{lost}");
    // By the lease alone it would lead for 13.5 s after its last renewal.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    a.get("/v1/elections/boss/leading").await.is_problem(409, "not_leading");
    redis.pause(false);
    // Nobody leads until the whole lease is over. It began before this did, with a renewal.
    let next = until(&mut of_b, "leading").await;
    assert!(begun.elapsed() > Duration::from_secs(8), "{:?}", begun.elapsed());
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
    let won = app.post("/v1/elections/boss/campaign?waitSeconds=20").await.body;
    let id = won["holdId"].as_str().unwrap();
    app.post(&format!("/v1/locks/job/release?holdId={id}")).await.is_problem(410, "hold_lost");
    assert_eq!(app.get("/v1/elections/boss/leading").await.status, 200);
    app.post("/v1/elections/boss/resign?pauseSeconds=5").await;
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
    let first = a.post("/v1/elections/boss/campaign?waitSeconds=20").await.body;
    // b queues before c, and would be next.
    b.post("/v1/elections/boss/campaign").await;
    sleep(Duration::from_millis(200)).await;
    c.post("/v1/elections/boss/campaign").await;
    let (mut told, mut of_b_told, mut of_c_told) =
        (events(&a).await, events(&b).await, events(&c).await);
    until(&mut told, "leading").await;
    for bundles in [&of_a, &of_b, &of_c] {
        bundles.apply(&mk_transfer(CLASSES, "pod-c"));
    }
    // The leader is asked to finish, and still holds its term.
    let asked = until_asked(&mut told, "pod-c").await;
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
    let begun = Instant::now();
    for bundles in [&of_a, &of_b, &of_c] {
        bundles.apply(&mk_transfer(CLASSES, "pod-b"));
    }
    until_asked(&mut of_c_told, "pod-b").await;
    let third = until(&mut of_b_told, "leading").await;
    assert!(begun.elapsed() >= Duration::from_millis(7_500), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(14), "{:?}", begun.elapsed());
    assert!(term(&third) > term(&second));
}

/// A renewal that is late and a transfer both suspend a leader: neither hides the other.
#[tokio::test]
async fn a_leader_that_is_to_hand_over_is_suspended_for_as_long_as_it_has_a_reason() {
    let redis = RedisServer::start(&[]);
    // Between the warning (15 s) and the end (20 s) there is time for a slow machine.
    let classes = with_lease("leaseDurationSeconds: 30");
    let (a, of_a) = pod_with_classes("pod-a", &redis, &classes).await;
    let won = a.post("/v1/elections/boss/campaign?waitSeconds=20").await.body;
    let mut hold = a.stream(&won).await;
    let mut told = events(&a).await;
    of_a.apply(&mk_transfer(&classes, "nobody"));
    until_asked(&mut told, "nobody").await;
    redis.pause(true);
    while hold.next().await.unwrap().0 != "suspended" {}
    sleep(Duration::from_millis(100)).await;
    let refused = a.get("/v1/elections/boss/leading").await;
    refused.is_problem(409, "not_leading");
    let why = refused.body["detail"].as_str().unwrap();
    assert!(why.contains("pod \"nobody\" is to lead"), "{why}");
    // The transfer is taken back, and the renewal is still late.
    of_a.apply(&mk_bundle_on("redis", Substrate::Redis, &classes));
    sleep(Duration::from_millis(100)).await;
    let refused = a.get("/v1/elections/boss/leading").await;
    refused.is_problem(409, "not_leading");
    let why = refused.body["detail"].as_str().unwrap();
    assert!(why.contains("a renewal is late"), "{why}");
    redis.pause(false);
    until(&mut told, "leading").await;
    assert_eq!(a.get("/v1/elections/boss/leading").await.status, 200);
}

#[tokio::test]
async fn a_transfer_to_a_pod_that_does_not_stand_leaves_nobody_waiting_for_ever() {
    let redis = RedisServer::start(&[]);
    // Short: three of them go by.
    let classes = with_lease("leaseDurationSeconds: 5");
    let (a, of_a) = pod_with_classes("pod-a", &redis, &classes).await;
    let first = a.post("/v1/elections/boss/campaign?waitSeconds=20").await.body;
    let mut told = events(&a).await;
    let begun = Instant::now();
    of_a.apply(&mk_transfer(&classes, "nobody"));
    until_asked(&mut told, "nobody").await;
    let waits = until(&mut told, "standby").await;
    assert!(waits["reason"].is_string(), "{waits}");
    // It had one lease to finish in. It waits for two, then leads again, and is not asked to hand
    // over once more.
    let again = until(&mut told, "leading").await;
    assert!(term(&again) > term(&first));
    assert!(begun.elapsed() >= Duration::from_millis(12_500), "{:?}", begun.elapsed());
    let asked = timeout(Duration::from_secs(3), until_asked(&mut told, "nobody")).await;
    assert!(asked.is_err(), "asked again: {asked:?}");
    until(&mut events(&a).await, "leading").await;
    assert_eq!(a.get("/v1/elections/boss/leading").await.status, 200);
}
