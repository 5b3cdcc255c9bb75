//! The behaviours of a lock.

use std::{sync::Arc, time::Duration};

use holdfast_backend::waiter::Acquisition;
use holdfast_core::{
    HoldId, Substrate,
    lock::{LockConfig, Push, Release, Renewal, Which},
};
use tokio::time::{sleep, timeout};

use crate::fixture::{Sidecar, TTL, World, describe, eventually, fresh, mk_config};

fn config(world: &dyn World) -> Arc<LockConfig> {
    Arc::new(mk_config(world))
}

fn hold() -> HoldId {
    HoldId::random()
}

pub async fn two(world: &dyn World) -> (Sidecar, Sidecar) {
    (world.sidecar("a").await, world.sidecar("b").await)
}

pub async fn one_holds_and_another_is_refused(world: &dyn World) {
    let (at, config, (a, b)) = (fresh(world).await, config(world), two(world).await);
    let held = a.hold(&at, &config, &hold()).await;
    assert!(held.claimed && held.ttl <= TTL);
    match b.attempt(&at, &config).await {
        Acquisition::Locked { retry_after, .. } => {
            assert!(retry_after <= TTL + Duration::from_secs(1), "{retry_after:?}");
        }
        other => panic!("{}", describe(&other)),
    }
}

pub async fn fences_grow_from_grant_to_grant(world: &dyn World) {
    let (at, config, (a, b)) = (fresh(world).await, config(world), two(world).await);
    let mut last = None;
    for round in 0..10 {
        let (pod, hold) = (if round % 2 == 0 { &a } else { &b }, hold());
        let held = pod.hold(&at, &config, &hold).await;
        assert!(Some(held.fence) > last, "{:?} after {last:?}", held.fence);
        last = Some(held.fence);
        pod.release(&at, &config, &hold).await;
    }
    let view = a.client.backend().query(&at, &config).await.unwrap();
    assert_eq!((view.holder, view.last_fence), (None, last));
}

pub async fn the_newest_fence_is_that_of_the_last_grant(world: &dyn World) {
    let (at, config, (a, b)) = (fresh(world).await, config(world), two(world).await);
    let newest = async |of: &Sidecar| of.client.backend().newest_fence(&at, &config).await.unwrap();
    let (none, first) = (newest(&a).await, hold());
    let one = a.hold(&at, &config, &first).await;
    assert!(none <= one.fence);
    assert_eq!((newest(&a).await, newest(&b).await), (one.fence, one.fence));
    a.release(&at, &config, &first).await;
    assert_eq!(newest(&b).await, one.fence, "what was released is still the newest");
    let two = b.hold(&at, &config, &hold()).await;
    assert_eq!(newest(&a).await, two.fence, "who knows nothing of the next grant is told");
    assert!(two.fence > one.fence);
}

pub async fn the_same_request_gets_the_same_grant(world: &dyn World) {
    let (at, config, a) = (fresh(world).await, config(world), world.sidecar("a").await);
    let hold = hold();
    let first = a.hold(&at, &config, &hold).await;
    let again = a.hold(&at, &config, &hold).await;
    assert_eq!(first.fence, again.fence);
    drop(again);
    assert_eq!(a.client.backend().release(&at, &config, &hold).await.unwrap(), Release::Released);
}

pub async fn a_retry_that_is_given_up_does_not_take_the_hold_with_it(world: &dyn World) {
    let (at, config, a) = (fresh(world).await, config(world), world.sidecar("a").await);
    let hold = hold();
    let held = a.hold(&at, &config, &hold).await;
    for _ in 0..5 {
        drop(timeout(Duration::from_micros(1), a.acquire(&at, &config, &hold, TTL)).await);
    }
    sleep(TTL / 10).await;
    assert!(matches!(a.renew(&at, &config, &hold).await, Renewal::Renewed { .. }));
    drop(held);
}

pub async fn an_expired_hold_is_lost_and_the_next_fence_is_higher(world: &dyn World) {
    let (at, config, (a, b)) = (fresh(world).await, config(world), two(world).await);
    let stale_hold = hold();
    let stale = a.hold(&at, &config, &stale_hold).await;
    let next = b.hold(&at, &config, &hold()).await;
    assert!(next.fence > stale.fence);
    assert_eq!(a.renew(&at, &config, &stale_hold).await, Renewal::Lost);
    // Releasing what one does not hold must not free it.
    let released = a.client.backend().release(&at, &config, &stale_hold).await.unwrap();
    assert_eq!(released, Release::NotHeld);
    let view = b.client.backend().query(&at, &config).await.unwrap();
    assert_eq!(view.holder.map(|h| h.fence), Some(next.fence));
}

