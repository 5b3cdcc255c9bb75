//! A sidecar that dies after its heir was told, and before the store was.

use super::*;

/// The caveat of docs/guarantees.md, in full: the next run takes up the old hold and releases it while
/// the heir trusts its own. The fence of whoever is granted it then is higher.
#[tokio::test]
async fn a_pod_that_dies_before_the_store_knows_leaves_fences_in_order() {
    let store = Arc::new(Store::start(&[]).await);
    let (at, config, other) = (mk_address("dying"), mk_config(), Pod::new(&store).await);
    // Whatever it has open ends with its runtime, as with a process.
    let process =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let run = tokio::task::spawn_blocking({
        let (store, at, config) = (store.clone(), at.clone(), config.clone());
        let process = process.handle().clone();
        move || {
            process.block_on(async {
                let pod = Pod::new(&store).await;
                let (hold, lock) = pod.hold(&at, &config).await;
                let (_, asking) = pod.ask(&at, &config, 1).await;
                (pod, hold, lock, asking)
            })
        }
    });
    let (pod, hold, lock, asking) = run.await.unwrap();
    let (_, next) = other.ask(&at, &config, 2).await;
    let fence = lock.fence;
    pause(&store).await;
    process.spawn({
        let (at, config, hold) = (at.clone(), config.clone(), hold.clone());
        async move { drop(pod.release(&at, &config, (&hold, &lock)).await) }
    });
    let got = held(asking).await;
    assert_eq!(got.fence, after(fence, 1));
    process.shutdown_background();

    let next_run = store.session();
    let released = next_run.locks.release(&at, &config, &hold).await;
    assert_eq!(released, Ok(Release::Released), "the store had heard of the heir");
    // The store grants it to the heir's own ticket, and when nobody claims that to the next one.
    let offered = next_run.locks.query(&at, &config).await.unwrap().holder.unwrap();
    assert!(offered.fence > got.fence, "one fence for two grants");
    let Acquisition::Held(granted) = timeout(TTL, next).await.unwrap().unwrap().unwrap() else {
        panic!("not held")
    };
    assert!(!got.deadline.passed(SystemClock.now()), "they do not overlap: say so in the docs");
    assert!(granted.fence > got.fence);
}
