//! Requests that were given up, and tried again before the store knows.

use std::time::Duration;

use holdfast_backend::waiter::Acquisition;
use holdfast_core::lock::{LockBackend, Release};
use tokio::time::sleep;

use crate::{
    fixture::{Store, mk_address, mk_config},
    passing::Pod,
};

/// A hold that a retry finds granted would be taken from it by the cancellation that is still tried.
#[tokio::test]
async fn a_retry_waits_until_the_try_before_it_is_withdrawn() {
    let store = Store::start(&[]).await;
    let (pod, at, config) = (Pod::new(&store).await, mk_address("again"), mk_config());
    let (first, _lock) = pod.hold(&at, &config).await;
    let (hold, asking) = pod.ask(&at, &config, 1).await;
    // Its caller goes away, and the store cannot be told yet.
    let epoch = store.epoch.send_replace(None);
    asking.abort();
    assert!(asking.await.is_err_and(|error| error.is_cancelled()));
    sleep(Duration::from_millis(5)).await;
    store.epoch.send_replace(epoch);
    let released = pod.session.locks.release(&at, &config, &first).await;
    assert_eq!(released, Ok(Release::Released), "the store grants it to the try before");
    let request = pod.session.request(&config, &hold);
    let retried = pod.client.acquire(&at, request, Duration::ZERO, false).await;
    assert!(matches!(retried, Ok(Acquisition::Cancelled)), "held, and soon withdrawn");
    let view = pod.session.locks.query(&at, &config).await.unwrap();
    assert_eq!((view.holds, view.waiters), (0, 0));
}