pub async fn renewals_keep_a_hold_beyond_its_time_to_live(world: &dyn World) {
    let (at, (a, b)) = (fresh(world).await, two(world).await);
    let config = Arc::new(LockConfig { ttl_ms: 6_000, ..mk_config(world) });
    let hold = hold();
    let held = a.hold(&at, &config, &hold).await;
    for _ in 0..4 {
        sleep(Duration::from_millis(config.ttl_ms / 3)).await;
        assert!(matches!(a.renew(&at, &config, &hold).await, Renewal::Renewed { .. }));
        let other = b.attempt(&at, &config).await;
        assert!(matches!(other, Acquisition::Locked { .. }), "{}", describe(&other));
    }
    let view = b.client.backend().query(&at, &config).await.unwrap();
    assert_eq!(view.holder.map(|h| h.fence), Some(held.fence));
}

pub async fn release_hands_over_to_who_waits(world: &dyn World) {
    let (at, (a, b)) = (fresh(world).await, two(world).await);
    // Whoever is not told waits for that.
    let config = Arc::new(LockConfig { ttl_ms: 12_000, ..mk_config(world) });
    let (first, second) = (hold(), hold());
    let held = a.hold(&at, &config, &first).await;
    let waiting = b.hold(&at, &config, &second);
    let release = async {
        sleep(TTL / 10).await;
        a.release(&at, &config, &first).await;
        tokio::time::Instant::now()
    };
    let (next, released) = tokio::join!(waiting, release);
    assert!(next.fence > held.fence);
    assert!(released.elapsed() < TTL * 2, "handed over after {:?}", released.elapsed());
}

pub async fn waiters_are_served_first_come_first_served(world: &dyn World) {
    let at = fresh(world).await;
    // All of them are to wait before it is over.
    let config = Arc::new(LockConfig { ttl_ms: 30_000, ..mk_config(world) });
    let first = world.sidecar("first").await;
    let hold_first = hold();
    first.hold(&at, &config, &hold_first).await;
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    let watcher = world.sidecar("watcher").await;
    for i in 0..8 {
        let pod = world.sidecar(&format!("pod-{i}")).await;
        let (at, config, order) = (at.clone(), config.clone(), order.clone());
        tasks.spawn({
            let (at, config) = (at.clone(), config.clone());
            async move {
                let hold = hold();
                pod.hold(&at, &config, &hold).await;
                order.lock().unwrap().push(i);
                pod.release(&at, &config, &hold).await;
            }
        });
        eventually("the waiter is in the queue", async || {
            let view = watcher.client.backend().query(&at, &config).await.unwrap();
            view.waiters == i + 1
        })
        .await;
    }
    first.release(&at, &config, &hold_first).await;
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
}

pub async fn a_wait_that_times_out_leaves_nothing_behind(world: &dyn World) {
    let (at, config, (a, b)) = (fresh(world).await, config(world), two(world).await);
    let first = hold();
    a.hold(&at, &config, &first).await;
    let waited = b.acquire(&at, &config, &hold(), TTL / 10).await.unwrap();
    assert!(matches!(waited, Acquisition::Locked { .. }), "{}", describe(&waited));
    a.release(&at, &config, &first).await;
    let view = a.client.backend().query(&at, &config).await.unwrap();
    assert_eq!((view.holder, view.waiters), (None, 0));
}

pub async fn a_caller_that_goes_away_leaves_no_ghost(world: &dyn World) {
    let (at, config, (a, b)) = (fresh(world).await, config(world), two(world).await);
    for round in 0..10u64 {
        let first = hold();
        a.hold(&at, &config, &first).await;
        let second = hold();
        let waiting = b.acquire(&at, &config, &second, TTL);
        // From "not even sent" to "stands in line".
        drop(timeout(Duration::from_micros(1 << (2 * round)), waiting).await);
        a.release(&at, &config, &first).await;
        let third = hold();
        let next = timeout(TTL * 3 / 4, a.hold(&at, &config, &third)).await;
        assert!(next.is_ok(), "round {round}: a ghost has the lock");
        a.release(&at, &config, &third).await;
    }
}

