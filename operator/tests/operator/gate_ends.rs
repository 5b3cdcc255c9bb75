//! How pods that hold end, and operators under them: nothing is granted twice, nothing is released
//! because it cannot be seen.

use std::time::Duration;

use kube::ResourceExt;
use tokio::time::Instant;

use crate::{
    fixture::{Bed, Operator, Plane, acquire, eventually},
    gates::FENCE,
    redis::RedisServer,
};

/// How long holds last without a renewal, in seconds.
const HOLD: &str = "10";
/// The same under operators that are killed: longer than two of their lives, of which the second
/// may end before it has renewed anything.
const HOLD_OF_KILLED: &str = "20";
/// How long an operator that will be killed leads without a renewal, in seconds: the next one waits
/// for that.
const SHORT: &str = "2";

fn operator(plane: &Plane, name: &str) -> Operator {
    plane.operator(name, &["--pod-hold-seconds", HOLD])
}

fn killed_operator(plane: &Plane, name: &str, hold: &str) -> Operator {
    plane.operator(name, &["--pod-hold-seconds", hold, "--election-seconds", SHORT])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_never_ran_gives_way_at_once_and_one_that_vanished_does_not() {
    let plane = Plane::start();
    let operator = operator(&plane, "one");
    let bed = Bed::new(&plane).await;
    // Shorter than a pod's hold: that must not be what counts.
    bed.lock("nightly", "{ttlSeconds: 1}");
    bed.held_pods(&["a", "b", "c", "d"], "lock/nightly");
    bed.until_let_go(&["a"]).await;
    bed.until_state("d", "Waiting: at place 3").await;
    // Gated: it leaves the line.
    bed.kubectl(&["delete", "pod", "b"], "").unwrap();
    bed.until_state("d", "Waiting: at place 2").await;
    // Let go and bound to no node: it cannot have run.
    bed.kubectl(&["delete", "pod", "a", "--force", "--grace-period=0"], "").unwrap();
    let begun = Instant::now();
    bed.until_let_go(&["c"]).await;
    let took = begun.elapsed();
    // Its hold would have run out after two thirds of its time at the soonest.
    assert!(took < Duration::from_secs(6), "it took {took:?}");
    // Running somewhere, and taken out of sight: for all we know it runs on.
    bed.run("c");
    // Longer than the hold: it is being renewed.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(bed.let_go().await, ["c"]);
    let begun = Instant::now();
    bed.kubectl(&["delete", "pod", "c", "--force", "--grace-period=0"], "").unwrap();
    eventually("d to be let go", async || bed.let_go().await == ["d"]).await;
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(5), "an absent pod's hold was released after {took:?}");
    let changes = operator.metrics("holdfast_pod_hold_changes_total");
    let of = |change: &str| changes.iter().any(|line| line.contains(&format!("\"{change}\"}} 1")));
    assert!(of("left_to_expire"), "{changes:?}");
    // Said to have failed by somebody who does not hear its node: its container is known to run.
    bed.run("d");
    bed.held_pods(&["e"], "lock/nightly");
    bed.until_state("e", "Waiting").await;
    bed.set_phase(
        "d",
        r#"{"status": {"phase": "Failed", "containerStatuses": [{"name": "app", "image": "app",
            "imageID": "", "ready": false, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}}"#,
    );
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!bed.pod("e").await.unwrap().annotations().contains_key(FENCE));
    bed.set_phase(
        "d",
        r#"{"status": {"containerStatuses": [{"name": "app", "image": "app", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 137}}}]}}"#,
    );
    eventually("e to be let go", async || bed.let_go().await == ["e"]).await;
}

