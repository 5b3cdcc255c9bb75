//! Grants that replicas must have before they are answered (C1).

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use holdfast_backend::{
    redis::{Ack, Credentials},
    waiter::{Acquisition, LockClient},
};
use holdfast_core::{
    BackendError, Guarantee, HoldId,
    clock::SystemClock,
    lock::{Attempt, LockBackend, Release},
};
use tokio::time::{Instant, timeout};

use crate::{
    fixture::{NAMESPACE, Session, Store, command_as, eventually, mk_address, mk_config, mk_redis},
    server::RedisServer,
};

const WAIT: Duration = Duration::from_secs(3);

/// A primary that a replica follows.
async fn start() -> (Store, RedisServer) {
    let store = Store::start(&["--repl-diskless-sync-delay", "0"]).await;
    let address = store.server.address();
    let (host, port) = address.split_once(':').unwrap();
    let replica = RedisServer::start(&["--replicaof", host, port]);
    eventually("a replica follows", async || {
        // What the primary says is too early: the replica may still be reading what it was sent.
        let url = format!("redis://{}/", replica.address());
        let info: String = command_as(&url, &["INFO", "replication"]).await.ok()?;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
    // A server takes another replication id when its first replica comes: a new epoch.
    store.open(2).await;
    (store, replica)
}

fn acked(store: &Store, replicas: u8) -> Session {
    let ack = Ack { replicas, timeout: WAIT };
    store.session_as(mk_redis(&store.server).with_ack(Some(ack)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_answered_when_the_replicas_have_it() {
    let (store, replica) = start().await;
    let (session, config) = (acked(&store, 1), mk_config());
    assert_eq!(session.locks.guarantee(), Guarantee::PrimaryAck(1));
    for round in 0..20 {
        let (at, hold) = (mk_address(&format!("k{round}")), HoldId::random());
        session.grant(&at, &config, &hold).await;
        // No waiting: it must be there.
        let name = format!("hf:{NAMESPACE}:{{lock/orders/k{round}}}:l");
        let url = format!("redis://{}/", replica.address());
        let record: Option<String> = command_as(&url, &["GET", &name]).await.unwrap();
        assert!(record.unwrap().contains(hold.as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_short_of_replicas_is_undone_and_the_same_request_may_try_again() {
    let (store, replica) = start().await;
    let (session, other) = (acked(&store, 1), store.session());
    let mut config = (*mk_config()).clone();
    config.min_hold_ms = 60_000;
    let (config, at, hold) = (config.into(), mk_address("a"), HoldId::random());
    replica.pause(true);
    let refused = session.try_acquire(&at, &config, &hold).await.unwrap_err();
    assert!(refused.is_retryable() && matches!(refused, BackendError::Unavailable(_)));
    assert!(refused.to_string().contains("0 of 1 replicas"), "{refused}");
    assert!(session.locks.query(&at, &config).await.unwrap().holder.is_none());

    replica.pause(false);
    let grant = session.grant(&at, &config, &hold).await;
    let undone = session.locks.release(&at, &config, &hold).await.unwrap();
    assert_eq!(undone, Release::Released);
    // A hold that somebody was told of keeps its minimal time; the one undone did not.
    let held = other.try_acquire(&at, &config, &HoldId::random()).await.unwrap();
    assert!(matches!(held, Attempt::Queued { .. }), "{held:?}");
    assert!(grant.fence.get() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_is_not_told_of_a_grant_before_replicas_have_it() {
    let (store, replica) = start().await;
    let (first, second) = (acked(&store, 1), acked(&store, 1));
    let (config, at, hold) = (mk_config(), mk_address("a"), HoldId::random());
    let held = first.grant(&at, &config, &hold).await;
    assert!(second.locks.subscribed(Duration::from_secs(5)).await);
    let client = LockClient::new(
        second.locks.clone(),
        second.hub.clone(),
        Arc::new(SystemClock),
        second.id.clone(),
    );
    let request = second.request(&config, &HoldId::random());
    let wait = Duration::from_secs(60);
    let waiting = tokio::spawn({
        let at = at.clone();
        async move { client.acquire(&at, request, wait, false).await }
    });
    eventually("it waits", async || {
        (first.locks.query(&at, &config).await.ok()?.waiters == 1).then_some(())
    })
    .await;
    replica.pause(true);
    first.locks.release(&at, &config, &hold).await.unwrap();
    tokio::pin!(waiting);
    assert!(timeout(WAIT * 3, &mut waiting).await.is_err(), "told of an unacknowledged grant");
    replica.pause(false);
    let Ok(Acquisition::Held(got)) = waiting.await.unwrap() else { panic!("never granted") };
    assert!(got.fence > held.fence);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_are_away_block_nothing_but_grants_and_those_for_one_time_out() {
    let (store, replica) = start().await;
    let (session, config) = (acked(&store, 1), mk_config());
    let (at, hold) = (mk_address("held"), HoldId::random());
    session.grant(&at, &config, &hold).await;
    replica.pause(true);
    let began = Instant::now();
    let keys: Vec<_> = (0..100).map(|n| mk_address(&format!("k{n}"))).collect();
    let grants = join_all(keys.iter().map(async |at| {
        session.try_acquire(at, &config, &HoldId::random()).await.unwrap_err().code()
    }));
    let renewals = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let sent = Instant::now();
            session.locks.renew(&at, &config, &hold, Duration::from_secs(30)).await.unwrap();
            slowest = slowest.max(sent.elapsed());
        }
        slowest
    };
    let (grants, slowest) = tokio::join!(grants, renewals);
    assert!(grants.iter().all(|code| *code == "backend_unavailable"), "{grants:?}");
    // A hundred one after the other would take five minutes.
    assert!(began.elapsed() < WAIT * 6, "{:?}", began.elapsed());
    // One that waits for a replica that is away takes as long as that may take.
    assert!(slowest < WAIT, "a renewal waited for a replica: {slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_library_is_loaded_for_acknowledged_grants_too() {
    let (store, _replica) = start().await;
    store.command::<()>(&["FUNCTION", "FLUSH"]).await.unwrap();
    let session = acked(&store, 1);
    session.grant(&mk_address("a"), &mk_config(), &HoldId::random()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_user_may_wait_for_replicas() {
    let (store, _replica) = start().await;
    store.admin.ensure_user(NAMESPACE, "ann", &["secret".to_owned()]).await.unwrap();
    let credentials = Credentials { username: Some("ann".into()), password: Some("secret".into()) };
    let ack = Ack { replicas: 1, timeout: WAIT };
    let config = mk_redis(&store.server).with_ack(Some(ack));
    let config = config.with_credentials(Arc::new(move || Ok(credentials.clone())));
    let session = store.session_as(config);
    session.grant(&mk_address("a"), &mk_config(), &HoldId::random()).await;
}
