//! Acquire, renew, release, query: the life of a lock.

use std::time::Duration;

use crate::client::{App, start};

#[tokio::test]
async fn a_lock_is_held_by_one_and_handed_over_with_a_higher_fence() {
    let app = start().await;
    let first = app.hold("job", "").await;
    assert_eq!(first["key"], "default");
    assert_eq!(first["ttlMs"], 4_000);
    assert!(first["holdForMs"].as_u64().unwrap() <= 3_600);
    assert_eq!(first["guarantee"], "Process");
    let refused = app.post("/v1/locks/job/acquire").await;
    refused.is_problem(409, "locked");
    let retry_ms = refused.body["retryAfterMs"].as_u64().unwrap();
    assert!((1..=4_000).contains(&retry_ms), "{retry_ms}");
    // In whole seconds there, rounded up.
    assert_eq!(refused.headers["retry-after"], retry_ms.div_ceil(1_000).to_string());
    let (next, released) = tokio::join!(app.hold("job", "waitSeconds=20"), async {
        while app.get("/v1/locks/job").await.body["waiters"] != 1 {}
        app.release("job", &first).await
    });
    assert_eq!(released.status, 200);
    let fence = |hold: &serde_json::Value| hold["fence"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(fence(&next) > fence(&first));
}

#[tokio::test]
async fn the_state_shows_holder_fence_and_queue() {
    let app = start().await;
    let hold = app.hold("slow", "key=order/1").await;
    let state = app.get("/v1/locks/slow?key=order/1").await.body;
    assert_eq!((&state["held"], &state["holder"]["pod"]), (&true.into(), &"pod-a".into()));
    assert_eq!(state["holder"]["fence"], hold["fence"]);
    assert_eq!(state["waiters"], 0);
    let other = app.get("/v1/locks/slow?key=order/2").await.body;
    assert_eq!(other["held"], false);
    app.release("slow", &hold).await;
    let after = app.get("/v1/locks/slow?key=order/1").await.body;
    assert_eq!((&after["held"], &after["lastFence"]), (&false.into(), &hold["fence"]));
}

#[tokio::test]
async fn a_retry_with_the_same_request_id_gets_the_same_grant() {
    let app = start().await;
    let first = app.hold("slow", "requestId=r-1").await;
    let again = app.post_json("/v1/locks/slow/acquire", r#"{"requestId":"r-1"}"#).await;
    assert_eq!(again.status, 200);
    assert_eq!((&again.body["holdId"], &again.body["fence"]), (&first["holdId"], &first["fence"]));
    app.post("/v1/locks/slow/acquire?requestId=r-2").await.is_problem(409, "locked");
    app.release("slow", &first).await;
    app.post("/v1/locks/slow/acquire?requestId=r-1").await.is_problem(410, "hold_lost");
}

#[tokio::test]
async fn a_request_that_its_caller_gave_up_can_be_sent_again() {
    let app = start().await;
    let first = app.hold("slow", "").await;
    let path = "/v1/locks/slow/acquire?waitSeconds=20&requestId=again";
    let given_up = tokio::time::timeout(Duration::from_millis(200), app.post(path)).await;
    assert!(given_up.is_err(), "nobody has released yet");
    until_waiting(&app, 0).await;
    let (next, _) = tokio::join!(app.post(path), async {
        until_waiting(&app, 1).await;
        app.release("slow", &first).await
    });
    assert_eq!(next.status, 200, "{next:?}");
}

async fn until_waiting(app: &App, waiters: u64) {
    for _ in 0..500 {
        if app.get("/v1/locks/slow").await.body["waiters"] == waiters {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("there are never {waiters} waiters");
}

#[tokio::test]
async fn releasing_twice_is_no_error_and_a_lost_hold_says_so() {
    let app = start().await;
    let hold = app.hold("job", "").await;
    assert_eq!(app.release("job", &hold).await.status, 200);
    assert_eq!(app.release("job", &hold).await.status, 200);
    let manual = app.hold("job", "renew=manual&ttlSeconds=1").await;
    tokio::time::sleep(Duration::from_millis(950)).await;
    app.release("job", &manual).await.is_problem(410, "hold_lost");
    let id = manual["holdId"].as_str().unwrap();
    app.post(&format!("/v1/locks/job/renew?holdId={id}")).await.is_problem(410, "hold_lost");
    app.get(&format!("/v1/holds/{id}")).await.is_problem(410, "hold_lost");
}

#[tokio::test]
async fn manual_renewals_keep_a_hold_and_automatic_ones_need_no_call() {
    let app = start().await;
    let manual = app.hold("job", "renew=manual").await;
    let auto = app.hold("job", "key=other").await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let id = manual["holdId"].as_str().unwrap();
        let renewed = app.post(&format!("/v1/locks/job/renew?holdId={id}")).await;
        assert_eq!((renewed.status, &renewed.body["fence"]), (200, &manual["fence"]));
    }
    let info = app.get(&format!("/v1/holds/{}", auto["holdId"].as_str().unwrap())).await;
    assert_eq!((&info.body["state"], &info.body["fence"]), (&"held".into(), &auto["fence"]));
}

#[tokio::test]
async fn the_longest_hold_ends_although_it_is_renewed() {
    let app = start().await;
    let begun = tokio::time::Instant::now();
    let hold = app.hold("job", "maxHoldSeconds=8").await;
    let mut stream = app.stream(&hold).await;
    let lost = async { while stream.next().await.is_some_and(|(event, _)| event != "lost") {} };
    // It is renewed beyond its time to live (4 s), and not beyond 8 s.
    tokio::time::timeout(Duration::from_secs(12), lost).await.expect("it never ends");
    let held = begun.elapsed();
    assert!(held > Duration::from_millis(4_400), "{held:?}");
    assert_eq!(app.post("/v1/locks/job/acquire?waitSeconds=10").await.status, 200);
}

#[tokio::test]
async fn force_release_needs_permission_by_name() {
    let app = start().await;
    let hold = app.hold("slow", "").await;
    let taken = app.post("/v1/locks/slow/force-release").await;
    assert_eq!((taken.status, &taken.body["takenFrom"]["fence"]), (200, &hold["fence"]));
    app.release("slow", &hold).await.is_problem(410, "hold_lost");
    app.hold("guarded", "").await;
    app.post("/v1/locks/guarded/force-release").await.is_problem(403, "forbidden");
    app.get("/v1/locks/guarded").await.is_problem(403, "forbidden");
}

/// Plain requests do not go through the router; an escaped name does.
#[tokio::test]
async fn a_plain_request_and_one_for_the_router_get_the_same_answers() {
    let mut seen = Vec::new();
    for name in ["slow", "%73low"] {
        let app = start().await;
        let path = |rest: &str| format!("/v1/locks/{name}/{rest}");
        let granted = app.post(&path("acquire?key=a&requestId=r-1")).await;
        let id = granted.body["holdId"].as_str().unwrap_or_default().to_owned();
        let mut answers = vec![
            granted,
            app.post(&path("acquire?key=a")).await,
            app.post(&path("acquire?key=")).await,
            app.post(&path("acquire?what=1")).await,
            app.post(&path("acquire?ttlSeconds=soon")).await,
            app.post(&path("release")).await,
            app.post(&path("release?holdId=!")).await,
            app.post(&path(&format!("release?holdId={id}"))).await,
            app.post(&path(&format!("release?holdId={id}"))).await,
            app.post(&format!("/v1/locks/no{name}/acquire")).await,
        ];
        let rows = answers.iter_mut().map(|answer| {
            let fields = answer.body.as_object_mut().map(|body| {
                for changing in
                    ["holdId", "fence", "holdForMs", "deadlineBoottimeNs", "retryAfterMs"]
                {
                    if let Some(value) = body.get_mut(changing) {
                        *value = "…".into();
                    }
                }
                body.clone()
            });
            (answer.status, answer.headers["content-type"].clone(), fields)
        });
        seen.push(rows.collect::<Vec<_>>());
    }
    let statuses: Vec<u16> = seen[0].iter().map(|row| row.0).collect();
    assert_eq!(statuses, [200, 409, 422, 422, 422, 422, 422, 200, 200, 404]);
    assert_eq!(seen[0], seen[1]);
}