pub async fn releasing_twice_is_no_error_and_frees_only_once(world: &dyn World) {
    let (at, config, (a, b)) = (fresh(world).await, config(world), two(world).await);
    let first = hold();
    a.hold(&at, &config, &first).await;
    a.release(&at, &config, &first).await;
    let next = b.hold(&at, &config, &hold()).await;
    let again = a.client.backend().release(&at, &config, &first).await.unwrap();
    assert_eq!(again, Release::NotHeld);
    let view = a.client.backend().query(&at, &config).await.unwrap();
    assert_eq!(view.holder.map(|h| h.fence), Some(next.fence));
}

pub async fn a_hold_released_early_keeps_the_lock_for_its_minimal_time(world: &dyn World) {
    let at = fresh(world).await;
    let config = Arc::new(LockConfig { min_hold_ms: 2_000, ..mk_config(world) });
    let (a, b) = two(world).await;
    let first = hold();
    let started = tokio::time::Instant::now();
    a.hold(&at, &config, &first).await;
    a.release(&at, &config, &first).await;
    let early = b.attempt(&at, &config).await;
    assert!(matches!(early, Acquisition::Locked { .. }), "{}", describe(&early));
    b.hold(&at, &config, &hold()).await;
    assert!(started.elapsed() >= Duration::from_millis(1_900), "{:?}", started.elapsed());
}

pub async fn lock_delay_holds_after_expiry_but_not_after_release(world: &dyn World) {
    let at = fresh(world).await;
    let config = Arc::new(LockConfig { lock_delay_ms: 2_000, ..mk_config(world) });
    let (a, b) = two(world).await;
    let first = hold();
    a.hold(&at, &config, &first).await;
    a.release(&at, &config, &first).await;
    let second = hold();
    let started = tokio::time::Instant::now();
    let clean = timeout(TTL, b.hold(&at, &config, &second)).await;
    assert!(clean.is_ok(), "delayed after a clean release");
    drop(clean);
    a.hold(&at, &config, &hold()).await;
    let waited = started.elapsed();
    assert!(waited >= TTL + Duration::from_millis(1_900), "no delay after expiry: {waited:?}");
}

pub async fn no_renewal_goes_beyond_the_longest_hold(world: &dyn World) {
    let at = fresh(world).await;
    let config = Arc::new(LockConfig { max_hold_ms: 3_000, ..mk_config(world) });
    let (a, b) = two(world).await;
    let first = hold();
    a.hold(&at, &config, &first).await;
    let granted = tokio::time::Instant::now();
    let renewals = async {
        // When the last one was sent that was answered well.
        let mut last = Duration::ZERO;
        loop {
            let sent = granted.elapsed();
            if a.renew(&at, &config, &first).await == Renewal::Lost {
                return last;
            }
            last = sent;
            sleep(TTL / 8).await;
        }
    };
    let second = hold();
    let (last, _) = tokio::join!(renewals, b.hold(&at, &config, &second));
    assert!(last <= Duration::from_millis(3_100), "renewed after {last:?}");
}

pub async fn force_release_takes_the_lock_and_raises_the_fence(world: &dyn World) {
    let (at, config, (a, b)) = (fresh(world).await, config(world), two(world).await);
    let first = hold();
    let mut held = a.hold(&at, &config, &first).await;
    let taken = b.client.backend().force_release(&at, &config).await.unwrap();
    assert_eq!(taken.map(|t| (t.holder, t.fence)), Some((a.name.clone(), held.fence)));
    if world.substrate() != Substrate::Lease {
        let told = timeout(TTL * 5, held.inbox.recv()).await;
        assert_eq!(told.ok(), Some(Push::Lost));
    }
    assert_eq!(a.renew(&at, &config, &first).await, Renewal::Lost);
    let next = b.hold(&at, &config, &hold()).await;
    assert!(next.fence > held.fence);
    if world.substrate() != Substrate::Redlock {
        // One that is carried out late, or again, takes nothing newer than what was meant.
        let backend = b.client.backend();
        for (newest, taken) in [(held.fence, vec![]), (next.fence, vec![next.fence])] {
            let which = Which::UpTo(newest);
            let forced = backend.force_release_holds(&at, &config, which).await.unwrap();
            assert_eq!(forced.iter().map(|from| from.fence).collect::<Vec<_>>(), taken);
        }
    }
    assert_eq!(b.client.backend().force_release(&fresh(world).await, &config).await.unwrap(), None);
}

