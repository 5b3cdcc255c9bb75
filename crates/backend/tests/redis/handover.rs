//! Hand-over by push, and without it (C7, C8).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt;
use holdfast_backend::waiter::{Acquisition, LockClient};
use holdfast_core::{
    HoldId, SystemClock,
    lock::{Acquire, Attempt, LockBackend, LockConfig, Push, Release, Renewal},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::fixture::{Session, Store, TTL, eventually, mk_address, mk_config, mk_redis_at, pushed};

#[tokio::test]
async fn a_lock_goes_round() {
    let store = Store::start(&[]).await;
    let (one, two) = (store.session(), store.session());
    assert!(two.locks.subscribed(Duration::from_secs(5)).await);
    let (at, config) = (mk_address("order/1 é"), mk_config());
    let (first, second) = (HoldId::random(), HoldId::random());

    let granted = one.grant(&at, &config, &first).await;
    assert_eq!(one.grant(&at, &config, &first).await.fence, granted.fence);
    let mut inbox = two.hub.register(&second);
    let queued = two.try_acquire(&at, &config, &second).await.unwrap();
    assert_eq!(queued, Attempt::Queued { position: 1 });
    let view = one.locks.query(&at, &config).await.unwrap();
    let holder = view.holder.unwrap();
    assert_eq!((holder.holder.as_str(), holder.fence), ("pod-é", granted.fence));
    assert_eq!((view.waiters, view.queue.len()), (1, 1));
    let listed = one.locks.list(at.kind, "shop", &at.class, &config, 10).await.unwrap();
    assert_eq!(listed.iter().map(|(key, _)| key).collect::<Vec<_>>(), [&at.key]);

    assert_eq!(one.locks.release(&at, &config, &first).await.unwrap(), Release::Released);
    let Push::Granted { grant, .. } = pushed(&mut inbox).await else { panic!("no grant") };
    assert!(grant.fence > granted.fence && !grant.claimed);
    let renewed = two.locks.renew(&at, &config, &second, Duration::from_secs(9)).await.unwrap();
    assert_eq!(renewed, Renewal::Renewed { ttl: Duration::from_secs(9) });
    assert_eq!(one.locks.release(&at, &config, &first).await.unwrap(), Release::NotHeld);

    let taken = one.locks.force_release(&at, &config).await.unwrap().unwrap();
    assert_eq!(taken.fence, grant.fence);
    assert_eq!(pushed(&mut inbox).await, Push::Lost);
    assert_eq!(two.locks.renew(&at, &config, &second, taken.ttl).await.unwrap(), Renewal::Lost);
    one.locks.cancel(&at, &config, &first).await.unwrap();
    assert_eq!(one.try_acquire(&at, &config, &first).await.unwrap(), Attempt::Cancelled);
    assert!(one.fence(&at, &config).await > grant.fence);
    assert!(one.locks.list(at.kind, "shop", &at.class, &config, 10).await.unwrap().is_empty());
}

/// A pod that waits as pods do: pushes, and beats as the safety net.
struct Pod {
    session: Session,
    client: Arc<LockClient>,
}

impl Pod {
    async fn new(session: Session) -> Self {
        assert!(session.locks.subscribed(Duration::from_secs(5)).await);
        let clock = Arc::new(SystemClock);
        let (id, hub) = (session.id.clone(), session.hub.clone());
        let client = LockClient::new(session.locks.clone(), hub, clock, id);
        Pod { session, client }
    }
}

/// Hands a lock to and fro; how long each hand-over took, sorted. However short the holds of the
/// class are, who has one keeps it until somebody waits.
async fn hand_over(pods: &[Pod; 2], config: &Arc<LockConfig>, rounds: usize) -> Vec<Duration> {
    let at = mk_address("ball");
    let mut held = HoldId::random();
    let request =
        |pod: &Pod, hold: &HoldId| Acquire { ttl: TTL, ..pod.session.request(config, hold) };
    let first = pods[0].session.locks.acquire(&at, &request(&pods[0], &held)).await;
    assert!(matches!(first, Ok(Attempt::Granted(_))), "{first:?}");
    let (mut times, mut last) = (Vec::new(), None);
    for round in 0..rounds {
        let (from, to) = (&pods[round % 2], &pods[(round + 1) % 2]);
        let next = HoldId::random();
        // Claimed, since an offer does not stand for long.
        let waiting = to.client.acquire(&at, request(to, &next), TTL, true);
        let releasing = async {
            eventually("one waits", async || {
                let view = from.session.locks.query(&at, config).await.unwrap();
                (view.waiters == 1).then_some(())
            })
            .await;
            let released = Instant::now();
            from.session.locks.release(&at, config, &held).await.unwrap();
            released
        };
        let (acquired, released) =
            tokio::join!(async { (waiting.await, Instant::now()) }, releasing);
        let Ok(Acquisition::Held(lock)) = acquired.0 else { panic!("round {round}: not held") };
        assert!(Some(lock.fence) > last);
        last = Some(lock.fence);
        times.push(acquired.1.saturating_duration_since(released));
        held = next;
    }
    pods[rounds % 2].session.locks.release(&at, config, &held).await.unwrap();
    times.sort();
    times
}

/// A class whose sessions beat every 100 ms.
fn quick() -> Arc<LockConfig> {
    Arc::new(LockConfig { ttl_ms: 600, ..(*mk_config()).clone() })
}

#[tokio::test]
async fn a_release_wakes_the_first_waiter_by_push() {
    let store = Store::start(&[]).await;
    let pods = [Pod::new(store.session()).await, Pod::new(store.session()).await];
    let times = hand_over(&pods, &mk_config(), 300).await;
    println!("hand-over by push: p50 {:?}, p99 {:?}", times[150], times[297]);
    // A beat comes every five seconds here: whatever is quicker was pushed.
    assert!(times[299] < Duration::from_secs(4), "{:?}", times[299]);
    assert!(times[150] < Duration::from_millis(200), "{:?}", times[150]);
}

#[tokio::test]
async fn a_waiter_is_served_though_half_of_the_pushes_are_lost() {
    let store = Store::start(&[]).await;
    let relay = LossyRelay::start(store.server.address()).await;
    let lossy = || store.session_as(mk_redis_at(&relay.address));
    let pods = [Pod::new(lossy()).await, Pod::new(lossy()).await];
    let config = quick();
    let times = hand_over(&pods, &config, 60).await;
    let (seen, dropped) = (relay.seen.load(Relaxed), relay.dropped.load(Relaxed));
    println!(
        "{dropped} of {seen} pushes dropped; hand-over p50 {:?}, max {:?}",
        times[30], times[59]
    );
    assert!(dropped >= 15, "only {dropped} of {seen} were dropped");
    // Control: the losses did hurt.
    assert!(times[59] > Duration::from_millis(20));
    // A beat finds the offer, before the offer lapses; and where even that is late, the next one.
    assert!(times[59] < Duration::from_secs(5), "{:?}", times[59]);
}

#[tokio::test]
async fn a_waiter_is_served_though_the_listening_connection_is_killed_all_the_time() {
    let store = Store::start(&[]).await;
    let pods = [Pod::new(store.session()).await, Pod::new(store.session()).await];
    let kill = async {
        loop {
            let _: i64 = store.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    let lost = |pod: &Pod| pod.session.locks.pushes().lost_connections.load(Relaxed);
    // A quick machine is done with many rounds between two kills.
    let rounds = async {
        while pods.iter().any(|pod| lost(pod) <= 3) {
            let times = hand_over(&pods, &quick(), 10).await;
            assert!(times[9] < Duration::from_secs(5), "{:?}", times[9]);
        }
    };
    let rounds = tokio::time::timeout(Duration::from_secs(60), rounds);
    tokio::select! {
        done = rounds => done.expect("the connections are not lost"),
        () = kill => unreachable!(),
    }
}

#[tokio::test]
async fn a_release_tells_a_waiter_of_its_own_session_by_its_answer() {
    let store = Store::start(&[]).await;
    let (pod, at, config) = (store.session(), mk_address("near"), mk_config());
    let (first, second) = (HoldId::random(), HoldId::random());
    let granted = pod.grant(&at, &config, &first).await;
    let mut inbox = pod.hub.register(&second);
    let queued = pod.try_acquire(&at, &config, &second).await;
    assert_eq!(queued, Ok(Attempt::Queued { position: 1 }));

    assert_eq!(pod.locks.release(&at, &config, &first).await, Ok(Release::Released));
    let Some(Push::Granted { grant, .. }) = inbox.recv().now_or_never() else {
        panic!("not told by the time of the answer")
    };
    assert!(grant.fence > granted.fence && !grant.claimed);
    // Had the answer been lost, the release would be sent again.
    assert_eq!(pod.locks.release(&at, &config, &first).await, Ok(Release::NotHeld));
    let Some(Push::Granted { grant: again, .. }) = inbox.recv().now_or_never() else {
        panic!("not told again")
    };
    assert_eq!(again.fence, grant.fence);
    let ttl = Duration::from_secs(9);
    assert_eq!(pod.locks.renew(&at, &config, &second, ttl).await, Ok(Renewal::Renewed { ttl }));
    assert_eq!(pod.locks.release(&at, &config, &first).await, Ok(Release::NotHeld));
    assert_eq!(inbox.recv().now_or_never(), None, "told of a hold that its holder knows of");
    let info: String = store.command(&["INFO", "commandstats"]).await.unwrap();
    assert!(!info.contains("cmdstat_publish"), "{info}");
}

#[tokio::test]
async fn a_release_with_many_waiters_wakes_one() {
    let store = Store::start(&[]).await;
    let (holder, at, config) = (store.session(), mk_address("herd"), mk_config());
    let config = Arc::new(LockConfig { max_waiters: 1_000, ..(*config).clone() });
    let mut held = HoldId::random();
    holder.grant(&at, &config, &held).await;
    let waiters = store.session();
    assert!(waiters.locks.subscribed(Duration::from_secs(5)).await);
    let mut inboxes = Vec::new();
    for position in 1..=500 {
        let hold = HoldId::random();
        inboxes.push(waiters.hub.register(&hold));
        let queued = waiters.try_acquire(&at, &config, &hold).await;
        assert_eq!(queued, Ok(Attempt::Queued { position }));
    }
    let commands = async || -> u64 {
        let info: String = store.command(&["INFO", "commandstats"]).await.unwrap();
        let calls = |line: &str| line.split("calls=").nth(1)?.split(',').next()?.parse().ok();
        let mut lines = info.lines().filter(|line| line.starts_with("cmdstat_fcall:"));
        lines.next().and_then(calls).unwrap_or(0)
    };
    let before = commands().await;
    for inbox in &mut inboxes {
        holder.locks.release(&at, &config, &held).await.unwrap();
        assert!(matches!(pushed(inbox).await, Push::Granted { .. }));
        held = inbox.hold().clone();
    }
    // One call a release, one message a release: nobody else was woken, nobody asked.
    assert_eq!(commands().await - before, 500);
    assert_eq!(waiters.locks.pushes().delivered.load(Relaxed), 500);
}

// === A relay that loses pushes ===

struct LossyRelay {
    address: String,
    seen: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
}

impl LossyRelay {
    async fn start(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = LossyRelay {
            address: listener.local_addr().unwrap().to_string(),
            seen: Arc::default(),
            dropped: Arc::default(),
        };
        let (seen, dropped) = (relay.seen.clone(), relay.dropped.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&upstream).await.unwrap();
                for stream in [&near, &far] {
                    stream.set_nodelay(true).unwrap();
                }
                let ((mut near_in, mut near_out), (far_in, mut far_out)) =
                    (near.into_split(), far.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
                let (seen, dropped) = (seen.clone(), dropped.clone());
                tokio::spawn(async move {
                    lose_half(far_in, &mut near_out, &seen, &dropped).await;
                });
            }
        });
        relay
    }
}

/// Forwards all but every other message; the server writes each in one piece, here one at a time.
async fn lose_half(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    seen: &AtomicU64,
    dropped: &AtomicU64,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        if buffer[..n].starts_with(b"*3\r\n$7\r\nmessage\r\n")
            && seen.fetch_add(1, Relaxed) % 2 == 1
        {
            dropped.fetch_add(1, Relaxed);
            continue;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
