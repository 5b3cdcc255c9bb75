//! Lost data is noticed by the very transition that it endangers, and never lowers a fence (C2, C3).

use std::{sync::Arc, time::Duration};

use holdfast_backend::redis::{KnownEpoch, LocalEpoch};
use holdfast_core::{
    Address, BackendError, HoldId,
    lock::{Attempt, Consistency, LockBackend, LockConfig, Release, Renewal},
};

use crate::fixture::{Session, Store, TTL, eventually, mk_address, mk_config, mk_redis};

/// Asserts that each transition is refused and that the store is as it was.
async fn is_refused(store: &Store, session: &Session, at: &Address, hold: &HoldId) {
    let (locks, config) = (&session.locks, mk_config());
    let before = dump(store).await;
    // A connection that a restart has broken is found out by one call of unknown outcome.
    eventually("the connection is back", async || {
        match locks.beat(at, &config, &session.id).await {
            Err(BackendError::Epoch) => Some(()),
            Err(BackendError::Unknown(_) | BackendError::Unavailable(_)) => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    let epoch = BackendError::Epoch;
    assert_eq!(session.try_acquire(at, &config, hold).await.unwrap_err(), epoch);
    assert_eq!(session.try_acquire(at, &config, &HoldId::random()).await.unwrap_err(), epoch);
    assert_eq!(locks.renew(at, &config, hold, TTL).await.unwrap_err(), epoch);
    assert_eq!(locks.release(at, &config, hold).await.unwrap_err(), epoch);
    assert_eq!(locks.cancel(at, &config, hold).await.unwrap_err(), epoch);
    assert_eq!(locks.beat(at, &config, &session.id).await.unwrap_err(), epoch);
    assert_eq!(locks.force_release(at, &config).await.unwrap_err(), epoch);
    assert_eq!(locks.newest_fence(at, &config).await.unwrap_err(), epoch);
    assert_eq!(dump(store).await, before);
}

/// Every name and serialised value in the store.
async fn dump(store: &Store) -> Vec<(String, Vec<u8>)> {
    let mut names: Vec<String> =
        eventually("names", async || store.command(&["KEYS", "*"]).await.ok()).await;
    names.sort();
    let mut values = Vec::new();
    for name in names {
        let value: Vec<u8> = store.command(&["DUMP", &name]).await.unwrap();
        values.push((name, value));
    }
    values
}

#[tokio::test]
async fn a_restart_closes_the_store_until_a_new_epoch_and_fences_go_on() {
    let mut store = Store::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let (session, at, config) = (store.session(), mk_address("a"), mk_config());
    let hold = HoldId::random();
    let granted = session.grant(&at, &config, &hold).await;
    store.server.restart();
    is_refused(&store, &session, &at, &hold).await;
    store.open(2).await;
    // The log kept the hold: it goes on, with the fence that it had.
    assert!(matches!(
        session.locks.renew(&at, &config, &hold, TTL).await,
        Ok(Renewal::Renewed { .. })
    ));
    assert_eq!(session.grant(&at, &config, &hold).await.fence, granted.fence);
    // What goes on is no stale holder; once it has ended, everything of its epoch is.
    let newest = async || session.locks.newest_fence(&at, &config).await.unwrap();
    assert_eq!(newest().await, granted.fence);
    assert_eq!(session.locks.release(&at, &config, &hold).await, Ok(Release::Released));
    assert!(newest().await > granted.fence);
    assert!(session.fence(&at, &config).await > granted.fence);
}

#[tokio::test]
async fn a_restart_without_a_log_loses_holds_but_never_a_fence() {
    let mut store = Store::start(&[]).await;
    let (session, at, config) = (store.session(), mk_address("a"), mk_config());
    let mut last = session.fence(&at, &config).await;
    for number in 2..5 {
        store.server.restart();
        is_refused(&store, &session, &at, &HoldId::random()).await;
        store.open(number).await;
        let next = session.fence(&at, &config).await;
        assert!(next > last, "{next} after {last}");
        last = next;
    }
}

#[tokio::test]
async fn a_flush_closes_the_store_until_a_new_epoch() {
    let store = Store::start(&[]).await;
    let (session, at, config) = (store.session(), mk_address("a"), mk_config());
    let hold = HoldId::random();
    let granted = session.grant(&at, &config, &hold).await;
    store.command::<()>(&["FLUSHALL"]).await.unwrap();
    is_refused(&store, &session, &at, &hold).await;
    assert!(dump(&store).await.is_empty());
    store.open(2).await;
    assert_eq!(session.locks.renew(&at, &config, &hold, TTL).await, Ok(Renewal::Lost));
    assert!(session.fence(&at, &config).await > granted.fence);
}

#[tokio::test]
async fn a_later_marker_closes_the_store_to_those_who_have_not_heard_of_it() {
    let store = Store::start(&[]).await;
    let (session, at) = (store.session(), mk_address("a"));
    let hold = HoldId::random();
    session.grant(&at, &mk_config(), &hold).await;
    store.admin.open_epoch("shop", 2).await.unwrap();
    is_refused(&store, &session, &at, &hold).await;
    assert_eq!(store.admin.open_epoch("shop", 1).await, Err(BackendError::Epoch));
    assert_eq!(store.admin.marker("shop").await, Ok(Some(2)));
}

#[tokio::test]
async fn a_record_of_a_later_epoch_is_not_granted_in_an_earlier_one() {
    let store = Store::start(&[]).await;
    let (session, at, config) = (store.session(), mk_address("a"), mk_config());
    store.open(7).await;
    let last = session.fence(&at, &config).await;
    // Etcd was restored from a backup, say: the operator counts from below again.
    store.command::<()>(&["SET", "hf:shop:epoch", "6"]).await.unwrap();
    store.open(6).await;
    is_refused(&store, &session, &at, &HoldId::random()).await;
    store.open(8).await;
    assert!(session.fence(&at, &config).await > last);
}

#[tokio::test]
async fn without_an_open_epoch_a_strict_class_does_not_even_ask() {
    let store = Store::start(&[]).await;
    let known = store.epoch.borrow().clone().unwrap();
    let (session, at) = (store.session(), mk_address("a"));
    for epoch in [None, Some(KnownEpoch { open: false, ..known.clone() })] {
        store.epoch.send_replace(epoch);
        let refused = session.try_acquire(&at, &mk_config(), &HoldId::random()).await;
        assert_eq!(refused, Err(BackendError::Epoch));
    }
    assert_eq!(session.locks.connects(), 0);
}

#[tokio::test]
async fn a_best_effort_class_goes_on_in_doubt() {
    let mut store = Store::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let (session, at) = (store.session(), mk_address("a"));
    let consistency = Consistency::BestEffort;
    let config = Arc::new(LockConfig { consistency, ..(*mk_config()).clone() });
    let known = store.epoch.borrow().clone().unwrap();
    let mut last = session.fence(&at, &config).await;
    store.epoch.send_replace(Some(KnownEpoch { open: false, ..known }));
    let next = session.fence(&at, &config).await;
    assert!(next > last);
    last = next;
    store.server.restart();
    let hold = HoldId::random();
    let next =
        eventually("a grant", async || match session.try_acquire(&at, &config, &hold).await {
            Ok(Attempt::Granted(grant)) => Some(grant.fence),
            Err(BackendError::Unknown(_) | BackendError::Unavailable(_)) => None,
            other => panic!("{other:?}"),
        })
        .await;
    assert!(next > last);
}

// === LocalEpoch ===

const SOON: Duration = Duration::from_secs(10);

/// A store that nobody operates.
async fn unopened(args: &[&str]) -> Store {
    let store = Store::start(args).await;
    store.command::<()>(&["FLUSHALL"]).await.unwrap();
    store.epoch.send_replace(None);
    store
}

async fn local(store: &Store) -> LocalEpoch {
    let epoch = LocalEpoch::start(mk_redis(&store.server), "shop", Duration::ZERO).unwrap();
    assert!(epoch.opened(SOON).await);
    epoch
}

async fn next_fence(store: &Store, epoch: &LocalEpoch, at: &Address) -> holdfast_core::Fence {
    let mut known = epoch.known();
    eventually("a fence", async || {
        store.epoch.send_replace(known.borrow_and_update().clone());
        let (session, hold) = (store.session(), HoldId::random());
        match session.try_acquire(at, &mk_config(), &hold).await {
            Ok(Attempt::Granted(grant)) => {
                session.locks.release(at, &mk_config(), &hold).await.unwrap();
                Some(grant.fence)
            }
            Err(BackendError::Epoch | BackendError::Unavailable(_)) => None,
            other => panic!("{other:?}"),
        }
    })
    .await
}

#[tokio::test]
async fn a_local_epoch_is_raised_after_a_flush_and_after_a_restart_of_the_store() {
    let mut store = unopened(&[]).await;
    let (epoch, at) = (local(&store).await, mk_address("a"));
    let first = next_fence(&store, &epoch, &at).await;
    store.command::<()>(&["FLUSHALL"]).await.unwrap();
    let second = next_fence(&store, &epoch, &at).await;
    assert!(second > first);
    store.server.restart();
    assert!(next_fence(&store, &epoch, &at).await > second);
}

#[tokio::test]
async fn a_flush_together_with_a_restart_of_the_process_lowers_no_fence() {
    let store = unopened(&[]).await;
    let at = mk_address("a");
    let mut last = next_fence(&store, &local(&store).await, &at).await;
    for _ in 0..3 {
        store.command::<()>(&["FLUSHALL"]).await.unwrap();
        let next = next_fence(&store, &local(&store).await, &at).await;
        assert!(next > last, "{next} after {last}");
        last = next;
    }
}

#[tokio::test]
async fn two_processes_agree_on_a_local_epoch() {
    let mut store = unopened(&[]).await;
    let (one, two) = (local(&store).await, local(&store).await);
    assert_eq!(*one.known().borrow(), *two.known().borrow());
    let before = one.known().borrow().clone().unwrap();
    store.server.restart();
    let agreed = eventually("the same new epoch", async || {
        let (one, two) = (one.known().borrow().clone()?, two.known().borrow().clone()?);
        (one == two && one.open && one.number > before.number).then_some(one)
    })
    .await;
    // Neither of them goes on raising it: each looks at the store every half second.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(one.known().borrow().clone().unwrap(), agreed);
}

#[tokio::test]
async fn a_raised_local_epoch_is_closed_during_quarantine() {
    let store = unopened(&[]).await;
    let quarantine = Duration::from_secs(3);
    let epoch = LocalEpoch::start(mk_redis(&store.server), "shop", quarantine).unwrap();
    assert!(epoch.opened(SOON).await);
    let mut known = epoch.known();
    let since = tokio::time::Instant::now();
    store.command::<()>(&["FLUSHALL"]).await.unwrap();
    let closed = known.wait_for(|known| known.as_ref().is_some_and(|k| !k.open)).await.unwrap();
    let number = closed.as_ref().unwrap().number;
    drop(closed);
    assert!(epoch.opened(SOON).await);
    // Not from when it was heard of: it began before that.
    assert!(since.elapsed() >= quarantine, "{:?}", since.elapsed());
    assert_eq!(known.borrow().as_ref().unwrap().number, number);
}
