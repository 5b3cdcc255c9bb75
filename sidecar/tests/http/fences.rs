//! The fence guard over HTTP.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    client::{Answer, App, CLASSES, start, start_with},
    elections::pod,
    server::RedisServer,
};

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

fn fence(of: &Answer) -> u64 {
    of.body["fence"].as_str().unwrap().parse().unwrap()
}

/// Waits with an acquire of this query, while another holds; its answer once that one has released.
async fn take_over(app: &App, held: &Answer, query: &str) -> Answer {
    let acquire = format!("/v1/locks/job/acquire?waitSeconds=10{query}");
    let release = async {
        while app.get("/v1/locks/job").await.body["waiters"] != 1 {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(app.release("job", &held.body).await.status, 200);
    };
    tokio::join!(app.post(&acquire), release).0
}

/// Within a pod the next waiter has the hold before the store knows, with the fence after the last.
#[tokio::test]
async fn a_hold_that_is_passed_on_is_guarded_by_what_the_store_knows() {
    let redis = RedisServer::start(&[]);
    let app = pod("pod-0", &redis).await;
    let mut held = app.post("/v1/locks/job/acquire").await;
    for query in ["", "&renew=manual", "&ttlSeconds=3"] {
        let next = take_over(&app, &held, query).await;
        let (old, new) = (fence(&held), fence(&next));
        assert_eq!((next.status, new), (200, old + 1), "{next:?}");
        let check = |fence: u64| format!("/v1/fences/job/check?fence={fence}");
        assert_eq!(app.post(&check(new)).await.status, 200);
        app.post(&check(old)).await.is_problem(412, "fenced");
        // Nobody has been granted this one: it would be that of the next who is passed the hold.
        let early = app.post(&check(new + 1)).await;
        early.is_problem(503, "backend_unavailable");
        assert!(early.body["detail"].as_str().unwrap().contains("try again"), "{early:?}");
        held = next;
    }
    // It is the heir's as any other hold is.
    sleep(Duration::from_millis(4_500)).await;
    let view = app.get("/v1/locks/job").await.body;
    assert_eq!(view["holder"]["fence"], held.body["fence"], "{view}");
    assert_eq!(app.release("job", &held.body).await.status, 200);
    assert!(fence(&app.post("/v1/locks/job/acquire").await) > fence(&held) + 1);
}

/// Whoever is next may have it before the store has answered: it is not handed out, or renewed, again.
#[tokio::test]
async fn a_hold_that_is_being_released_is_not_its_holders_any_more() {
    let redis = RedisServer::start(&[]);
    let app = pod("pod-0", &redis).await;
    let acquire = "/v1/locks/slow/acquire?requestId=r-1&renew=manual";
    let held = app.post(acquire).await;
    let hold = held.body["holdId"].as_str().unwrap();
    redis.pause(true);
    let (released, ()) = tokio::join!(app.release("slow", &held.body), async {
        let info = format!("/v1/holds/{hold}");
        while app.get(&info).await.status == 200 {
            sleep(Duration::from_millis(5)).await;
        }
        let renew = format!("/v1/locks/slow/renew?holdId={hold}");
        let heartbeat = format!("/v1/holds/{hold}/heartbeat");
        for again in [acquire, &renew, &heartbeat] {
            let answer = app.post(again).await;
            answer.is_problem(410, "hold_lost");
            assert!(
                answer.body["detail"].as_str().unwrap().contains("being released"),
                "{answer:?}"
            );
        }
        app.get(&info).await.is_problem(410, "hold_lost");
        app.get(&format!("{info}/events")).await.is_problem(410, "hold_lost");
        redis.pause(false);
    });
    // A slow machine may have had no answer in time, and then does not know whose release it was.
    let again = app.release("slow", &held.body).await;
    assert!(
        matches!((released.status, again.status), (200, 200) | (503, _)),
        "{released:?} {again:?}"
    );
    // Two that are under way at once are one.
    let held = app.hold("slow", "waitSeconds=20").await;
    let (one, other) = tokio::join!(app.release("slow", &held), app.release("slow", &held));
    assert_eq!((one.status, other.status), (200, 200), "{one:?} {other:?}");
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
