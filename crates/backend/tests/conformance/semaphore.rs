//! The behaviours of a semaphore.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use holdfast_backend::waiter::{Acquisition, HeldLock};
use holdfast_core::{
    Address, HoldId, Kind, Substrate,
    lock::{Acquire, LockConfig, Push, Release, Renewal, Which},
};
use tokio::time::{sleep, timeout};

use crate::fixture::{PermitsWorld, Sidecar, TTL, describe, eventually, fresh, mk_config};

const NOW: Duration = Duration::ZERO;

fn mk_class(world: &dyn PermitsWorld, permits: u32) -> LockConfig {
    LockConfig { permits, ..mk_config(world) }
}

async fn address(world: &dyn PermitsWorld, permits: u32) -> Address {
    let at = Address { kind: Kind::Semaphore, ..fresh(world).await };
    world.resize(&at, permits).await;
    at
}

async fn ask(
    pod: &Sidecar,
    at: &Address,
    config: &Arc<LockConfig>,
    hold: &HoldId,
    permits: u32,
    wait: Duration,
) -> Acquisition {
    let request = Acquire { permits, ..pod.request(config, hold) };
    pod.client.acquire(at, request, wait, true).await.unwrap()
}

/// Acquires what must be free, or become free in time.
async fn hold(
    pod: &Sidecar,
    at: &Address,
    config: &Arc<LockConfig>,
    permits: u32,
) -> (HoldId, HeldLock) {
    let hold = HoldId::random();
    match ask(pod, at, config, &hold, permits, TTL * 5).await {
        Acquisition::Held(held) => (hold, held),
        other => panic!("{} did not get {permits} of {at}: {}", pod.name, describe(&other)),
    }
}

/// Acquires so many permits in as few holds as can be.
async fn holds(
    world: &dyn PermitsWorld,
    pod: &Sidecar,
    at: &Address,
    config: &Arc<LockConfig>,
    permits: u32,
) -> Vec<(HoldId, HeldLock)> {
    let (mut all, mut left) = (Vec::new(), permits);
    while left > 0 {
        let some = left.min(world.heaviest());
        all.push(hold(pod, at, config, some).await);
        left -= some;
    }
    all
}

async fn is_refused(pod: &Sidecar, at: &Address, config: &Arc<LockConfig>, permits: u32) -> bool {
    let refused = ask(pod, at, config, &HoldId::random(), permits, NOW).await;
    matches!(refused, Acquisition::Locked { .. })
}

async fn waiters(pod: &Sidecar, at: &Address, config: &LockConfig, count: u32) {
    eventually("so many wait", async || {
        pod.client.backend().query(at, config).await.unwrap().waiters == count
    })
    .await;
}

pub async fn permits_in_use_are_never_more_than_there_are(world: &dyn PermitsWorld) {
    // Where holds are light, fewer permits make them meet as often, and they last longer than the
    // writes of the others take.
    let (limit, together, work_ms) = if world.heaviest() > 1 { (5, 4, 2) } else { (2, 2, 20) };
    let (at, config) = (address(world, limit).await, Arc::new(mk_class(world, limit)));
    let (in_use, most, top) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let mut pods = Vec::new();
    for name in ["a", "b", "c", "d"] {
        pods.push(world.pod(name).await);
    }
    let work = async |pod: &Sidecar, n: u32| {
        for round in 0..10 {
            let permits = ((n + round) % 4 + 1).min(world.heaviest());
            let (hold, held) = hold(pod, &at, &config, permits).await;
            let now = in_use.fetch_add(permits, SeqCst) + permits;
            assert!(now <= limit, "{now} permits are out");
            most.fetch_max(now, SeqCst);
            top.fetch_add(1, SeqCst);
            sleep(Duration::from_millis(work_ms)).await;
            in_use.fetch_sub(permits, SeqCst);
            pod.release(&at, &config, &hold).await;
            drop(held);
        }
    };
    tokio::join!(
        work(&pods[0], 0),
        work(&pods[1], 1),
        work(&pods[2], 2),
        work(&pods[3], 3),
        work(&pods[0], 2),
    );
    assert_eq!(top.into_inner(), 50);
    assert!(most.into_inner() >= together, "they never held at the same time");
    let view = pods[0].client.backend().query(&at, &config).await.unwrap();
    assert_eq!((view.used, view.holds, view.waiters), (0, 0, 0));
}

pub async fn one_release_hands_over_to_several_in_their_order(world: &dyn PermitsWorld) {
    let (at, config) = (address(world, 3).await, Arc::new(mk_class(world, 3)));
    let (a, b) = (world.pod("a").await, world.pod("b").await);
    let (all, _held) = hold(&a, &at, &config, 3).await;
    let first = hold(&b, &at, &config, 1);
    let second = async {
        waiters(&a, &at, &config, 1).await;
        hold(&a, &at, &config, 2).await
    };
    let release = async {
        waiters(&a, &at, &config, 2).await;
        a.release(&at, &config, &all).await;
    };
    let ((_, first), (_, second), ()) = tokio::join!(first, second, release);
    assert!(first.fence < second.fence, "{} before {}", first.fence, second.fence);
    let view = a.client.backend().query(&at, &config).await.unwrap();
    assert_eq!((view.used, view.holds, view.others.len()), (3, 2, 1));
}

