//! Many writers, hand-over between two sidecars, and what it all costs in requests.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    Clock, Deadline, HoldId, SystemClock,
    lock::{Attempt, LockBackend, Renewal},
};
use tokio::time::Instant;

use crate::fixture::{Sidecar, eventually, fresh, lease_of, mk_config, plane};

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_eight_writers_at_once_exactly_one_wins_each_round() {
    let server = plane();
    let config = mk_config(Duration::from_secs(15));
    let mut pods = Vec::new();
    for i in 0..8 {
        pods.push(Arc::new(Sidecar::new(server, &format!("pod-{i}")).await));
    }
    let at = fresh(server).await;
    let mut last = None;
    for round in 0..30 {
        let mut tries = tokio::task::JoinSet::new();
        for pod in &pods {
            let (pod, at, config) = (pod.clone(), at.clone(), config.clone());
            tries.spawn(async move {
                let hold = HoldId::random();
                let got = pod.locks.acquire(&at, &pod.request(&config, &hold)).await.unwrap();
                (pod, hold, got)
            });
        }
        let mut winners = Vec::new();
        while let Some(tried) = tries.join_next().await {
            let (pod, hold, got) = tried.unwrap();
            match got {
                Attempt::Granted(grant) => winners.push((pod, hold, grant)),
                Attempt::Locked { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        let (pod, hold, grant) = winners.remove(0);
        assert!(Some(grant.fence) > last);
        last = Some(grant.fence);
        pod.locks.release(&at, &config, &hold).await.unwrap();
    }
}

/// How many writes long it takes from a release to the next grant.
async fn hand_over_in_writes(a: &Sidecar, b: &Sidecar) -> f64 {
    let (at, config) = (fresh(plane()).await, mk_config(Duration::from_secs(15)));
    let (mut writes, mut hand_overs) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let (one, two) = (HoldId::random(), HoldId::random());
        a.hold(&at, &config, &one).await;
        let waiting = async {
            b.hold(&at, &config, &two).await;
            Instant::now()
        };
        let release = async {
            eventually("b waits", async || b.locks.query(&at, &config).await.unwrap().waiters == 1)
                .await;
            // The watch is opened by then.
            tokio::time::sleep(Duration::from_millis(30)).await;
            let start = Instant::now();
            a.locks.renew(&at, &config, &one, Duration::from_secs(15)).await.unwrap();
            writes.push(start.elapsed());
            let start = Instant::now();
            a.locks.release(&at, &config, &one).await.unwrap();
            start
        };
        let (granted, released) = tokio::join!(waiting, release);
        hand_overs.push(granted - released);
        b.locks.release(&at, &config, &two).await.unwrap();
    }
    let (write, hand_over) = (median(writes), median(hand_overs));
    let ratio = hand_over.as_secs_f64() / write.as_secs_f64();
    println!("one write p50 {write:?}, release to next grant p50 {hand_over:?}: {ratio:.2}x");
    ratio
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_release_hands_over_in_about_two_writes() {
    let (a, b) = (Sidecar::new(plane(), "a").await, Sidecar::new(plane(), "b").await);
    let mut ratios = Vec::<f64>::new();
    // The promise is 3x, measured alone by the bench; beside other tests leave room for noise.
    while ratios.len() < 3 && ratios.iter().all(|ratio| *ratio >= 5.0) {
        ratios.push(hand_over_in_writes(&a, &b).await);
    }
    assert!(ratios.iter().any(|ratio| *ratio < 5.0), "{ratios:.2?}x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_is_one_write_and_a_waiter_is_nothing() {
    let server = plane();
    let (at, config) = (fresh(server).await, mk_config(Duration::from_secs(60)));
    let (name, a, b) =
        (lease_of(&at), Sidecar::new(server, "a").await, Arc::new(Sidecar::new(server, "b").await));
    let (start, hold) = (server.requests(&name).len(), HoldId::random());
    a.hold(&at, &config, &hold).await;
    // The audit log is a little behind.
    let since = async |start: usize, count: usize| {
        eventually("so many", async || server.requests(&name).len() >= start + count).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.requests(&name).split_off(start)
    };
    // A fresh process reads once and writes once.
    assert_eq!(since(start, 2).await, ["get 200", "patch 200"]);
    let start = server.requests(&name).len();
    for _ in 0..10 {
        let renewed = a.locks.renew(&at, &config, &hold, Duration::from_secs(60)).await.unwrap();
        assert!(matches!(renewed, Renewal::Renewed { .. }));
    }
    assert_eq!(since(start, 10).await, ["patch 200"; 10]);

    let mut waiters = tokio::task::JoinSet::new();
    let mut wait = || {
        let (b, at, config) = (b.clone(), at.clone(), config.clone());
        waiters.spawn(async move {
            drop(b.acquire(&at, &config, &HoldId::random(), Duration::from_secs(60)).await);
        })
    };
    let all_wait = async |count: u32| {
        eventually("so many wait", async || {
            let beat = b.locks.beat(&at, &config, &b.session).await;
            beat.is_ok_and(|beat| beat.tickets == count)
        })
        .await;
    };
    let first: Vec<_> = (0..20).map(|_| wait()).collect();
    all_wait(20).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = server.requests(&name).len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(server.requests(&name)[start..], [""; 0], "waiting costs requests");
    // A renewal under them is still one write: the watch tells them, they ask nothing.
    a.locks.renew(&at, &config, &hold, Duration::from_secs(60)).await.unwrap();
    assert_eq!(since(start, 1).await, ["patch 200"]);
    first.iter().for_each(tokio::task::AbortHandle::abort);
    all_wait(0).await;
    // A hand-over is one release and one grant, however many waited; no herd.
    let (two, start) = (HoldId::random(), server.requests(&name).len());
    let release = async {
        all_wait(1).await;
        wait();
        all_wait(2).await;
        // The watch is opened by then.
        tokio::time::sleep(Duration::from_millis(300)).await;
        a.locks.release(&at, &config, &hold).await.unwrap();
    };
    let (_held, ()) = tokio::join!(b.hold(&at, &config, &two), release);
    let requests = since(start, 2).await;
    assert_eq!(requests.iter().filter(|r| *r == "patch 200").count(), 2, "{requests:?}");
}

/// The deadline of a hold that was waited for counts from before its own write, not from when the
/// wait began: nothing of it is lost to the wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_gets_its_whole_hold() {
    let server = plane();
    let ttl = Duration::from_secs(9);
    let (at, config) = (fresh(server).await, mk_config(ttl));
    let (a, b) = (Sidecar::new(server, "a").await, Sidecar::new(server, "b").await);
    let (one, two) = (HoldId::random(), HoldId::random());
    a.hold(&at, &config, &one).await;
    let release = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        a.locks.release(&at, &config, &one).await.unwrap();
    };
    let (held, ()) = tokio::join!(b.hold(&at, &config, &two), release);
    let now = SystemClock.now();
    let whole = Deadline::new(now, ttl).remaining(now);
    assert!(held.claimed && held.deadline.remaining(now) > whole - Duration::from_secs(3));
}
