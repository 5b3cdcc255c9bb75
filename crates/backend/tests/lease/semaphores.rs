//! Semaphores on Leases: over all slots of a key fences grow, nothing is granted twice, and no more is
//! held than there is.

use std::{collections::BTreeSet, sync::Arc, sync::atomic::Ordering::SeqCst, time::Duration};

use holdfast_backend::{
    lease::{LeaseClient, LeaseLocks, LeaseSemaphores, names},
    waiter::{Acquisition, HeldLock, LockClient},
};
use holdfast_core::{
    Address, BackendError, Fence, HoldId, Kind, SystemClock,
    lock::{Attempt, HolderView, LockBackend, LockConfig, Renewal, Which},
    semaphore::slots::MAX_SLOTS,
};
use kube::api::PostParams;

use crate::{
    apiserver::ApiServer,
    fixture::{Sidecar, allow, eventually, fresh, leases, mk_config, plane},
    relay::Relay,
};

mod histories;
mod open;

const TTL: Duration = Duration::from_secs(15);

/// One pod, with its semaphores.
struct Pod {
    sidecar: Sidecar,
    permits: Arc<LeaseSemaphores>,
    client: Arc<LockClient>,
}

impl Pod {
    async fn new(name: &str) -> Self {
        Self::through(name, plane().port()).await
    }

    async fn through(name: &str, port: u16) -> Self {
        Self::of(Sidecar::through(plane(), name, port).await)
    }

    fn of(sidecar: Sidecar) -> Self {
        let permits = LeaseSemaphores::beside(&sidecar.locks);
        let client = LockClient::new(
            permits.clone(),
            sidecar.hub.clone(),
            Arc::new(SystemClock),
            sidecar.session.clone(),
        );
        Pod { sidecar, permits, client }
    }

    /// The same pod, its process started again.
    async fn restarted(&self) -> Self {
        let mut next = Sidecar::new(plane(), self.sidecar.name.as_str()).await;
        next.session = self.sidecar.session.clone();
        Self::of(next)
    }

    async fn acquire(
        &self,
        at: &Address,
        config: &Arc<LockConfig>,
        hold: &HoldId,
        wait: Duration,
    ) -> Result<Acquisition, BackendError> {
        self.client.acquire(at, self.sidecar.request(config, hold), wait, true).await
    }

    async fn hold(&self, at: &Address, config: &Arc<LockConfig>) -> (HoldId, HeldLock) {
        let hold = HoldId::random();
        match self.acquire(at, config, &hold, Duration::from_secs(20)).await {
            Ok(Acquisition::Held(held)) => (hold, held),
            Ok(_) => panic!("{} did not get {at}", self.sidecar.name),
            Err(error) => panic!("{} did not get {at}: {error}", self.sidecar.name),
        }
    }

    async fn release(&self, at: &Address, config: &LockConfig, hold: &HoldId) {
        self.permits.release(at, config, hold).await.unwrap();
    }

    async fn used(&self, at: &Address, config: &LockConfig) -> u32 {
        self.permits.query(at, config).await.unwrap().used
    }
}

fn mk_class(permits: u32, ttl: Duration) -> Arc<LockConfig> {
    Arc::new(LockConfig { permits, ..LockConfig::clone(&mk_config(ttl)) })
}

fn slot(at: &Address, number: u32) -> String {
    names::slot_name(at.kind, &at.class, &at.key, number)
}

async fn create(server: &ApiServer, at: &Address, number: u32) {
    let lease = names::unheld_slot(&at.namespace, at.kind, &at.class, &at.key, number);
    leases(server).await.create(&PostParams::default(), &lease).await.unwrap();
}

/// A key with so many slots, all unheld.
async fn mk_slots(permits: u32) -> Address {
    let at = Address { kind: Kind::Semaphore, ..fresh(plane()).await };
    for number in 0..permits {
        create(plane(), &at, number).await;
    }
    at
}

/// All requests on the slots of a key so far.
fn requests(at: &Address, permits: u32) -> Vec<String> {
    (0..permits).flat_map(|number| plane().requests(&slot(at, number))).collect()
}

