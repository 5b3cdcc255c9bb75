//! Hand-over by push, and without it (C7, C8).

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    Clock, Fence, HoldId, SystemClock,
    lock::{Attempt, LockBackend, LockConfig, Push, Release, Renewal},
};

use crate::fixture::{Store, eventually, mk_address, mk_config};

#[tokio::test]
async fn a_lock_goes_round() {
    let store = Store::start(&[]).await;
    let (one, two) = (store.session(), store.session());
    assert!(two.locks.subscribed(Duration::from_secs(5)).await);
    let (at, config) = (mk_address("order/1 é"), mk_config());
    let (first, second) = (HoldId::random(), HoldId::random());

    let granted = one.grant(&at, &config, &first).await;
    assert_eq!(one.grant(&at, &config, &first).await.fence, granted.fence);
    let mut inbox = two.hub.register(&second);
    let queued = two.try_acquire(&at, &config, &second).await.unwrap();
    assert_eq!(queued, Attempt::Queued { position: 1 });
    let view = one.locks.query(&at, &config).await.unwrap();
    let holder = view.holder.unwrap();
    assert_eq!((holder.holder.as_str(), holder.fence), ("pod-é", granted.fence));
    assert_eq!((view.waiters, view.queue.len()), (1, 1));
    let listed = one.locks.list("shop", &at.class, &config, 10).await.unwrap();
    assert_eq!(listed.iter().map(|(key, _)| key).collect::<Vec<_>>(), [&at.key]);

    assert_eq!(one.locks.release(&at, &config, &first).await.unwrap(), Release::Released);
    let Push::Granted { grant, .. } = inbox.recv().await else { panic!("no grant") };
    assert!(grant.fence > granted.fence && !grant.claimed);
    let renewed = two.locks.renew(&at, &config, &second, Duration::from_secs(9)).await.unwrap();
    assert_eq!(renewed, Renewal::Renewed { ttl: Duration::from_secs(9) });
    assert_eq!(one.locks.release(&at, &config, &first).await.unwrap(), Release::NotHeld);

    let taken = one.locks.force_release(&at, &config).await.unwrap().unwrap();
    assert_eq!(taken.fence, grant.fence);
    assert_eq!(inbox.recv().await, Push::Lost);
    assert_eq!(two.locks.renew(&at, &config, &second, taken.ttl).await.unwrap(), Renewal::Lost);
    one.locks.cancel(&at, &config, &first).await.unwrap();
    assert_eq!(one.try_acquire(&at, &config, &first).await.unwrap(), Attempt::Cancelled);
    assert!(one.fence(&at, &config).await > grant.fence);
    assert!(one.locks.list("shop", &at.class, &config, 10).await.unwrap().is_empty());
}
