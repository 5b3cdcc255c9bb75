//! B3: an acquire whose outcome is unknown leaves no ghost; and the control, a plain re-read, does.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use holdfast_core::{
    Address, BackendError, HoldId,
    lock::{Attempt, LockBackend, Which},
};

use crate::{
    fixture::{Sidecar, eventually, fresh, mk_config, plane},
    relay::Relay,
};

const ROUNDS: usize = 10;
/// The budget of a call is half of it.
const TTL: Duration = Duration::from_secs(2);

/// A pod behind a relay with a warm connection and a fresh record: its next bytes are its write.
async fn warm() -> (Relay, Sidecar, Address) {
    let server = plane();
    let relay = Relay::to(server.port()).await;
    let pod = Sidecar::through(server, "pod", relay.port).await;
    let at = fresh(server).await;
    pod.locks.query(&at, &mk_config(TTL)).await.unwrap();
    (relay, pod, at)
}

/// One late request; whether it left a ghost.
async fn late_request(settles: bool) -> bool {
    let (relay, pod, at) = warm().await;
    let config = mk_config(TTL);
    let hold = HoldId::random();
    // Much longer than the budget: there must be time to see that it has not landed.
    relay.faults.hold_request_ms.store(5_000, SeqCst);
    if settles {
        let got = pod.acquire(&at, &config, &hold, Duration::ZERO).await;
        assert!(matches!(got, Err(BackendError::Unavailable(_))), "not settled");
    } else {
        let got = pod.locks.acquire(&at, &pod.request(&config, &hold)).await;
        assert!(matches!(got, Err(BackendError::Unknown(_))), "{got:?}");
    }
    assert_eq!(pod.sees(&at, &config).await, None, "the late request has landed already");
    relay.delivery().await;
    pod.sees(&at, &config).await.is_some()
}

async fn ghosts(settles: bool) -> usize {
    let mut rounds = tokio::task::JoinSet::new();
    for _ in 0..ROUNDS {
        rounds.spawn(late_request(settles));
    }
    let mut ghosts = 0;
    while let Some(is_ghost) = rounds.join_next().await {
        ghosts += usize::from(is_ghost.unwrap());
    }
    ghosts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settled_acquire_leaves_no_ghost_and_a_plain_re_read_does() {
    let (settled, control) = (ghosts(true).await, ghosts(false).await);
    println!("late requests: {settled}/{ROUNDS} ghosts settled, {control}/{ROUNDS} re-read only");
    assert_eq!(settled, 0);
    assert!(control > ROUNDS / 2, "the fault did not bite: the test shows nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_whose_reply_was_lost_is_given_back() {
    for _ in 0..5 {
        let (relay, pod, at) = warm().await;
        let config = mk_config(TTL);
        relay.faults.lose_reply.store(1, SeqCst);
        let got = pod.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
        assert!(matches!(got, Err(BackendError::Unavailable(_))), "not settled");
        assert_eq!(relay.faults.fired.load(SeqCst), 1);
        let view = pod.locks.query(&at, &config).await.unwrap();
        assert!(view.holder.is_none(), "a ghost holds it");
        assert!(view.last_fence.is_some(), "the request never landed: the test shows nothing");
    }
}

/// The same request again finds the grant that it got but never heard of, and counts it anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_adopts_the_grant_whose_reply_was_lost() {
    let (relay, pod, at) = warm().await;
    let config = mk_config(TTL);
    let request = pod.request(&config, &HoldId::random());
    relay.faults.lose_reply.store(1, SeqCst);
    let lost = pod.locks.acquire(&at, &request).await;
    assert!(matches!(lost, Err(BackendError::Unknown(_))), "{lost:?}");
    let Ok(Attempt::Granted(first)) = pod.locks.acquire(&at, &request).await else {
        panic!("the retry was not granted")
    };
    let Ok(Attempt::Granted(again)) = pod.locks.acquire(&at, &request).await else {
        panic!("the second retry was not granted")
    };
    assert_eq!(first.fence, again.fence);
    assert_eq!(pod.sees(&at, &config).await.unwrap().1, first.fence);
}

/// Whoever waits may have the lock before it is known what a forced release has done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_release_whose_reply_was_lost_has_not_found_nothing() {
    let config = mk_config(Duration::from_secs(20));
    for _ in 0..8 {
        let (relay, operator, at) = warm().await;
        let (holder, next) = (Sidecar::new(plane(), "a").await, Sidecar::new(plane(), "b").await);
        let held = holder.hold(&at, &config, &HoldId::random()).await;
        let hold = HoldId::random();
        let waiting = next.hold(&at, &config, &hold);
        let force = async {
            eventually("one waits", async || {
                next.locks.query(&at, &config).await.unwrap().waiters == 1
            })
            .await;
            // It is read over this connection before it is written.
            operator.locks.query(&at, &config).await.unwrap();
            relay.faults.lose_reply.store(1, SeqCst);
            let which = Which::UpTo(held.fence);
            operator.locks.force_release_holds(&at, &config, which).await
        };
        let (granted, forced) = tokio::join!(waiting, force);
        assert!(granted.fence > held.fence);
        assert_eq!(relay.faults.fired.load(SeqCst), 1, "no reply was lost");
        match forced {
            Ok(taken) => {
                assert_eq!(taken.iter().map(|t| t.fence).collect::<Vec<_>>(), [held.fence])
            }
            Err(error) => assert!(matches!(error, BackendError::Unknown(_)), "{error}"),
        }
    }
}

/// A cancelled hold is refused, and what it had is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_hold_stays_cancelled() {
    let (_relay, pod, at) = warm().await;
    let config = mk_config(TTL);
    let request = pod.request(&config, &HoldId::random());
    assert!(matches!(pod.locks.acquire(&at, &request).await, Ok(Attempt::Granted(_))));
    pod.locks.cancel(&at, &config, &request.hold).await.unwrap();
    assert_eq!(pod.sees(&at, &config).await, None);
    assert_eq!(pod.locks.acquire(&at, &request).await.unwrap(), Attempt::Cancelled);
    assert_eq!(pod.sees(&at, &config).await, None);
}