/// The version of the one slot that is left has not moved since it was made, and is older than all
/// fences given since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_free_for_long_gives_a_higher_fence_than_all_grants_before() {
    let (at, config) = (mk_slots(3).await, mk_class(3, TTL));
    let b = Pod::new("b").await;
    // It has seen every slot free, and nothing since.
    assert_eq!(b.used(&at, &config).await, 0);
    let a = Pod::new("a").await;
    let mut last = Fence::new(0);
    for _ in 0..3 {
        let (hold, held) = a.hold(&at, &config).await;
        assert!(held.fence > last);
        last = held.fence;
        a.release(&at, &config, &hold).await;
    }
    let mut given = BTreeSet::new();
    for pod in [&a, &b, &a] {
        let (_, held) = pod.hold(&at, &config).await;
        assert!(held.fence > last, "{} after {last}", held.fence);
        last = held.fence;
        given.insert(held.fence);
    }
    assert_eq!(a.permits.query(&at, &config).await.unwrap().last_fence, given.last().copied());
    assert!(!matches!(
        a.permits.acquire(&at, &a.sidecar.request(&config, &HoldId::random())).await,
        Ok(Attempt::Granted(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_is_two_writes_one_after_a_wait_and_waiting_costs_a_watch_for_each_slot() {
    let (at, config) = (mk_slots(2).await, mk_class(2, TTL));
    let (a, b) = (Pod::new("a").await, Pod::new("b").await);
    // The audit log is a little behind.
    let count = async |since: usize| {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let all = requests(&at, 2).split_off(since);
        let of = |what: &str| all.iter().filter(|request| *request == what).count();
        (of("get 200"), of("patch 200"), since + all.len())
    };
    let (one, _one) = a.hold(&at, &config).await;
    // A fresh process reads each slot once. Then it makes a version, and grants on top of it.
    let (gets, patches, start) = count(0).await;
    assert_eq!((gets, patches), (2, 2));
    let (_, _two) = a.hold(&at, &config).await;
    let (gets, patches, start) = count(start).await;
    assert_eq!((gets, patches), (0, 2));
    let renewed = a.permits.renew(&at, &config, &one, TTL).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }));
    let (gets, patches, _) = count(start).await;
    assert_eq!((gets, patches), (0, 1));

    let waiting = async {
        let (hold, held) = b.hold(&at, &config).await;
        (hold, held.fence)
    };
    let release = async {
        eventually("b waits", async || {
            b.permits.beat(&at, &config, &b.sidecar.session).await.unwrap().tickets == 1
        })
        .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let start = requests(&at, 2).len();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(requests(&at, 2)[start..], [""; 0], "waiting costs requests");
        a.release(&at, &config, &one).await;
        start
    };
    let ((_, fence), start) = tokio::join!(waiting, release);
    let (_, patches, _) = count(start).await;
    assert_eq!(patches, 2, "a release, and a grant that knows its version is new");
    assert!(fence > _two.fence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_one_permit_in_a_hold_is_refused() {
    let (at, config, a) = (mk_slots(2).await, mk_class(2, TTL), Pod::new("a").await);
    let mut request = a.sidecar.request(&config, &HoldId::random());
    request.permits = 2;
    let refused = a.permits.acquire(&at, &request).await;
    assert_eq!(refused, Ok(Attempt::TooMany { most: 1 }));
    assert_eq!(a.used(&at, &config).await, 0);
}

/// A process that was started again finds its holds, on slots that its class has no more as well; and
/// they count as its session's share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_process_goes_on_with_its_holds_and_its_share() {
    let config = Arc::new(LockConfig { max_per_holder: 3, ..LockConfig::clone(&mk_class(4, TTL)) });
    let (at, a) = (mk_slots(4).await, Pod::new("a").await);
    let mut holds = Vec::new();
    for _ in 0..3 {
        holds.push(a.hold(&at, &config).await.0);
    }
    let again = a.restarted().await;
    let locked = again.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
    assert!(matches!(locked, Ok(Acquisition::Locked { .. })), "more than its share");
    let fewer = mk_class(1, TTL);
    let renamed = a.restarted().await;
    for hold in &holds {
        let renewed = renamed.permits.renew(&at, &fewer, hold, TTL).await.unwrap();
        assert!(matches!(renewed, Renewal::Renewed { .. }), "a hold was lost with its process");
    }
    // It counts them as its session's, and one less after a release.
    let locked = renamed.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
    assert!(matches!(locked, Ok(Acquisition::Locked { .. })), "more than its share");
    renamed.release(&at, &config, &holds[0]).await;
    let got = renamed.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
    assert!(matches!(got, Ok(Acquisition::Held(_))), "its share is not full any more");
}

/// Holds of one session that are asked for at the same time have no more than its share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_session_at_the_same_time_share_its_share() {
    let config = Arc::new(LockConfig { max_per_holder: 2, ..LockConfig::clone(&mk_class(6, TTL)) });
    let (at, a) = (mk_slots(6).await, Arc::new(Pod::new("a").await));
    let mut tries = tokio::task::JoinSet::new();
    for i in 0..8 {
        let (a, at, config) = (a.clone(), at.clone(), config.clone());
        tries.spawn(async move {
            let wait = Duration::from_secs(6) * u32::from(i % 2 == 0);
            a.acquire(&at, &config, &HoldId::random(), wait).await
        });
    }
    let mut held = Vec::new();
    while let Some(tried) = tries.join_next().await {
        if let Ok(Acquisition::Held(hold)) = tried.unwrap() {
            held.push(hold);
        }
    }
    assert_eq!((held.len(), a.used(&at, &config).await), (2, 2));
}

/// B3, over slots: a late request leaves no ghost on the slot that it was sent to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settled_acquire_leaves_no_ghost_on_any_slot() {
    let ttl = Duration::from_secs(2);
    let (at, config) = (mk_slots(3).await, mk_class(3, ttl));
    let relay = Relay::to(plane().port()).await;
    let pod = Pod::through("pod", relay.port).await;
    assert_eq!(pod.used(&at, &config).await, 0);
    relay.faults.hold_request_ms.store(1_500, SeqCst);
    let got = pod.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
    assert!(matches!(got, Err(BackendError::Unavailable(_))), "not settled");
    relay.delivery().await;
    assert_eq!(pod.used(&at, &config).await, 0, "a ghost");
    // A grant that landed, and whose answer was lost, is given back.
    relay.faults.lose_reply.store(1, SeqCst);
    let got = pod.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
    assert!(matches!(got, Err(BackendError::Unavailable(_))), "not settled");
    assert_eq!(pod.used(&at, &config).await, 0, "a ghost");
    // Or found by the same request again, on the same slot, once.
    relay.faults.lose_reply.store(1, SeqCst);
    let request = pod.sidecar.request(&config, &HoldId::random());
    let lost = pod.permits.acquire(&at, &request).await;
    assert!(matches!(lost, Err(BackendError::Unknown(_))), "{lost:?}");
    let mut fences = BTreeSet::new();
    for _ in 0..2 {
        match pod.permits.acquire(&at, &request).await {
            Ok(Attempt::Granted(grant)) => fences.insert(grant.fence),
            other => panic!("the retry was not granted: {other:?}"),
        };
    }
    assert_eq!((fences.len(), pod.used(&at, &config).await), (1, 1));
}

