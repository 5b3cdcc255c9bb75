//! Random histories of several sessions on several slots, with holders that die, answers that get
//! lost, and slots that are deleted under their holders; checked against what a semaphore promises.

use std::sync::Mutex;

use holdfast_core::Clock;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::time::sleep;

use super::*;

const PERMITS: u32 = 3;
const SHORT: Duration = Duration::from_secs(1);

/// One grant as its holder saw it.
#[derive(Clone, Debug)]
struct Record {
    fence: Fence,
    /// Before the request was sent.
    asked: u64,
    /// After the grant was known.
    granted: u64,
    /// When the holder stopped to trust it: its deadline, or before it sent the release.
    ended: u64,
}

type Records = Arc<Mutex<Vec<Record>>>;

fn now_ns() -> u64 {
    SystemClock.now().boot_ns
}

/// What is wrong with a history, if anything is.
fn check(records: &[Record], permits: usize) -> Result<(), String> {
    let mut by_fence = records.to_vec();
    by_fence.sort_by_key(|record| record.fence);
    for (i, next) in by_fence.iter().enumerate() {
        for before in &by_fence[..i] {
            if before.fence == next.fence {
                return Err(format!("fence {} was granted twice", next.fence));
            }
            if next.granted < before.asked {
                let (late, early) = (before.fence, next.fence);
                return Err(format!("{early} was granted before {late} was asked for"));
            }
        }
    }
    // An end and a grant in the same nanosecond do not overlap.
    let grants = records.iter().filter(|r| r.granted < r.ended);
    let mut moments: Vec<(u64, i32)> =
        grants.flat_map(|r| [(r.granted, 1), (r.ended, -1)]).collect();
    moments.sort_unstable();
    let mut held = 0;
    for (_, change) in moments {
        held += change;
        if held > permits as i32 {
            return Err(format!("{held} holds were trusted at once"));
        }
    }
    Ok(())
}

async fn one_life(pod: Pod, at: Address, seed: u64, until: u64, records: Records) {
    let mut rng = StdRng::seed_from_u64(seed);
    let config = mk_class(PERMITS, SHORT);
    while now_ns() < until {
        let hold = HoldId::random();
        let wait = Duration::from_millis(rng.random_range(0..2) * rng.random_range(1..1_500));
        let asked = now_ns();
        let got = pod.acquire(&at, &config, &hold, wait).await;
        let Ok(Acquisition::Held(held)) = got else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let granted = now_ns();
        sleep(Duration::from_millis(rng.random_range(0..60))).await;
        let left = held.deadline.remaining(SystemClock.now());
        let ended = if rng.random_bool(0.08) {
            // A holder that dies: it stops to trust its hold at the deadline, and never releases.
            now_ns() + left.as_nanos() as u64
        } else {
            let ended = if left.is_zero() { granted } else { now_ns() };
            drop(pod.permits.release(&at, &config, &hold).await);
            ended
        };
        records.lock().unwrap().push(Record { fence: held.fence, asked, granted, ended });
    }
}

/// Deletes slots, held or not, and makes them again once whoever held one has stopped to trust it: as
/// the operator does when somebody else deletes them.
async fn meddle(at: Address, until: u64) -> u32 {
    let (api, mut times) = (leases(plane()).await, 0);
    while now_ns() < until {
        sleep(Duration::from_millis(rand::random_range(100..600))).await;
        let number = rand::random_range(0..PERMITS);
        api.delete(&slot(&at, number), &DeleteParams::default()).await.unwrap();
        sleep(SHORT).await;
        create(plane(), &at, number).await;
        times += 1;
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_permits_are_legal() {
    let (at, seed) = (mk_slots(PERMITS).await, rand::random::<u32>());
    println!("seed {seed}");
    let (records, until) = (Records::default(), now_ns() + 15_000_000_000);
    let relay = Relay::to(plane().port()).await;
    let mut lives = tokio::task::JoinSet::new();
    for i in 0..5 {
        let port = if i < 2 { relay.port } else { plane().port() };
        let pod = Pod::through(&format!("pod-{i}"), port).await;
        let seed = u64::from(seed) + i;
        lives.spawn(one_life(pod, at.clone(), seed, until, records.clone()));
    }
    let losses = async {
        while now_ns() < until {
            sleep(Duration::from_millis(rand::random_range(200..900))).await;
            relay.faults.lose_reply.store(1, SeqCst);
        }
    };
    let (meddled, ()) = tokio::join!(meddle(at, until), losses);
    while let Some(done) = lives.join_next().await {
        done.unwrap();
    }
    let records = records.lock().unwrap();
    let lost = relay.faults.fired.load(SeqCst);
    println!("{} grants, {lost} lost answers, {meddled} deleted slots", records.len());
    assert!(records.len() > 50 && lost > 3 && meddled > 3, "too little happened");
    if let Err(what) = check(&records, PERMITS as usize) {
        panic!("seed {seed}: {what}");
    }
}

/// The control: whoever looks, and then writes whatever has been written meanwhile. (Not on our own
/// Leases: there the admission policy refuses such writes.)
async fn one_careless_life(api: Api<k8s_openapi::api::coordination::v1::Lease>, records: Records) {
    for _ in 0..40 {
        let asked = now_ns();
        let number = rand::random_range(0..2);
        let name = format!("careless-{number}");
        let seen = api.get(&name).await.unwrap();
        let holder = seen.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        if !holder.is_empty() {
            continue;
        }
        let write = async |holder: &str| {
            let body = Patch::Merge(json!({ "spec": { "holderIdentity": holder } }));
            api.patch(&name, &PatchParams::default(), &body).await.unwrap()
        };
        let me = format!("me-{}", rand::random::<u64>());
        let version = write(&me).await.metadata.resource_version.unwrap();
        let granted = now_ns();
        sleep(Duration::from_millis(20)).await;
        let record = Record { fence: version.parse().unwrap(), asked, granted, ended: now_ns() };
        records.lock().unwrap().push(record);
        write("").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_condition_of_the_write_more_is_held_than_there_is() {
    let (server, records) = (plane(), Records::default());
    for number in 0..2 {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": format!("careless-{number}"), "namespace": "default" },
            "spec": { "holderIdentity": "" },
        });
        server.kubectl(&["apply", "-f", "-"], &lease.to_string()).unwrap();
    }
    let mut lives = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let config = server.config("admin", server.port()).await;
        let api = Api::namespaced(Client::try_from(config).unwrap(), "default");
        lives.spawn(one_careless_life(api, records.clone()));
    }
    while let Some(done) = lives.join_next().await {
        done.unwrap();
    }
    let found = check(&records.lock().unwrap(), 2);
    assert!(found.as_ref().is_err_and(|what| what.contains("trusted at once")), "{found:?}");
}

#[test]
fn the_checker_sees_too_many_repeats_and_wrong_order() {
    let record =
        |fence, asked, granted, ended| Record { fence: Fence::new(fence), asked, granted, ended };
    assert!(check(&[record(1, 0, 1, 5), record(2, 0, 2, 9)], 2).is_ok());
    assert!(check(&[record(1, 0, 1, 5), record(2, 0, 5, 9)], 1).is_ok());
    assert!(check(&[record(1, 0, 1, 5), record(2, 0, 4, 9)], 1).is_err());
    assert!(check(&[record(1, 0, 1, 2), record(1, 3, 4, 5)], 2).is_err());
    assert!(check(&[record(2, 0, 1, 5), record(1, 3, 4, 9)], 2).is_err());
    // Asked for at the same time, their order says nothing.
    assert!(check(&[record(2, 0, 1, 5), record(1, 0, 4, 9)], 2).is_ok());
}