/// Kills the operator again and again under pods that come and go, on one substrate.
async fn crashes(bed: &Bed<'_>, hold: &str, permits: usize) {
    let names: Vec<String> = (0..8).map(|i| format!("p{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    bed.held_pods(&names, hold);
    let (mut ended, mut kills) = (0, 0);
    let mut running = killed_operator(bed.plane, "crash-0", HOLD_OF_KILLED);
    let (mut killed_at, mut one_more) = (Instant::now(), true);
    let mut fences = std::collections::BTreeMap::new();
    let until = Instant::now() + Duration::from_secs(150);
    while ended < names.len() {
        assert!(Instant::now() < until, "{ended} ended after {kills} kills");
        let now = bed.let_go().await;
        assert!(now.len() <= permits, "{now:?} run at the same time");
        for name in &now {
            let fence = bed.fence(name).await;
            // The same hold, whoever leads.
            assert_eq!(*fences.entry(name.clone()).or_insert(fence), fence, "{name}");
        }
        // It leads after some two seconds; then the end comes at any step.
        let life = Duration::from_millis(2_600 + 310 * kills);
        if kills < 6 && killed_at.elapsed() > life {
            running.kill();
            kills += 1;
            running = killed_operator(bed.plane, &format!("crash-{kills}"), HOLD_OF_KILLED);
            (killed_at, one_more) = (Instant::now(), true);
        }
        // One pod in each life at the most, so that there are some for the last.
        if let Some(first) = now.first()
            && (one_more || kills == 6)
        {
            bed.end(first, "Succeeded");
            (ended, one_more) = (ended + 1, false);
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!((fences.len(), kills), (names.len(), 6));
    let mut values: Vec<_> = fences.values().collect();
    values.sort();
    values.dedup();
    assert_eq!(values.len(), names.len(), "two pods had the same fence");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_killed_again_and_again_grants_nothing_twice() {
    let plane = Plane::start();
    let first = killed_operator(&plane, "first", HOLD_OF_KILLED);
    let (leases, permits) = (Bed::new(&plane).await, Bed::new(&plane).await);
    leases.lock("nightly", "{}");
    leases.until_ready("nightly", "True", "Reconciled").await;
    let redis = RedisServer::start(&[]);
    permits.backend("crashes", &redis, "");
    permits.semaphore("pool", "{backend: crashes, permits: 2, ttlSeconds: 3}");
    eventually("a semaphore", async || {
        permits.kubectl(&["wait", "--for=condition=Ready", "sem/pool", "--timeout=1s"], "").is_ok()
    })
    .await;
    drop(first);
    crashes(&leases, "lock/nightly", 1).await;
    crashes(&permits, "semaphore/pool", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_longer_than_the_hold_a_running_pod_comes_first_and_a_loss_is_told() {
    let plane = Plane::start();
    let mut one = killed_operator(&plane, "one", HOLD);
    let bed = Bed::new(&plane).await;
    for name in ["kept", "taken"] {
        bed.lock(name, "{ttlSeconds: 1}");
    }
    let redis = RedisServer::start(&[]);
    bed.backend("outage", &redis, "");
    bed.semaphore("pool", "{backend: outage, permits: 1, ttlSeconds: 1}");
    for (pods, hold) in
        [(["a", "b"], "lock/kept"), (["c", "d"], "lock/taken"), (["e", "f"], "semaphore/pool")]
    {
        bed.held_pods(&pods, hold);
    }
    bed.until_let_go(&["a", "c", "e"]).await;
    ["a", "c", "e"].iter().for_each(|name| bed.run(name));
    bed.until_state("f", "Waiting").await;
    let before = (bed.fence("a").await, bed.fence("e").await);
    let (locks, config, at) =
        (bed.leases().await, bed.config("taken").await, bed.at("taken", "default"));
    one.kill();
    // An app takes one of the locks once it has run out.
    let mut app = None;
    eventually("the hold of c to run out", async || {
        app = acquire(&*locks, &at, &config, "app").await;
        app.is_some()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let _two = operator(&plane, "two");
    bed.until_state("c", "Lost").await;
    eventually("HoldLost", async || bed.events("c", "HoldLost").await.len() == 1).await;
    eventually("e's hold to be found or taken up again", async || bed.fence("e").await > before.1)
        .await;
    assert_eq!(bed.fence("a").await, before.0, "nobody took it meanwhile");
    for gated in ["b", "f"] {
        assert!(!bed.pod(gated).await.unwrap().annotations().contains_key(FENCE), "{gated}");
    }
    // The app has ended without a word; the next pod has its turn, the lost one runs on.
    eventually("d to be let go", async || bed.let_go().await == ["a", "c", "d", "e"]).await;
    bed.end("e", "Succeeded");
    eventually("f to be let go", async || bed.let_go().await == ["a", "c", "d", "f"]).await;
    // By force, while its operator is there: told soon, and not taken up again.
    bed.kubectl(&["annotate", "lock", "kept", "holdfast.dev/force-release="], "").unwrap();
    bed.until_state("a", "Lost").await;
    eventually("b to be let go", async || bed.let_go().await.contains(&"b".to_owned())).await;
}