/// What an operator that crashed half-way does again: it takes what was held then, and nothing newer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_release_that_is_carried_out_again_takes_nothing_newer() {
    let (at, config) = (mk_slots(3).await, mk_class(3, TTL));
    let (a, b) = (Pod::new("a").await, Pod::new("b").await);
    let (_, _one) = a.hold(&at, &config).await;
    let (two, held) = a.hold(&at, &config).await;
    let newest = b.permits.query(&at, &config).await.unwrap().last_fence.unwrap();
    let taken = b.permits.force_release_holds(&at, &config, Which::One(_one.fence)).await.unwrap();
    assert_eq!(taken.len(), 1);
    let (three, _three) = b.hold(&at, &config).await;
    let mut taken = Vec::new();
    a.permits.force(&at, &config, Which::UpTo(newest), &mut taken).await.unwrap();
    assert_eq!(fences(&taken), [held.fence]);
    assert_eq!(a.permits.renew(&at, &config, &two, TTL).await.unwrap(), Renewal::Lost);
    let renewed = b.permits.renew(&at, &config, &three, TTL).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }), "a newer hold was taken");
}

fn fences(taken: &[HolderView]) -> Vec<Fence> {
    taken.iter().map(|view| view.fence).collect()
}

/// What has been taken is told, however the call ends, and once: also what was taken by a write whose
/// answer was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_release_tells_what_it_took_when_it_is_given_up() {
    let (at, config) = (mk_slots(3).await, mk_class(3, TTL));
    let a = Pod::new("a").await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(a.hold(&at, &config).await.1);
    }
    let all: Vec<_> = held.iter().map(|hold| hold.fence).collect();
    let relay = Relay::to(plane().port()).await;
    let operator = Pod::through("operator", relay.port).await;
    relay.faults.spare.store(1, SeqCst);
    relay.faults.hold_request_ms.store(20_000, SeqCst);
    let mut taken = Vec::new();
    tokio::select! {
        done = operator.permits.force(&at, &config, Which::All, &mut taken) => {
            panic!("the second write was not held back: {done:?}")
        }
        () = relay.fault() => {}
    }
    assert_eq!(fences(&taken), all[..1]);

    relay.faults.lose_reply.store(1, SeqCst);
    operator.permits.force(&at, &config, Which::All, &mut taken).await.unwrap();
    assert_eq!(relay.faults.fired.load(SeqCst), 2, "no answer was lost");
    assert_eq!((fences(&taken), a.used(&at, &config).await), (all, 0));
}

