//! Workers of several pods that contend while connections break.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_backend::waiter::{Acquisition, Heir};
use holdfast_core::{Fence, HoldId};
use rand::random_range;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{Pod, after};
use crate::fixture::{Store, TTL, eventually, mk_address, mk_config};

/// Who had the lock, in the order of time.
type Terms = Arc<Mutex<Vec<(Instant, Instant, Fence, usize)>>>;

/// Workers of three pods contend on connections that break: never two at once, and fences in order.
#[tokio::test]
async fn workers_of_several_pods_never_hold_at_once() {
    let store = Store::start(&[]).await;
    let (at, config) = (mk_address("busy"), mk_config());
    let (terms, mut workers) = (Terms::default(), JoinSet::new());
    let begun = Instant::now();
    // On a slow machine there are fewer terms in that time; what nobody has is still there after more.
    let is_over = move |terms: &Terms| {
        let (spent, had) = (begun.elapsed(), terms.lock().unwrap().len());
        spent > Duration::from_secs(10) || (spent > Duration::from_secs(3) && had > 400)
    };
    for (n, crew) in [12, 2, 1].into_iter().enumerate() {
        let pod = Arc::new(Pod::new(&store).await);
        for _ in 0..crew {
            let (pod, at, config, terms) = (pod.clone(), at.clone(), config.clone(), terms.clone());
            workers.spawn(async move {
                while !is_over(&terms) {
                    let hold = HoldId::random();
                    let request = pod.session.request(&config, &hold);
                    let wait = Duration::from_millis(random_range(1..200));
                    let Ok(Acquisition::Held(held)) =
                        pod.client.acquire(&at, request, wait, false).await
                    else {
                        continue;
                    };
                    let begun = Instant::now();
                    sleep(Duration::from_micros(random_range(0..3_000))).await;
                    terms.lock().unwrap().push((begun, Instant::now(), held.fence, n));
                    // As a sidecar does: until the store has answered.
                    let heir = Heir::new();
                    while pod.try_release(&at, &config, (&hold, &held), &heir).await.is_err() {
                        sleep(Duration::from_millis(5)).await;
                    }
                }
            });
        }
    }
    // And answers get lost.
    let cutting = async {
        loop {
            sleep(Duration::from_millis(150)).await;
            let _: i64 = store.command(&["CLIENT", "KILL", "TYPE", "normal"]).await.unwrap();
        }
    };
    let working = async {
        while let Some(worker) = workers.join_next().await {
            worker.unwrap();
        }
    };
    tokio::select! {
        () = working => {}
        () = cutting => unreachable!(),
    }
    // A hold that nobody has keeps everybody out for half of its time to live at the least:
    // whenever it was left behind, it is still there.
    let fresh = Pod::new(&store).await;
    let last = eventually("it is granted", async || {
        let request = fresh.session.request(&config, &HoldId::random());
        match fresh.client.acquire(&at, request, TTL, false).await {
            Ok(Acquisition::Held(held)) => Some(held.fence),
            // The last cut may have been late.
            _ => None,
        }
    });
    let last = timeout(TTL / 3, last).await.expect("nobody has it, and nobody gets it");
    let mut terms = std::mem::take(&mut *terms.lock().unwrap());
    terms.sort();
    assert!(terms.iter().all(|(_, _, fence, _)| last > *fence), "{last} was granted last");
    let mut passed = BTreeMap::<usize, u32>::new();
    for pair in terms.windows(2) {
        let [(_, end, fence, pod), (begun, _, next, other)] = pair else { unreachable!() };
        assert!(begun >= end, "two at once: fences {fence} and {next}");
        assert!(next > fence, "fences {fence} and then {next}");
        if *next == after(*fence, 1) {
            assert_eq!(pod, other, "passed on to another pod");
            *passed.entry(*pod).or_default() += 1;
        }
    }
    println!("{} terms, passed on: {passed:?}", terms.len());
    assert!(terms.len() > 200 && passed.values().sum::<u32>() > 20, "{passed:?}");
}
