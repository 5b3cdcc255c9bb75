//! Event streams, and what automatic renewal is bound to.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::client::start;

#[tokio::test]
async fn a_stream_tells_of_the_grant_and_of_the_release_and_then_ends() {
    let app = start().await;
    let hold = app.hold("slow", "").await;
    let mut stream = app.stream(&hold).await;
    let (event, data) = stream.next().await.unwrap();
    assert_eq!((event.as_str(), &data["fence"]), ("granted", &hold["fence"]));
    app.release("slow", &hold).await;
    assert_eq!(stream.next().await.unwrap().0, "released");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn suspended_comes_before_lost_and_lost_before_the_store_lets_go() {
    let app = start().await;
    let begun = Instant::now();
    let hold = app.hold("slow", "renew=manual&ttlSeconds=15").await;
    let mut stream = app.stream(&hold).await;
    assert_eq!(stream.next().await.unwrap().0, "granted");
    let (event, data) = stream.next().await.unwrap();
    assert_eq!(event, "suspended");
    assert!(data["holdForMs"].as_u64().unwrap() > 0, "a warning comes before the end");
    let (event, data) = stream.next().await.unwrap();
    assert_eq!((event.as_str(), &data["holdForMs"]), ("lost", &0.into()));
    // A tenth of its time to live before: 1.5 s, of which a slow machine may need some.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_hold_taken_by_force_is_lost_at_once() {
    let app = start().await;
    let hold = app.hold("slow", "").await;
    let mut stream = app.stream(&hold).await;
    stream.next().await;
    let begun = Instant::now();
    app.post("/v1/locks/slow/force-release").await;
    assert_eq!(stream.next().await.unwrap().0, "lost");
    // The next renewal, which would find out, is due after ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// A2: silence longer than a sixth of the time to live means that nobody watches over the hold.
#[tokio::test]
async fn a_silent_hold_has_a_stream_that_beats() {
    let app = start().await;
    let hold = app.hold("slow", "ttlSeconds=12").await;
    let mut stream = app.stream(&hold).await;
    stream.next().await;
    let end = tokio::time::timeout(Duration::from_secs(10), stream.next()).await;
    assert!(end.is_err(), "nothing happens to the hold");
    // Four or five at one in two seconds; each that is late puts off the next one.
    assert!(stream.comments >= 3, "{} comments in 10 s", stream.comments);
}

/// D1: an app that died has no open stream.
#[tokio::test]
async fn a_hold_bound_to_its_stream_is_lost_after_the_stream() {
    let app = start().await;
    let hold = app.hold("job", "bind=stream").await;
    let mut stream = app.stream(&hold).await;
    stream.next().await;
    // Without it, it would be gone after its grace and its time to live: 8 s.
    sleep(Duration::from_secs(9)).await;
    let id = hold["holdId"].as_str().unwrap();
    assert_eq!(app.get(&format!("/v1/holds/{id}")).await.status, 200, "renewed while it is open");
    drop(stream);
    let begun = Instant::now();
    let next = app.post("/v1/locks/job/acquire?waitSeconds=20").await;
    assert_eq!(next.status, 200);
    let waited = begun.elapsed();
    assert!(waited < Duration::from_secs(11), "at most its grace and its time to live: {waited:?}");
}

/// D2: an app that hangs sends no heartbeats. The control is the same hold with heartbeats.
#[tokio::test]
async fn a_hold_bound_to_heartbeats_is_lost_without_them() {
    let app = start().await;
    let silent = app.hold("job", "key=a&bind=heartbeat&heartbeatSeconds=2").await;
    let alive = app.hold("job", "key=b&bind=heartbeat&heartbeatSeconds=2").await;
    let path = |hold: &serde_json::Value, verb: &str| {
        format!("/v1/holds/{}{verb}", hold["holdId"].as_str().unwrap())
    };
    for _ in 0..12 {
        sleep(Duration::from_millis(600)).await;
        assert_eq!(app.post(&path(&alive, "/heartbeat")).await.status, 200);
    }
    app.get(&path(&silent, "")).await.is_problem(410, "hold_lost");
    assert_eq!(app.get(&path(&alive, "")).await.status, 200);
}
