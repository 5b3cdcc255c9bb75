//! B4, B5: fences grow over everything that happens to a Lease, and nothing is resurrected.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use holdfast_backend::waiter::Acquisition;
use holdfast_core::{
    Fence, HoldId,
    lock::{LockBackend, Release, Renewal},
};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::fixture::{Sidecar, fresh, lease_of, leases, mk_config, plane, provision};

const TTL: Duration = Duration::from_secs(2);
/// Where nothing runs out: a renewal may take a sixth of it.
const LONG: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fences_grow_while_the_lease_is_deleted_and_created_again_under_its_holders() {
    let server = plane();
    let (at, api, config) = (fresh(server).await, leases(server).await, mk_config(TTL));
    let name = lease_of(&at);
    let (grants, done) =
        (Arc::new(Mutex::new(Vec::<Fence>::new())), Arc::new(AtomicBool::new(false)));
    let mut lives = tokio::task::JoinSet::new();
    for i in 0..4 {
        let pod = Sidecar::new(server, &format!("pod-{i}")).await;
        let (at, config) = (at.clone(), config.clone());
        let (grants, done) = (grants.clone(), done.clone());
        lives.spawn(async move {
            while !done.load(SeqCst) {
                let hold = HoldId::random();
                let got = pod.acquire(&at, &config, &hold, Duration::from_millis(500)).await;
                let Ok(Acquisition::Held(held)) = got else { continue };
                grants.lock().unwrap().push(held.fence);
                for _ in 0..rand::random_range(0..3) {
                    drop(pod.locks.renew(&at, &config, &hold, TTL).await);
                }
                drop(pod.locks.release(&at, &config, &hold).await);
            }
        });
    }
    let (mut incarnations, mut transitions) = (0, Vec::new());
    // On a slow machine there are fewer grants in each.
    while incarnations < 40 || (grants.lock().unwrap().len() <= 40 && incarnations < 400) {
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..150))).await;
        transitions.push(api.get(&name).await.unwrap().spec.unwrap().lease_transitions);
        api.delete(&name, &DeleteParams::default()).await.unwrap();
        // Long enough for a zombie to bring it back, if it could.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(api.get_opt(&name).await.unwrap().is_none(), "resurrected");
        provision(server, &at).await;
        incarnations += 1;
    }
    done.store(true, SeqCst);
    while let Some(life) = lives.join_next().await {
        life.unwrap();
    }
    let grants = grants.lock().unwrap();
    println!("{} grants over {incarnations} incarnations", grants.len());
    assert!(grants.len() > 40, "too little happened: {} grants", grants.len());
    // One holder's note may be written after the next one's: a deleted Lease holds nobody back. But
    // no fence is ever given twice, and the fence of a later incarnation is above all of an earlier.
    let mut sorted = grants.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), grants.len(), "a fence was granted twice");
    // The control: what client-go calls a transition count starts again.
    assert!(transitions.windows(2).any(|pair| pair[1] < pair[0]), "{transitions:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_grant_of_each_incarnation_is_above_all_before_it() {
    let server = plane();
    let (at, api, config) = (fresh(server).await, leases(server).await, mk_config(LONG));
    let (name, pod) = (lease_of(&at), Sidecar::new(server, "pod").await);
    let mut last = Fence::new(0);
    for round in 0..60 {
        let hold = HoldId::random();
        let held = pod.hold(&at, &config, &hold).await;
        assert!(held.fence > last, "round {round}: {} after {last}", held.fence);
        last = held.fence;
        match rand::random_range(0..4) {
            0 => {
                assert_eq!(pod.locks.release(&at, &config, &hold).await.unwrap(), Release::Released)
            }
            1 => {
                let taken = pod.locks.force_release(&at, &config).await.unwrap().unwrap();
                assert_eq!(taken.fence, last);
                let renewed = pod.locks.renew(&at, &config, &hold, LONG).await.unwrap();
                assert_eq!(renewed, Renewal::Lost);
            }
            what => {
                api.delete(&name, &DeleteParams::default()).await.unwrap();
                if what == 2 {
                    provision(server, &at).await;
                }
                let renewed = pod.locks.renew(&at, &config, &hold, LONG).await.unwrap();
                assert_eq!(renewed, Renewal::Lost);
                if what == 3 {
                    assert!(api.get_opt(&name).await.unwrap().is_none(), "resurrected");
                    provision(server, &at).await;
                }
            }
        }
    }
}

/// B11: a Lease that is being deleted grants nothing and extends nothing, and can be released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminating_lease_is_drained() {
    let server = plane();
    let (at, api, config) = (fresh(server).await, leases(server).await, mk_config(LONG));
    let (name, pod, hold) = (lease_of(&at), Sidecar::new(server, "pod").await, HoldId::random());
    let kept = json!({ "metadata": { "finalizers": ["holdfast.dev/test"] } });
    api.patch(&name, &PatchParams::default(), &Patch::Merge(&kept)).await.unwrap();
    pod.hold(&at, &config, &hold).await;
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    let renewed = pod.locks.renew(&at, &config, &hold, LONG).await.unwrap();
    assert_eq!(renewed, Renewal::Lost, "a terminating Lease was renewed");
    let next = pod.locks.acquire(&at, &pod.request(&config, &HoldId::random())).await;
    assert!(next.is_err(), "a terminating Lease was granted: {next:?}");
    pod.locks.release(&at, &config, &hold).await.unwrap();
    assert_eq!(pod.sees(&at, &config).await, None);
    let freed = json!({ "metadata": { "finalizers": null } });
    api.patch(&name, &PatchParams::default(), &Patch::Merge(&freed)).await.unwrap();
}
