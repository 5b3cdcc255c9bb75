//! What a majority of servers makes of failures: each test has three or five redis-servers of its own,
//! and keeps their epoch as the operator does.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_backend::{
    hub::Hub,
    redis::Redlocks,
    waiter::{Acquisition, HeldLock, LockClient},
};
use holdfast_core::{
    Address, BackendError, Clock, Deadline, Fence, HoldId, SessionId, Stamp, SystemClock,
    lock::{Acquire, LockBackend, LockConfig, Release, Renewal},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use crate::{
    fixture::{NAMESPACE, eventually, mk_address, mk_config, mk_redis_at},
    server::RedisServer,
    servers::Servers,
};

const SOON: Duration = Duration::from_secs(10);
/// How long the first hold lasts when a server loses its memory.
const FIRST_MS: u64 = 10_000;

/// A pod.
struct Pod {
    session: SessionId,
    locks: Arc<Redlocks>,
    client: Arc<LockClient>,
}

impl Pod {
    async fn of(servers: &Servers) -> Self {
        Self::new(|session, hub, clock| servers.connect(session, hub, clock))
    }

    /// One that would wait for a server for longer than any test here does.
    async fn patient(servers: &Servers) -> Self {
        let (config, epoch) = (mk_redis_at(&servers.addresses[0]), servers.epoch.subscribe());
        Self::new(|session, hub, clock| {
            let who = (session, hub, clock);
            Redlocks::connect(&config, &servers.addresses, NAMESPACE, who, &epoch).unwrap()
        })
    }

    fn new(connect: impl FnOnce(SessionId, Arc<Hub>, Arc<dyn Clock>) -> Arc<Redlocks>) -> Self {
        let (session, hub) = (SessionId::random(), Hub::new());
        let locks = connect(session.clone(), hub.clone(), Arc::new(SystemClock));
        let clock = Arc::new(SystemClock);
        let client = LockClient::new(locks.clone(), hub, clock, session.clone());
        Pod { session, locks, client }
    }

    fn request(&self, config: &Arc<LockConfig>, hold: &HoldId) -> Acquire {
        Acquire {
            config: config.clone(),
            hold: hold.clone(),
            session: self.session.clone(),
            holder: holdfast_core::Holder::new("pod").unwrap(),
            ttl: Duration::from_millis(config.ttl_ms),
            max_hold: Duration::ZERO,
            enqueue: false,
            permits: 1,
        }
    }

    async fn acquire(
        &self,
        at: &Address,
        config: &Arc<LockConfig>,
        hold: &HoldId,
        wait: Duration,
    ) -> Result<Acquisition, BackendError> {
        self.client.acquire(at, self.request(config, hold), wait, true).await
    }

    async fn hold(&self, at: &Address, config: &Arc<LockConfig>, hold: &HoldId) -> HeldLock {
        match self.acquire(at, config, hold, SOON).await {
            Ok(Acquisition::Held(held)) => held,
            Ok(_) => panic!("{at} is held by another"),
            Err(error) => panic!("no grant of {at}: {error}"),
        }
    }

    /// Tries once; the fence, if it was granted.
    async fn attempt(&self, at: &Address, config: &Arc<LockConfig>) -> Option<Fence> {
        match self.acquire(at, config, &HoldId::random(), Duration::ZERO).await {
            Ok(Acquisition::Held(held)) => Some(held.fence),
            _ => None,
        }
    }

    /// Acquires and releases; the fence.
    async fn fence(&self, at: &Address, config: &Arc<LockConfig>) -> Fence {
        let hold = HoldId::random();
        let held = self.hold(at, config, &hold).await;
        self.locks.release(at, config, &hold).await.unwrap();
        held.fence
    }
}

fn class(ttl_ms: u64) -> Arc<LockConfig> {
    Arc::new(LockConfig { ttl_ms, ..(*mk_config()).clone() })
}

async fn start(count: usize) -> Servers {
    Servers::start(count, NAMESPACE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_minority_changes_nothing_and_a_dead_majority_grants_nothing() {
    for count in [3, 5] {
        let servers = start(count).await;
        let (a, b) = (Pod::of(&servers).await, Pod::of(&servers).await);
        let (at, config) = (mk_address("a"), class(10_000));
        let mut last = a.fence(&at, &config).await;
        let hold = HoldId::random();
        for dead in 0..count / 2 {
            servers.with(dead, RedisServer::kill);
            let next = b.fence(&at, &config).await;
            assert!(next > last, "{next} after {last}");
            last = next;
        }
        let held = a.hold(&at, &config, &hold).await;
        assert!(held.fence > last);
        assert_eq!(b.attempt(&at, &config).await, None);
        let ttl = Duration::from_secs(10);
        let renewed = a.locks.renew(&at, &config, &hold, ttl).await.unwrap();
        assert!(matches!(renewed, Renewal::Renewed { .. }));
        assert_eq!(a.locks.release(&at, &config, &hold).await, Ok(Release::Released));

        servers.with(count / 2, RedisServer::kill);
        let asked = Instant::now();
        let refused = b.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
        let error = eventually("an error of few words", async || {
            // A broken connection is of unknown outcome once.
            match b.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await {
                Err(error) if error.to_string().contains("are needed") => Some(error),
                Err(_) => None,
                Ok(_) => panic!("granted without a majority"),
            }
        })
        .await;
        assert!(refused.is_err());
        assert_eq!(error.code(), "backend_unavailable", "{error}");
        let needed = format!("{} of {count} servers vote now", count / 2);
        assert!(error.to_string().contains(&needed), "{error}");
        println!("{error} (after {:?})", asked.elapsed());
        assert!(b.locks.query(&at, &config).await.is_err());
    }
}

/// One server loses its memory while a hold lasts that is on it and one other. What a second pod gets
/// meanwhile, the first hold, and what goes on.
async fn amnesia(is_delayed: bool) -> (Option<Fence>, Fence, Servers, Pod, Address) {
    let servers = start(3).await;
    let (a, b) = (Pod::of(&servers).await, Pod::of(&servers).await);
    let (at, config) = (mk_address("a"), class(FIRST_MS));
    // The third server never hears of the hold.
    servers.with(2, RedisServer::kill);
    let hold = HoldId::random();
    let fence = a.hold(&at, &config, &hold).await.fence;
    servers.with(2, RedisServer::restart);
    servers.open(2, &[0, 1, 2]).await;
    let (sent, ttl) = (SystemClock.now(), Duration::from_millis(config.ttl_ms));
    let deadline = match a.locks.renew(&at, &config, &hold, ttl).await {
        Ok(Renewal::Renewed { ttl }) => Deadline::new(sent, ttl),
        other => panic!("not renewed: {other:?}"),
    };
    servers.with(1, RedisServer::restart);
    servers.open(3, if is_delayed { &[0, 2] } else { &[0, 1, 2] }).await;
    // Without the delay a grant ends it sooner.
    let until = Instant::now() + Duration::from_secs(if is_delayed { 1 } else { 6 });
    let mut second = None;
    while second.is_none() && Instant::now() < until {
        second = b.attempt(&at, &config).await;
        sleep(Duration::from_millis(20)).await;
    }
    assert!(!deadline.passed(SystemClock.now()), "the first hold was over already");
    (second, fence, servers, b, at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_stays_away_until_every_hold_has_run_out() {
    let (second, first, servers, b, at) = amnesia(true).await;
    assert_eq!(second, None, "granted although another trusts its hold");
    // What the operator does after the longest time to live.
    sleep(Duration::from_millis(FIRST_MS)).await;
    servers.open(3, &[0, 1, 2]).await;
    let next = b.fence(&at, &class(FIRST_MS)).await;
    assert!(next > first, "{next} after {first}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_delay_two_hold_at_once() {
    let (second, first, ..) = amnesia(false).await;
    let second = second.expect("the control shows nothing");
    // The fence of the second is higher all the same: its epoch is.
    assert!(second > first, "{second} after {first}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_holds_up_nobody() {
    let servers = start(3).await;
    let pod = Pod::of(&servers).await;
    let (at, config) = (mk_address("a"), class(20_000));
    let warm = pod.fence(&at, &config).await;
    servers.with(1, |server| server.pause(true));
    let started = Instant::now();
    let mut last = warm;
    for _ in 0..20 {
        let next = pod.fence(&at, &config).await;
        assert!(next > last);
        last = next;
    }
    let taken = started.elapsed();
    println!("20 grants and releases beside a server that hangs: {taken:?}");
    // A twentieth of the time to live each would be twenty seconds.
    assert!(taken < Duration::from_secs(10), "{taken:?}");
    // A refusal needs to know of all, but waits for its share only.
    let hold = HoldId::random();
    let held = pod.hold(&at, &config, &hold).await;
    let started = Instant::now();
    let other = Pod::patient(&servers).await;
    assert_eq!(other.attempt(&at, &config).await, None);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(pod.locks.release(&at, &config, &hold).await, Ok(Release::Released));
    servers.with(1, |server| server.pause(false));
    // What reached it late does not keep the lock: it was cancelled.
    let next = other.fence(&at, &config).await;
    assert!(next > held.fence);
    eventually("the server is free", async || {
        let view = pod.locks.query(&at, &config).await.ok()?;
        (view.holder.is_none() && pod.attempt(&at, &config).await.is_some()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_hears_of_a_release_and_does_not_ask_all_the_time() {
    let servers = start(3).await;
    let (a, b) = (Pod::of(&servers).await, Pod::of(&servers).await);
    assert!(b.locks.subscribed(SOON).await);
    let (at, config) = (mk_address("a"), class(30_000));
    let hold = HoldId::random();
    a.hold(&at, &config, &hold).await;
    let calls = async |servers: &Servers| {
        let mut calls = 0;
        for address in &servers.addresses {
            let url = format!("redis://{address}/");
            let info: String =
                crate::fixture::command_as(&url, &["INFO", "commandstats"]).await.unwrap();
            let line = info.lines().find(|line| line.starts_with("cmdstat_fcall:"));
            let count = line.and_then(|line| line.split(['=', ',']).nth(1)).unwrap_or("0");
            calls += count.parse::<u64>().unwrap();
        }
        calls
    };
    let waiting = tokio::spawn({
        let (at, config) = (at.clone(), config.clone());
        async move {
            let second = HoldId::random();
            let held = b.hold(&at, &config, &second).await;
            (Instant::now(), held.fence, b)
        }
    });
    sleep(Duration::from_secs(1)).await;
    let before = calls(&servers).await;
    sleep(Duration::from_secs(3)).await;
    let polled = calls(&servers).await - before;
    let released = Instant::now();
    assert_eq!(a.locks.release(&at, &config, &hold).await, Ok(Release::Released));
    let (at_last, _, _b) = waiting.await.unwrap();
    let took = at_last - released;
    println!("handed over in {took:?}; {polled} calls to three servers in 3 s of waiting");
    assert!(took < Duration::from_millis(500), "{took:?}");
    // Delays are drawn between 50 ms and three times the last one: that makes four rounds of three calls
    // on average, and more than 25 rounds once in 50 000 times. Would they not grow, it were 30.
    assert!(polled <= 75, "{polled} calls while nothing changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_goes_on_with_higher_fences_and_a_hold_keeps_its_own() {
    let servers = start(3).await;
    let pod = Pod::of(&servers).await;
    let (at, config) = (mk_address("a"), class(20_000));
    let hold = HoldId::random();
    let held = pod.hold(&at, &config, &hold).await;
    servers.with(0, RedisServer::restart);
    // As the operator does: the others at once, in the next number; the one that forgot stays away.
    servers.open(2, &[1, 2]).await;
    let again = pod.hold(&at, &config, &hold).await;
    assert!(again.fence >= held.fence, "{} after {}", again.fence, held.fence);
    let ttl = Duration::from_secs(20);
    let renewed = pod.locks.renew(&at, &config, &hold, ttl).await;
    assert!(matches!(renewed, Ok(Renewal::Renewed { .. })), "{renewed:?}");
    servers.open(2, &[0, 1, 2]).await;
    assert_eq!(pod.locks.release(&at, &config, &hold).await, Ok(Release::Released));
    let next = pod.fence(&at, &config).await;
    assert!(next > again.fence && next.epoch() == 2, "{next} after {}", again.fence);
    assert_eq!(pod.locks.newest_fence(&at, &config).await, Ok(next));
}

// === Random histories, with servers that stop and crash ===

#[derive(Clone, Debug)]
struct Record {
    fence: Fence,
    asked: Stamp,
    granted: Stamp,
    ended: Stamp,
}

/// What is wrong with a history, if anything is: fences twice or out of order, or two who trusted
/// their holds at once.
fn check(records: &[Record]) -> Result<(), String> {
    let mut by_fence = records.to_vec();
    by_fence.sort_by_key(|record| record.fence);
    for pair in by_fence.windows(2) {
        let (one, next) = (&pair[0], &pair[1]);
        if one.fence == next.fence {
            return Err(format!("fence {} was granted twice", one.fence));
        }
        if next.granted.boot_ns < one.asked.boot_ns {
            return Err(format!("{} was granted before {} was asked for", next.fence, one.fence));
        }
        if next.granted.boot_ns < one.ended.boot_ns {
            return Err(format!("{} and {} were trusted at once", one.fence, next.fence));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_legal_while_servers_hang_crash_and_forget() {
    let servers = Arc::new(start(3).await);
    let (at, config) = (mk_address("a"), class(400));
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let records = Arc::new(Mutex::new(Vec::new()));
    let until = Instant::now() + Duration::from_secs(20);
    let mut lives = tokio::task::JoinSet::new();
    for n in 0..4 {
        let pod = Pod::of(&servers).await;
        let (at, config, records) = (at.clone(), config.clone(), records.clone());
        lives.spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed + n);
            while Instant::now() < until {
                let (hold, clock) = (HoldId::random(), SystemClock);
                let wait = Duration::from_millis(rng.random_range(0..2) * rng.random_range(1..900));
                let asked = clock.now();
                let Ok(Acquisition::Held(held)) = pod.acquire(&at, &config, &hold, wait).await
                else {
                    sleep(Duration::from_millis(rng.random_range(0..20))).await;
                    continue;
                };
                let granted = clock.now();
                sleep(Duration::from_millis(rng.random_range(0..30))).await;
                let left = held.deadline.remaining(clock.now());
                let now = clock.now();
                let ended = if left.is_zero() {
                    granted
                } else if rng.random_bool(0.2) {
                    // It dies, and trusts its hold to the last.
                    Stamp { boot_ns: now.boot_ns + left.as_nanos() as u64, ..now }
                } else {
                    let _ = pod.locks.release(&at, &config, &hold).await;
                    now
                };
                records.lock().unwrap().push(Record { fence: held.fence, asked, granted, ended });
            }
        });
    }
    let mut rng = StdRng::seed_from_u64(!seed);
    let (mut number, mut restarts) = (1, 0);
    while Instant::now() + Duration::from_secs(2) < until {
        sleep(Duration::from_millis(rng.random_range(100..600))).await;
        let server = rng.random_range(0..3);
        if rng.random_bool(0.6) {
            servers.with(server, |server| server.pause(true));
            sleep(Duration::from_millis(rng.random_range(10..700))).await;
            servers.with(server, |server| server.pause(false));
        } else {
            servers.with(server, RedisServer::restart);
            restarts += 1;
            // Seen by the operator, and later, when every hold has run out, opened again.
            number += 1;
            let others: Vec<usize> = (0..3).filter(|other| *other != server).collect();
            servers.open(number, &others).await;
            sleep(Duration::from_millis(500)).await;
            servers.open(number, &[0, 1, 2]).await;
        }
    }
    while let Some(done) = lives.join_next().await {
        done.unwrap();
    }
    let records = records.lock().unwrap();
    println!("{} grants, {restarts} servers lost their memory", records.len());
    assert!(records.len() >= 30 && restarts > 0, "too little happened");
    if let Err(what) = check(&records) {
        panic!("seed {seed}: {what}");
    }
}