pub async fn a_heavy_request_is_not_overtaken_by_a_light_one(world: &dyn PermitsWorld) {
    let (at, config) = (address(world, 3).await, Arc::new(mk_class(world, 3)));
    let (a, b) = (world.pod("a").await, world.pod("b").await);
    let (two, _held) = hold(&a, &at, &config, 2).await;
    let heavy = hold(&b, &at, &config, 3);
    let light = async {
        waiters(&a, &at, &config, 1).await;
        assert!(is_refused(&a, &at, &config, 1).await, "a light one overtook the heavy one");
        a.release(&at, &config, &two).await;
    };
    let ((_, held), ()) = tokio::join!(heavy, light);
    assert!(held.claimed);
}

pub async fn whoever_has_its_share_does_not_hold_up_others(world: &dyn PermitsWorld) {
    let class = LockConfig { max_per_holder: 2, ..mk_class(world, 3) };
    let (at, config) = (address(world, 3).await, Arc::new(class));
    let (a, b) = (world.pod("a").await, world.pod("b").await);
    let mine = holds(world, &a, &at, &config, 2).await;
    let more = hold(&a, &at, &config, 1);
    let others = async {
        waiters(&a, &at, &config, 1).await;
        let (hold, _held) = hold(&b, &at, &config, 1).await;
        b.release(&at, &config, &hold).await;
        a.release(&at, &config, &mine[0].0).await;
    };
    tokio::join!(more, others);
}

pub async fn permits_of_a_dead_pod_come_back(world: &dyn PermitsWorld) {
    let (at, config) = (address(world, 2).await, Arc::new(mk_class(world, 2)));
    let (a, b) = (world.pod("a").await, world.pod("b").await);
    let lost = holds(world, &a, &at, &config, 2).await;
    assert!(is_refused(&b, &at, &config, 1).await);
    let next = holds(world, &b, &at, &config, 2).await;
    assert!(next[0].1.fence > lost[lost.len() - 1].1.fence);
    for (lost, _held) in &lost {
        assert_eq!(a.renew(&at, &config, lost).await, Renewal::Lost);
        let released = a.client.backend().release(&at, &config, lost).await.unwrap();
        assert_eq!(released, Release::NotHeld, "what is lost must not free another's permits");
    }
    assert_eq!(b.client.backend().query(&at, &config).await.unwrap().used, 2);
}

pub async fn what_can_never_fit_is_refused_at_once(world: &dyn PermitsWorld) {
    let class = LockConfig { max_per_holder: 2, ..mk_class(world, 3) };
    let (at, config, a) = (address(world, 3).await, Arc::new(class), world.pod("a").await);
    let refused = ask(&a, &at, &config, &HoldId::random(), 3, TTL * 5).await;
    let most = world.heaviest().min(2);
    match refused {
        Acquisition::TooMany { most: told } => assert_eq!(told, most),
        other => panic!("{}", describe(&other)),
    }
}

pub async fn fewer_permits_take_nothing_away_and_more_are_granted(world: &dyn PermitsWorld) {
    let (at, config) = (address(world, 2).await, Arc::new(mk_class(world, 2)));
    let resized = |generation, permits| {
        Arc::new(LockConfig { generation, permits, ..mk_class(world, permits) })
    };
    let (a, b) = (world.pod("a").await, world.pod("b").await);
    let (one, _one) = hold(&a, &at, &config, 1).await;
    let (two, _two) = hold(&a, &at, &config, 1).await;
    let fewer = resized(2, 1);
    world.resize(&at, 1).await;
    for hold in [&one, &two] {
        assert!(matches!(a.renew(&at, &fewer, hold).await, Renewal::Renewed { .. }));
    }
    a.release(&at, &fewer, &one).await;
    // A pod that does not know of the change yet is not granted by the old class.
    assert!(is_refused(&b, &at, &config, 1).await);
    world.resize(&at, 1).await;
    assert!(is_refused(&b, &at, &config, 1).await);
    assert_eq!(b.client.backend().query(&at, &fewer).await.unwrap().used, 1);
    world.resize(&at, 2).await;
    hold(&b, &at, &resized(3, 2), 1).await;
}

pub async fn the_same_request_has_its_permits_once(world: &dyn PermitsWorld) {
    let (at, config) = (address(world, 3).await, Arc::new(mk_class(world, 3)));
    let (a, permits) = (world.pod("a").await, world.heaviest().min(2));
    let (first, held) = hold(&a, &at, &config, permits).await;
    match ask(&a, &at, &config, &first, permits, NOW).await {
        Acquisition::Held(again) => assert_eq!(again.fence, held.fence),
        other => panic!("{}", describe(&other)),
    }
    assert_eq!(a.client.backend().query(&at, &config).await.unwrap().used, permits);
}

