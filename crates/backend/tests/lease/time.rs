//! B1, B2, B6, B7: late replies, dead peers, a store that stands still, clocks that are wrong.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use holdfast_backend::waiter::Acquisition;
use holdfast_core::{
    BackendError, Clock, Deadline, HoldId, Stamp, SystemClock,
    lock::{Attempt, LockBackend, LockConfig, Renewal},
};
use tokio::time::Instant;

use crate::{
    apiserver::ApiServer,
    fixture::{Sidecar, fresh, mk_config, plane},
    relay::Relay,
};

/// B1: however late the replies to its renewals are, a holder's own deadline is over before another
/// is granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_replies_never_make_a_holder_trust_its_hold_too_long() {
    let server = plane();
    let ttl = Duration::from_secs(3);
    let mut runs = tokio::task::JoinSet::new();
    for late_ms in [0, 200, 450, 800, 2_000, 4_000] {
        runs.spawn(async move {
            let (at, config) = (fresh(server).await, mk_config(ttl));
            let relay = Relay::to(server.port()).await;
            let a = Sidecar::through(server, "a", relay.port).await;
            let b = Sidecar::new(server, "b").await;
            let hold = HoldId::random();
            let mut deadline = a.hold(&at, &config, &hold).await.deadline;
            relay.faults.late_reply_ms.store(late_ms, SeqCst);
            let holder = async {
                for _ in 0..5 {
                    tokio::time::sleep(ttl / 6).await;
                    let sent = SystemClock.now();
                    let renewed = a.locks.renew(&at, &config, &hold, ttl).await;
                    if let Ok(Renewal::Renewed { ttl }) = renewed {
                        deadline = Deadline::new(sent, ttl);
                    }
                }
                deadline
            };
            let second = HoldId::random();
            let (deadline, next) = tokio::join!(holder, async {
                b.hold(&at, &config, &second).await;
                SystemClock.now()
            });
            let passed = deadline.passed(next);
            (late_ms, passed)
        });
    }
    while let Some(run) = runs.join_next().await {
        let (late_ms, passed) = run.unwrap();
        assert!(passed, "replies {late_ms} ms late: two trusted it at once");
    }
}

/// B2: a peer that is silent in mid-request costs a renewal its budget, a sixth of the time to live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_api_server_costs_a_renewal_its_budget_and_no_more() {
    let server = plane();
    let ttl = Duration::from_secs(6);
    let (at, config) = (fresh(server).await, mk_config(ttl));
    let relay = Relay::to(server.port()).await;
    let (pod, hold) = (Sidecar::through(server, "a", relay.port).await, HoldId::random());
    let held = pod.hold(&at, &config, &hold).await;
    relay.faults.blackhole.store(1, SeqCst);
    for _ in 0..3 {
        let start = Instant::now();
        let renewed = pod.locks.renew(&at, &config, &hold, ttl).await;
        assert!(matches!(renewed, Err(BackendError::Unknown(_))), "{renewed:?}");
        let took = start.elapsed();
        // Another one would take a second budget.
        assert!(took < ttl / 3, "{took:?}");
    }
    assert!(relay.faults.fired.load(SeqCst) > 0, "the fault did not fire");
    assert!(!held.deadline.passed(SystemClock.now()), "there was time for three tries");
    // The peer is back: the next try makes a new connection and finds its hold again.
    relay.faults.blackhole.store(0, SeqCst);
    let renewed = pod.locks.renew(&at, &config, &hold, ttl).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }));
}

/// B6: with etcd standing still, caches still answer; nobody is granted anything by them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_takes_a_live_hold_over_while_etcd_stands_still() {
    let server = ApiServer::start();
    server.with_policy();
    let ttl = Duration::from_secs(2);
    let config = mk_config(ttl);
    let (a, b) = (Sidecar::new(&server, "a").await, Sidecar::new(&server, "b").await);
    for round in 0..3 {
        let (at, one, two) = (fresh(&server).await, HoldId::random(), HoldId::random());
        let held = a.hold(&at, &config, &one).await;
        let mut deadline = held.deadline;
        let holder = async {
            let mut paused = false;
            for step in 0..24 {
                if step == 4 || step == 14 {
                    paused = !paused;
                    server.pause_etcd(paused);
                }
                tokio::time::sleep(ttl / 4).await;
                let sent = SystemClock.now();
                // A holder whose deadline has passed does not come back.
                if deadline.passed(sent) {
                    continue;
                }
                if let Ok(Renewal::Renewed { ttl }) = a.locks.renew(&at, &config, &one, ttl).await {
                    deadline = Deadline::new(sent, ttl);
                }
            }
            deadline
        };
        let contender = async {
            let got = b.acquire(&at, &config, &two, Duration::from_secs(25)).await;
            let Ok(Acquisition::Held(next)) = got else { panic!("never granted") };
            (next.fence, SystemClock.now())
        };
        let (deadline, (fence, granted)) = tokio::join!(holder, contender);
        assert!(deadline.passed(granted), "round {round}: a live hold was taken over");
        assert!(fence > held.fence);
    }
}

