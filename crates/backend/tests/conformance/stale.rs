//! A1: what a fence is for. Holders that pause beyond their time to live write to a resource; one
//! that checks fences loses nothing, and the control that does not check loses some.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_backend::waiter::Acquisition;
use holdfast_core::{Fence, HoldId, lock::LockConfig};
use rand::RngExt;
use tokio::time::sleep;

use crate::fixture::{MemoryWorld, World, fresh, mk_config};

/// A register that remembers the highest fence it has been shown, on reads as well as on writes.
#[derive(Default)]
struct Resource {
    checks: bool,
    value: u64,
    highest: Option<Fence>,
    refused: u64,
}

impl Resource {
    fn admit(&mut self, fence: Fence) -> bool {
        if self.checks && Some(fence) < self.highest {
            self.refused += 1;
            return false;
        }
        self.highest = self.highest.max(Some(fence));
        true
    }

    fn read(&mut self, fence: Fence) -> Option<u64> {
        self.admit(fence).then_some(self.value)
    }

    fn write(&mut self, fence: Fence, value: u64) -> bool {
        let admitted = self.admit(fence);
        if admitted {
            self.value = value;
        }
        admitted
    }
}

/// Increments under the lock, with pauses longer than the hold. Returns acknowledged increments,
/// what the register says, and how many stale requests were refused.
async fn run(world: &dyn World, checks: bool, ttl: Duration, rounds: usize) -> (u64, u64, u64) {
    let at = fresh(world).await;
    let config = Arc::new(LockConfig { ttl_ms: ttl.as_millis() as u64, ..mk_config(world) });
    let resource = Arc::new(Mutex::new(Resource { checks, ..Resource::default() }));
    let mut pods = tokio::task::JoinSet::new();
    for i in 0..4 {
        let pod = world.sidecar(&format!("pod-{i}")).await;
        let (at, config, resource) = (at.clone(), config.clone(), resource.clone());
        pods.spawn(async move {
            let mut acknowledged = 0;
            for _ in 0..rounds {
                let hold = HoldId::random();
                let got = pod.acquire(&at, &config, &hold, ttl * 20).await;
                let Ok(Acquisition::Held(held)) = got else { continue };
                let Some(value) = resource.lock().unwrap().read(held.fence) else { continue };
                // A pause that no deadline check of the app can see: it falls between check and act.
                let paused = rand::rng().random_bool(0.3);
                sleep(if paused { ttl * 3 / 2 } else { ttl / 50 }).await;
                acknowledged += u64::from(resource.lock().unwrap().write(held.fence, value + 1));
                if !paused {
                    pod.release(&at, &config, &hold).await;
                }
            }
            acknowledged
        });
    }
    let mut acknowledged = 0;
    while let Some(count) = pods.join_next().await {
        acknowledged += count.unwrap();
    }
    let resource = resource.lock().unwrap();
    println!("checks={checks}: {acknowledged} acknowledged, {} refused", resource.refused);
    (acknowledged, resource.value, resource.refused)
}

pub async fn stale_holders_are_fenced(world: &dyn World, ttl: Duration, rounds: usize) {
    let (acknowledged, value, refused) = run(world, true, ttl, rounds).await;
    assert_eq!(acknowledged, value, "acknowledged increments were lost");
    assert!(refused > 0, "no holder was ever stale: the run shows nothing");
    let (acknowledged, value, _) = run(world, false, ttl, rounds).await;
    assert!(value < acknowledged, "the control lost nothing: the run shows nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stale_holders_are_fenced() {
    stale_holders_are_fenced(&MemoryWorld::start().await, Duration::from_millis(100), 40).await;
}