pub async fn a_wait_that_times_out_leaves_no_permit_behind(world: &dyn PermitsWorld) {
    let (at, config) = (address(world, 1).await, Arc::new(mk_class(world, 1)));
    let (a, b) = (world.pod("a").await, world.pod("b").await);
    let (mine, _held) = hold(&a, &at, &config, 1).await;
    let late = ask(&b, &at, &config, &HoldId::random(), 1, TTL / 10).await;
    assert!(matches!(late, Acquisition::Locked { .. }), "{}", describe(&late));
    a.release(&at, &config, &mine).await;
    let view = a.client.backend().query(&at, &config).await.unwrap();
    assert_eq!((view.used, view.waiters), (0, 0));
}

/// A release that is carried out again takes nothing that was granted since.
pub async fn force_release_up_to_a_fence_keeps_what_is_newer(world: &dyn PermitsWorld) {
    let (at, config) = (address(world, 3).await, Arc::new(mk_class(world, 3)));
    let (a, b) = (world.pod("a").await, world.pod("b").await);
    let (one, old) = hold(&a, &at, &config, 1).await;
    let (two, newest) = hold(&a, &at, &config, 1).await;
    let (three, newer) = hold(&b, &at, &config, 1).await;
    let backend = b.client.backend();
    let which = Which::UpTo(newest.fence);
    let taken = backend.force_release_holds(&at, &config, which).await.unwrap();
    let fences: Vec<_> = taken.iter().map(|view| view.fence).collect();
    assert_eq!(fences, [old.fence, newest.fence]);
    for lost in [&one, &two] {
        let renewed = a.client.backend().renew(&at, &config, lost, TTL).await.unwrap();
        assert_eq!(renewed, Renewal::Lost);
    }
    let renewed = backend.renew(&at, &config, &three, TTL).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }), "the newer one is kept");
    assert_eq!(backend.force_release_holds(&at, &config, which).await.unwrap(), []);
    let next = hold(&a, &at, &config, 1).await.1;
    assert!(next.fence > newer.fence);
}

pub async fn force_release_takes_the_hold_with_a_fence(world: &dyn PermitsWorld) {
    let (at, config) = (address(world, 2).await, Arc::new(mk_class(world, 2)));
    let (a, b) = (world.pod("a").await, world.pod("b").await);
    let ((one, mut held), (two, kept)) =
        (hold(&a, &at, &config, 1).await, hold(&a, &at, &config, 1).await);
    let backend = b.client.backend();
    let taken = backend.force_release_holds(&at, &config, Which::One(held.fence)).await.unwrap();
    let taken: Vec<_> = taken.into_iter().map(|view| (view.holder, view.fence)).collect();
    assert_eq!(taken, [(a.name.clone(), held.fence)]);
    match world.substrate() {
        Substrate::Memory | Substrate::Redis => {
            let told = timeout(Duration::from_secs(5), held.inbox.recv()).await;
            assert_eq!(told, Ok(Push::Lost), "its holder is told");
        }
        // By its next renewal. (A majority of servers keeps no permits.)
        Substrate::Lease | Substrate::Redlock => {}
    }
    let renewed = a.client.backend().renew(&at, &config, &one, TTL).await.unwrap();
    assert_eq!(renewed, Renewal::Lost);
    let renewed = a.client.backend().renew(&at, &config, &two, TTL).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }), "the other is kept");
    let again = backend.force_release_holds(&at, &config, Which::One(held.fence)).await.unwrap();
    assert_eq!(again, [], "it is taken once");
    assert_eq!(backend.force_release_holds(&at, &config, Which::All).await.unwrap().len(), 1);
    for (_, next) in holds(world, &b, &at, &config, 2).await {
        assert!(next.fence > kept.fence);
    }
}

pub async fn a_semaphore_created_again_goes_on_with_higher_fences(world: &dyn PermitsWorld) {
    let (at, config) = (address(world, 2).await, Arc::new(mk_class(world, 2)));
    let a = world.pod("a").await;
    let before = holds(world, &a, &at, &config, 2).await;
    for (mine, _held) in &before {
        a.release(&at, &config, mine).await;
    }
    let fence_floor = world.recreate(&at).await;
    let config = Arc::new(LockConfig { fence_floor, ..mk_class(world, 2) });
    let view = a.client.backend().query(&at, &config).await.unwrap();
    assert_eq!((view.used, view.holds), (0, 0));
    for (_, next) in holds(world, &a, &at, &config, 2).await {
        assert!(next.fence > before[before.len() - 1].1.fence);
    }
}

semaphores_everywhere!(memory, crate::fixture::MemoryWorld);