/// A clock that is off: the wall by an hour either way, and stepping.
struct Wrong {
    wall_ms: i64,
}

impl Clock for Wrong {
    fn now(&self) -> Stamp {
        let mut now = SystemClock.now();
        // It also jumps to and fro by minutes.
        let step_ms = (now.boot_ns / 700_000_000 % 3) as i64 * 90_000;
        let off_ns = (self.wall_ms + step_ms) * 1_000_000;
        now.real_ns = now.real_ns.saturating_add_signed(off_ns);
        now
    }
}

/// B7: contenders whose clocks are an hour off and whose configuration names other durations take no
/// live hold over, and take an expired one when the *record's* duration has passed on their side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_clocks_and_other_durations_lead_to_no_early_takeover() {
    let server = plane();
    let (at, ttl) = (fresh(server).await, Duration::from_secs(6));
    let config = mk_config(ttl);
    let (holder, hold) = (Sidecar::new(server, "holder").await, HoldId::random());
    holder.hold(&at, &config, &hold).await;
    let mut contenders = tokio::task::JoinSet::new();
    for (wall_ms, own_ttl_ms) in
        [(3_600_000, 3_000), (-3_600_000, 3_000), (3_600_000, 60_000), (-3_600_000, 60_000)]
    {
        let clock = Arc::new(Wrong { wall_ms });
        let pod = Sidecar::with(server, "contender", "admin", server.port(), clock).await;
        let own = Arc::new(LockConfig { ttl_ms: own_ttl_ms, ..LockConfig::clone(&config) });
        let at = at.clone();
        contenders.spawn(async move {
            let request = pod.request(&own, &HoldId::random());
            let queued = pod.request(&own, &HoldId::random());
            let _inbox = pod.hub.register(&queued.hold);
            let queued = holdfast_core::lock::Acquire { enqueue: true, ..queued };
            let stands = pod.locks.acquire(&at, &queued).await.unwrap();
            assert!(!matches!(stands, Attempt::Granted(_)), "taken over at once");
            for _ in 0..40 {
                tokio::time::sleep(Duration::from_millis(250)).await;
                let tried = pod.locks.acquire(&at, &request).await.unwrap();
                assert!(!matches!(tried, Attempt::Granted(_)), "taken over from a live holder");
            }
        });
    }
    // Renewed at a third of the duration, as holders do; each renewal must find its hold.
    let renewals = async {
        let mut last = SystemClock.now();
        for _ in 0..6 {
            tokio::time::sleep(ttl / 3).await;
            last = SystemClock.now();
            let renewed = holder.locks.renew(&at, &config, &hold, ttl).await.unwrap();
            assert!(matches!(renewed, Renewal::Renewed { .. }), "taken over");
        }
        last
    };
    let (last, ()) = tokio::join!(renewals, async {
        while let Some(contender) = contenders.join_next().await {
            contender.unwrap();
        }
    });
    // Now it stops to renew. One with a short duration of its own still waits for the record's.
    let clock = Arc::new(Wrong { wall_ms: 3_600_000 });
    let pod = Sidecar::with(server, "next", "admin", server.port(), clock).await;
    let own = Arc::new(LockConfig { ttl_ms: 3_000, ..LockConfig::clone(&config) });
    let next = HoldId::random();
    // Its own deadlines are useless with such a clock; what counts is when the store granted it.
    let request = holdfast_core::lock::Acquire { enqueue: true, ..pod.request(&own, &next) };
    let mut inbox = pod.hub.register(&next);
    if !matches!(pod.locks.acquire(&at, &request).await.unwrap(), Attempt::Granted(_)) {
        inbox.recv().await;
    }
    assert!(SystemClock.now().since(last) >= ttl, "too early");
}
