//! One watch of all Leases for everybody who waits in a process.

use std::{sync::Arc, time::Duration};

use holdfast_backend::waiter::{Acquisition, HeldLock};
use holdfast_core::{
    Address, BackendError, HoldId,
    lock::{LockBackend, LockConfig},
};
use kube::api::DeleteParams;
use tokio::task::JoinSet;

use crate::{
    apiserver::ApiServer,
    fixture::{Sidecar, allow, eventually, fresh, lease_of, leases, mk_config, plane, provision},
    relay::Relay,
};

const TTL: Duration = Duration::from_secs(60);

type Waits = JoinSet<(usize, Result<HeldLock, BackendError>)>;

/// Asks for each of these, which somebody holds, and returns when all of them wait.
async fn wait_for(pod: &Arc<Sidecar>, all: &[Address], config: &Arc<LockConfig>) -> Waits {
    let mut waits = JoinSet::new();
    for (index, at) in all.iter().cloned().enumerate() {
        let (pod, config) = (pod.clone(), config.clone());
        waits.spawn(async move {
            match pod.acquire(&at, &config, &HoldId::random(), TTL).await {
                Ok(Acquisition::Held(held)) => (index, Ok(held)),
                Ok(_) => panic!("{at} was not handed over"),
                Err(error) => (index, Err(error)),
            }
        });
    }
    for at in all {
        eventually("it waits", async || pod.locks.query(at, config).await.unwrap().waiters == 1)
            .await;
    }
    // Their watches are open by then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    waits
}

async fn hold_all(pod: &Sidecar, all: &[Address], config: &Arc<LockConfig>) -> Vec<HoldId> {
    let mut holds = Vec::new();
    for at in all {
        let hold = HoldId::random();
        pod.hold(at, config, &hold).await;
        holds.push(hold);
    }
    holds
}

/// Whether those who wait for these Leases come to ask nothing for four seconds: what is asked at
/// the beginning may take a while.
async fn falls_silent(server: &ApiServer, all: &[Address]) -> bool {
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..3 {
        let before = requests(server, all);
        tokio::time::sleep(Duration::from_secs(4)).await;
        if requests(server, all) == before {
            return true;
        }
    }
    false
}

/// How many requests there have been on these Leases.
fn requests(server: &ApiServer, all: &[Address]) -> usize {
    all.iter().map(|at| server.requests(&lease_of(at)).len()).sum()
}

/// What is released is handed over soon, by nothing but what a watch tells.
async fn hand_over(
    from: &Sidecar,
    (all, holds): (&[Address], &[HoldId]),
    config: &Arc<LockConfig>,
    waits: &mut Waits,
) {
    for (index, (at, hold)) in all.iter().zip(holds).enumerate() {
        from.locks.release(at, config, hold).await.unwrap();
        let next = tokio::time::timeout(Duration::from_secs(5), waits.join_next()).await;
        let (which, held) = next.expect("not handed over in time").unwrap().unwrap();
        assert!(which == index && held.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_wait_in_a_process_have_one_watch() {
    // One of its own: its metrics count all watches there are.
    let server = &ApiServer::start();
    let watches = || server.watches("leases");
    let config = mk_config(TTL);
    let a = Sidecar::new(server, "a").await;
    let mut all = Vec::new();
    for _ in 0..6 {
        all.push(fresh(server).await);
    }
    let holds = hold_all(&a, &all, &config).await;
    let before = watches();
    for (shares, count) in [(false, 6), (true, 1)] {
        let b = match shares {
            false => Sidecar::new(server, "b").await,
            true => Sidecar::sharing(server, "b", "admin", server.port()).await,
        };
        let b = Arc::new(b);
        let mut waits = wait_for(&b, &all, &config).await;
        eventually("so many watches", async || watches() == before + count).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(watches(), before + count, "shares: {shares}");
        let asked = || requests(server, &all);
        let quiet = asked();
        // What goes on is told to all of them, and none asks.
        a.locks.renew(&all[0], &config, &holds[0], TTL).await.unwrap();
        eventually("it is written down", async || asked() > quiet).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(asked() - quiet, 1, "waiting costs requests");
        if shares {
            hand_over(&a, (&all, &holds), &config, &mut waits).await;
        }
        drop(waits);
        // Nobody waits: nothing is watched.
        eventually("no watch", async || watches() == before).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_breaks_and_leases_that_go_are_found_out() {
    let (server, config) = (plane(), mk_config(TTL));
    let all = [fresh(server).await, fresh(server).await, fresh(server).await];
    let a = Sidecar::new(server, "a").await;
    let relay = Relay::to(server.port()).await;
    let b = Arc::new(Sidecar::sharing(server, "b", "admin", relay.port).await);
    let holds = hold_all(&a, &all, &config).await;
    let mut waits = wait_for(&b, &all, &config).await;
    hand_over(&a, (&all[..1], &holds[..1]), &config, &mut waits).await;

    // What happens while there is no watch is found by reading.
    relay.faults.cut.notify_waiters();
    a.locks.release(&all[1], &config, &holds[1]).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(5), waits.join_next()).await;
    let (which, held) = next.expect("the break was not found out").unwrap().unwrap();
    assert!(which == 1 && held.is_ok());

    // One that is deleted, and that the operator makes again, is free.
    leases(server).await.delete(&lease_of(&all[2]), &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    provision(server, &all[2]).await;
    let next = tokio::time::timeout(Duration::from_secs(5), waits.join_next()).await;
    let (which, held) = next.expect("a new Lease was not told").unwrap().unwrap();
    assert!(which == 2 && held.is_ok());
}

/// An API server refuses to tell what has happened since a version that is older than what it
/// remembers, and of a Lease that nobody writes every version is, some day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_has_not_changed_for_long_is_waited_for_without_requests() {
    let server = &ApiServer::start();
    let config = mk_config(TTL * 60);
    let all = [fresh(server).await, fresh(server).await];
    let a = Sidecar::new(server, "a").await;
    let holds = hold_all(&a, &all, &config).await;
    // What happens beside them, and an API server that remembers nothing of before.
    fresh(server).await;
    server.restart();
    let by_name = Sidecar::new(server, "by-name").await;
    let shares = Sidecar::sharing(server, "shares", "admin", server.port()).await;
    for (index, pod) in [by_name, shares].into_iter().map(Arc::new).enumerate() {
        let (at, hold) = (&all[index..=index], &holds[index..=index]);
        let mut waits = wait_for(&pod, at, &config).await;
        assert!(falls_silent(server, at).await, "{} asks", pod.name);
        hand_over(&a, (at, hold), &config, &mut waits).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_watch_all_watches_each_by_name() {
    let (server, config) = (plane(), mk_config(TTL));
    let all = [fresh(server).await, fresh(server).await];
    allow(server, "by-name", &all.each_ref().map(lease_of)).await;
    let a = Sidecar::new(server, "a").await;
    let b = Arc::new(Sidecar::sharing(server, "b", "sidecar", server.port()).await);
    let holds = hold_all(&a, &all, &config).await;
    let mut waits = wait_for(&b, &all, &config).await;
    // Watched, and not asked for again and again.
    assert!(falls_silent(server, &all).await, "waiting costs requests");
    hand_over(&a, (&all, &holds), &config, &mut waits).await;
}