pub async fn a_full_queue_refuses_and_says_so(world: &dyn World) {
    let at = fresh(world).await;
    let config = Arc::new(LockConfig { max_waiters: 2, ttl_ms: 30_000, ..mk_config(world) });
    let (a, b) = two(world).await;
    a.hold(&at, &config, &hold()).await;
    let third = async {
        eventually("two wait", async || {
            b.client.backend().query(&at, &config).await.unwrap().waiters == 2
        })
        .await;
        b.acquire(&at, &config, &HoldId::random(), TTL).await.unwrap()
    };
    let (one, two) = (hold(), hold());
    let wait = TTL * 5;
    let waiting = async {
        tokio::join!(b.acquire(&at, &config, &one, wait), b.acquire(&at, &config, &two, wait))
    };
    let third = tokio::select! {
        third = third => third,
        _ = waiting => panic!("they wait no more"),
    };
    assert!(matches!(third, Acquisition::QueueFull { waiters: 2 }), "{}", describe(&third));
}

pub async fn a_query_shows_holder_and_queue(world: &dyn World) {
    let (at, config, (a, b)) = (fresh(world).await, config(world), two(world).await);
    let empty = a.client.backend().query(&at, &config).await.unwrap();
    assert_eq!((empty.holder, empty.waiters), (None, 0));
    let first = hold();
    let held = a.hold(&at, &config, &first).await;
    let look = async {
        eventually("the queue shows", async || {
            let view = b.client.backend().query(&at, &config).await.unwrap();
            let holder = view.holder.expect("held");
            assert_eq!((holder.holder, holder.fence), (a.name.clone(), held.fence));
            assert!(holder.ttl <= TTL + Duration::from_secs(1));
            view.waiters == 1 && view.queue == [b.name.clone()]
        })
        .await;
        let namespace = at.namespace.clone();
        let list =
            b.client.backend().list(at.kind, &namespace, &at.class, &config, 10).await.unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].0, at.key);
        a.release(&at, &config, &first).await;
    };
    let second = hold();
    tokio::join!(b.hold(&at, &config, &second), look);
}

pub async fn a_class_created_again_goes_on_with_higher_fences(world: &dyn World) {
    let (at, mut config, a) = (fresh(world).await, mk_config(world), world.sidecar("a").await);
    let mut last = None;
    for _ in 0..3 {
        let (shared, hold) = (Arc::new(config.clone()), hold());
        let held = a.hold(&at, &shared, &hold).await;
        assert!(Some(held.fence) > last, "{:?} after {last:?}", held.fence);
        last = Some(held.fence);
        config.fence_floor = world.recreate(&at).await;
    }
}

/// A waiter whose pod is gone costs its own heartbeat (three beats), not a whole hold.
pub async fn a_dead_waiter_costs_its_heartbeat_not_a_hold(world: &dyn World) {
    let at = fresh(world).await;
    // Beats of a 30 s hold come every 5 s; take 6 s, so that a beat is a second.
    let config = Arc::new(LockConfig { ttl_ms: 12_000, ..mk_config(world) });
    let (a, b) = two(world).await;
    let dead = world.sidecar("dead").await;
    let first = hold();
    a.hold(&at, &config, &first).await;
    // Queued by hand, so that nobody beats for it and nobody claims its offer.
    let mut request = dead.request(&config, &hold());
    request.enqueue = true;
    dead.client.backend().acquire(&at, &request).await.unwrap();
    let started = tokio::time::Instant::now();
    let second = hold();
    let waiting = b.hold(&at, &config, &second);
    let release = async {
        sleep(Duration::from_millis(200)).await;
        a.release(&at, &config, &first).await;
    };
    tokio::join!(waiting, release);
    let claim = Duration::from_millis(config.policy().claim_ms());
    assert!(started.elapsed() < claim + Duration::from_secs(4), "{:?}", started.elapsed());
}

everywhere!(
    memory,
    crate::fixture::MemoryWorld,
    [waiters_are_served_first_come_first_served, a_dead_waiter_costs_its_heartbeat_not_a_hold]
);
