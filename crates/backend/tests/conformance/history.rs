//! Random concurrent histories, checked against what a lock promises.
//!
//! The checker needs no search: a lock whose every grant carries a unique, ordered fence has its
//! linearization written on it. What is left to check is that the order agrees with real time, and
//! that no two holders trusted their holds at once.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_backend::waiter::{Acquisition, Done, Heir};
use holdfast_core::{Address, Clock, Fence, HoldId, Stamp, SystemClock, lock::LockConfig};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::sleep;

use crate::fixture::{MemoryWorld, Sidecar, World, fresh, mk_config};

/// One grant as its holder saw it.
#[derive(Clone, Debug)]
struct Record {
    fence: Fence,
    /// Before the request was sent.
    asked: Stamp,
    /// After the grant was known.
    granted: Stamp,
    /// When the holder stopped to trust it: its deadline, or before it sent the release.
    ended: Stamp,
}

fn later(stamp: Stamp, by: Duration) -> Stamp {
    let ns = by.as_nanos() as u64;
    Stamp { boot_ns: stamp.boot_ns + ns, raw_ns: stamp.raw_ns + ns, real_ns: stamp.real_ns + ns }
}

/// What is wrong with a history, if anything is.
fn check(records: &[Record]) -> Result<(), String> {
    let mut by_fence = records.to_vec();
    by_fence.sort_by_key(|record| record.fence);
    for pair in by_fence.windows(2) {
        let (one, next) = (&pair[0], &pair[1]);
        if one.fence == next.fence {
            return Err(format!("fence {} was granted twice", one.fence));
        }
        if next.granted.boot_ns < one.asked.boot_ns {
            return Err(format!(
                "fence {} was granted before {} was asked for",
                next.fence, one.fence
            ));
        }
        if next.granted.boot_ns < one.ended.boot_ns {
            return Err(format!("{} and {} were trusted at once", one.fence, next.fence));
        }
    }
    Ok(())
}

async fn one_life(
    pod: Arc<Sidecar>,
    at: Address,
    config: Arc<LockConfig>,
    seed: u64,
    rounds: usize,
    records: Arc<Mutex<Vec<Record>>>,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let clock = SystemClock;
    for _ in 0..rounds {
        let hold = HoldId::random();
        let wait = Duration::from_millis(rng.random_range(0..2) * rng.random_range(1..1_500));
        let asked = clock.now();
        let Ok(Acquisition::Held(held)) = pod.acquire(&at, &config, &hold, wait).await else {
            continue;
        };
        let granted = clock.now();
        if rng.random_bool(0.3) {
            sleep(Duration::from_millis(rng.random_range(0..20))).await;
        }
        let left = held.deadline.remaining(clock.now());
        let ended = if rng.random_bool(0.05) {
            // A holder that dies: it stops to trust its hold at the deadline, and never releases. Its
            // sidecar keeps it for so long.
            let ended = later(clock.now(), left);
            let inbox = held.inbox;
            tokio::spawn(async move {
                sleep(left).await;
                drop(inbox);
            });
            ended
        } else {
            let now = clock.now();
            let ended = if left.is_zero() { granted } else { now };
            let (fence, ttl, deadline) = (held.fence, held.ttl, held.deadline);
            let (at, config, hold, heir) = (&at, &config, &hold, &Heir::new());
            let done = Done { at, config, hold, fence, ttl, deadline, heir };
            let mut tries = 0;
            while let Err(error) = pod.client.release(&done, clock.now()).await {
                tries += 1;
                assert!(tries < 100, "{error}");
                sleep(Duration::from_millis(5)).await;
            }
            ended
        };
        records.lock().unwrap().push(Record { fence: held.fence, asked, granted, ended });
    }
}

/// How many contend in each pod: one has neighbours, whom it passes holds on to.
const CREWS: [usize; 3] = [4, 1, 1];

/// So many requests of each who contends; how many holds were passed on within a pod.
pub async fn random_histories_are_legal(world: &dyn World, rounds: usize, ttl_ms: u64) -> usize {
    let at = fresh(world).await;
    let config = Arc::new(LockConfig { ttl_ms, ..mk_config(world) });
    let seed = u64::from(rand::random::<u32>());
    println!("seed {seed}");
    let records = Arc::new(Mutex::new(Vec::new()));
    let mut lives = tokio::task::JoinSet::new();
    let mut seed_of = seed..;
    for (i, crew) in CREWS.into_iter().enumerate() {
        let pod = Arc::new(world.sidecar(&format!("pod-{i}")).await);
        for seed in seed_of.by_ref().take(crew) {
            let (pod, at) = (pod.clone(), at.clone());
            let (config, records) = (config.clone(), records.clone());
            lives.spawn(one_life(pod, at, config, seed, rounds, records));
        }
    }
    while let Some(done) = lives.join_next().await {
        done.unwrap();
    }
    let records = records.lock().unwrap();
    println!("{} grants", records.len());
    // Half of the requests do not wait, and a holder that dies keeps the key for its time to live.
    assert!(records.len() >= rounds / 2, "too little happened: {} grants", records.len());
    if let Err(what) = check(&records) {
        panic!("seed {seed}: {what}");
    }
    let mut fences: Vec<Fence> = records.iter().map(|record| record.fence).collect();
    fences.sort();
    // Whoever the store grants to is two ahead.
    let passed = fences.windows(2).filter(|pair| pair[1].get() == pair[0].get() + 1).count();
    println!("{passed} passed on");
    passed
}

#[test]
fn the_checker_sees_overlap_repeats_and_wrong_order() {
    let at = |ms: u64| Stamp { boot_ns: ms, raw_ns: ms, real_ns: ms };
    let record = |fence, asked, granted, ended| Record {
        fence: Fence::new(fence),
        asked: at(asked),
        granted: at(granted),
        ended: at(ended),
    };
    assert!(check(&[record(1, 0, 1, 5), record(2, 2, 6, 9)]).is_ok());
    assert!(check(&[record(1, 0, 1, 5), record(2, 2, 4, 9)]).is_err());
    assert!(check(&[record(1, 0, 1, 5), record(1, 2, 6, 9)]).is_err());
    assert!(check(&[record(2, 0, 1, 5), record(1, 6, 7, 9)]).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_histories_are_legal() {
    random_histories_are_legal(&MemoryWorld::start().await, 200, 200).await;
}
