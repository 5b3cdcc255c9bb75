//! Writes whose outcome stays open, and what they count for until it is known.

use holdfast_backend::waiter::Acquisition::{Held, Locked};
use tokio::time::{Instant, sleep};

use super::*;

/// The budget of a call is half of it.
const SHORT: Duration = Duration::from_secs(10);

/// A class of two permits, one for each pod.
fn mk_shared(ttl: Duration) -> Arc<LockConfig> {
    Arc::new(LockConfig { max_per_holder: 1, ..LockConfig::clone(&mk_class(2, ttl)) })
}

/// A pod behind a relay, with a warm connection.
async fn warm(at: &Address, config: &LockConfig) -> (Relay, Pod) {
    let relay = Relay::to(plane().port()).await;
    let pod = Pod::through("shared", relay.port).await;
    assert_eq!(pod.used(at, config).await, 0);
    (relay, pod)
}

/// Lets everything through again, on new connections.
fn mend(relay: &Relay) {
    relay.faults.blackhole.store(0, SeqCst);
    relay.faults.cut.notify_waiters();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_lost_its_race_leaves_the_share_to_others() {
    let (at, config) = (mk_slots(2).await, mk_shared(SHORT));
    let (relay, pod) = warm(&at, &config).await;
    let quick = Pod::new("quick").await;
    // Its write is late for the other's, is told so, and cannot read what became of it.
    relay.faults.hold_request_ms.store(2_500, SeqCst);
    let late = async {
        let got = pod.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
        assert!(matches!(got, Err(BackendError::Unavailable(_))));
    };
    let race = async {
        relay.fault().await;
        let both = mk_class(2, Duration::from_secs(60));
        let (first, _) = quick.hold(&at, &both).await;
        let (_second, _) = quick.hold(&at, &both).await;
        // The answer to the write is on its way for long enough to lose what follows.
        relay.faults.late_reply_ms.store(1_000, SeqCst);
        eventually("the write is answered", async || relay.faults.fired.load(SeqCst) > 1).await;
        relay.faults.blackhole.store(1, SeqCst);
        sleep(Duration::from_secs(1)).await;
        first
    };
    let ((), first) = tokio::join!(late, race);
    relay.faults.late_reply_ms.store(0, SeqCst);
    mend(&relay);
    quick.release(&at, &config, &first).await;
    let got = pod.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
    assert!(matches!(got, Ok(Held(_))), "its share is taken by a write that was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_never_answered_counts_until_it_has_run_out() {
    // As long as a call may take.
    let ttl = Duration::from_secs(5);
    let (at, config) = (mk_slots(2).await, mk_shared(ttl));
    let (relay, pod) = warm(&at, &config).await;
    let begun = Instant::now();
    let request = pod.sidecar.request(&config, &HoldId::random());
    // Past the client, which would settle it for as long as it counts.
    relay.faults.lose_reply.store(1, SeqCst);
    let lost = pod.permits.acquire(&at, &request).await;
    assert!(matches!(lost, Err(BackendError::Unknown(_))), "{lost:?}");
    let another =
        async || pod.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await.unwrap();
    // It may be held.
    let got = another().await;
    assert!(matches!(got, Locked { .. }) || begun.elapsed() >= ttl * 2);
    sleep(ttl * 3).await;
    assert!(matches!(another().await, Held(_)), "it counts although it has run out");
}