/// A pod with an old class meets slots that are gone, and goes on to others; without any it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_are_gone_are_passed_over() {
    let (at, config, a) = (mk_slots(1).await, mk_class(4, TTL), Pod::new("a").await);
    let (hold, _held) = a.hold(&at, &config).await;
    let locked = a.acquire(&at, &config, &HoldId::random(), Duration::ZERO).await;
    assert!(matches!(locked, Ok(Acquisition::Locked { .. })));
    // One that comes is found by who waits.
    let waiting = a.hold(&at, &config);
    let coming = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        create(plane(), &at, 3).await;
    };
    let ((_, _held), ()) = tokio::join!(waiting, coming);
    a.release(&at, &config, &hold).await;

    let nowhere = Address { kind: Kind::Semaphore, ..fresh(plane()).await };
    let absent = a.acquire(&nowhere, &config, &HoldId::random(), Duration::from_secs(5)).await;
    let Err(BackendError::NotFound(what)) = absent else { panic!("there are no slots") };
    assert!(what.contains("the operator has not created the Leases"), "{what}");
}

/// The rights that the operator gives are enough: by name, of the slots that there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_by_name_are_all_that_is_needed() {
    let (at, config, server) = (mk_slots(2).await, mk_class(2, TTL), plane());
    allow(server, "slots", &[slot(&at, 0), slot(&at, 1)]).await;
    let (clock, port) = (Arc::new(SystemClock), server.port());
    let a = Pod::of(Sidecar::with(server, "a", "sidecar", port, clock).await);
    eventually("the rights are given", async || a.permits.query(&at, &config).await.is_ok()).await;
    let (one, _one) = a.hold(&at, &config).await;
    let (_, _two) = a.hold(&at, &config).await;
    let release = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        a.release(&at, &config, &one).await;
    };
    tokio::join!(a.hold(&at, &config), release);
    // Its class says three, and its Role two.
    let more = mk_class(3, TTL);
    let locked = a.acquire(&at, &more, &HoldId::random(), Duration::ZERO).await;
    assert!(matches!(locked, Ok(Acquisition::Locked { .. })));
    // An unknown hold is looked for everywhere once, and is not an error.
    let unknown = a.restarted().await;
    let lost = unknown.permits.renew(&at, &config, &HoldId::random(), TTL).await.unwrap();
    assert_eq!((lost, MAX_SLOTS), (Renewal::Lost, 64));
    let client = LeaseClient::new(&server.config("sidecar", port).await).unwrap();
    let locks = LeaseLocks::new(client, a.sidecar.hub.clone(), Arc::new(SystemClock));
    let refused = LeaseSemaphores::beside(&locks);
    let foreign = mk_slots(1).await;
    let got = refused.acquire(&foreign, &a.sidecar.request(&config, &HoldId::random())).await;
    assert!(matches!(got, Err(BackendError::Forbidden(_))), "{got:?}");
}
