//! What a namespace's user may do, and what not (C5, security 5.5).

use std::{sync::Arc, time::Duration};

use holdfast_backend::redis::{
    Credentials, RedisConfig, RedisLocks, RedisRateLimits,
    scripts::{Scripts, Transition},
};
use holdfast_core::{
    Address, BackendError, HoldId, Kind, SessionId,
    lock::{Attempt, LockBackend, Push, Renewal},
    ratelimit::{Algorithm, Check, Limit, Mode, Outcome, Policy, RateLimitBackend, Rule},
};

use crate::{
    fixture::{
        NAMESPACE, Session, Store, TTL, command_as, eventually, mk_address, mk_address_in,
        mk_config, mk_redis, pushed,
    },
    server::RedisServer,
};

const PASSWORD: &str = "pass-1";

async fn with_tenant(args: &[&str]) -> Store {
    with_tenant_on(RedisServer::start(args)).await
}

async fn with_tenant_on(server: RedisServer) -> Store {
    let store = Store::on(server).await;
    store.admin.ensure_user(NAMESPACE, "tenant", &[PASSWORD.into()]).await.unwrap();
    store
}

fn tenant_config(store: &Store) -> RedisConfig {
    let credentials =
        Credentials { username: Some("tenant".into()), password: Some(PASSWORD.into()) };
    let source = Arc::new(move || Ok(credentials.clone()));
    mk_redis(&store.server).with_credentials(source)
}

fn tenant(store: &Store) -> Session {
    store.session_as(tenant_config(store))
}

fn url(server: &RedisServer) -> String {
    format!("redis://tenant:{PASSWORD}@{}/", server.address())
}

/// Everything that a sidecar does.
async fn works(store: &Store) {
    let (one, two) = (tenant(store), tenant(store));
    assert!(two.locks.subscribed(Duration::from_secs(5)).await);
    let (at, config) = (mk_address("a"), mk_config());
    let (first, second, third) = (HoldId::random(), HoldId::random(), HoldId::random());
    one.grant(&at, &config, &first).await;
    let mut inbox = two.hub.register(&second);
    let queued = two.try_acquire(&at, &config, &second).await.unwrap();
    assert_eq!(queued, Attempt::Queued { position: 1 });
    assert_eq!(two.try_acquire(&at, &config, &third).await, Ok(Attempt::Queued { position: 2 }));
    assert_eq!(two.try_acquire(&at, &config, &second).await, Ok(queued));
    assert_eq!(two.locks.beat(&at, &config, &two.id).await.unwrap().tickets, 2);
    assert_eq!(one.locks.query(&at, &config).await.unwrap().waiters, 2);
    one.locks.renew(&at, &config, &first, TTL).await.unwrap();
    one.locks.release(&at, &config, &first).await.unwrap();
    assert!(matches!(pushed(&mut inbox).await, Push::Granted { .. }));
    two.locks.cancel(&at, &config, &third).await.unwrap();
    one.locks.force_release(&at, &config).await.unwrap().unwrap();
    assert_eq!(pushed(&mut inbox).await, Push::Lost);
    assert_eq!(two.locks.renew(&at, &config, &second, TTL).await, Ok(Renewal::Lost));
    limits_work(store).await;
}

async fn limits_work(store: &Store) {
    let limits = RedisRateLimits::connect(tenant_config(store), NAMESPACE).unwrap();
    let limit = |algorithm, limit| Limit {
        name: "l".into(),
        algorithm,
        limit,
        window_seconds: 60,
        burst: limit,
    };
    let limit_2 = [limit(Algorithm::TokenBucket, 2), limit(Algorithm::Concurrency, 2)];
    let policy = Arc::new(Policy::new(1, limit_2.iter().map(Rule::new).collect()));
    let at = Address { kind: Kind::RateLimit, ..mk_address("a") };
    let check = Check { cost: 2, mode: Mode::Enforce, max_wait_us: 0, permit: 7, least: 2 };
    let allowed = Outcome::Allowed { wait_us: 0 };
    for _ in 0..2 {
        assert_eq!(limits.check(&at, &policy, &check).await.unwrap().outcome, allowed);
        limits.refund(&at, &policy, 2).await.unwrap();
        assert!(limits.release(&at, &policy, 7).await.unwrap());
        assert_eq!(limits.check(&at, &policy, &check).await.unwrap().outcome, allowed);
        let refused = limits.check(&at, &policy, &check).await.unwrap().outcome;
        assert!(matches!(refused, Outcome::Limited { .. }), "{refused:?}");
        limits.reset(&at).await.unwrap();
    }
}

#[tokio::test]
async fn a_tenant_has_all_that_its_sidecars_need() {
    works(&with_tenant(&[]).await).await;
}

#[tokio::test]
async fn a_tenant_of_valkey_has_all_that_its_sidecars_need_and_no_more() {
    let store = with_tenant_on(RedisServer::valkey(&[])).await;
    assert!(store.admin.probe().await.unwrap().valkey);
    works(&store).await;
    for words in [&["FLUSHALL"][..], &["GET", "hf:other:x"], &["EVAL", "return 1", "0"]] {
        let refused = command_as::<redis::Value>(&url(&store.server), words).await;
        let refused = refused.expect_err(words[0]).to_string();
        assert!(refused.to_lowercase().contains("perm"), "{words:?}: {refused}");
    }
}

#[tokio::test]
async fn a_tenant_has_all_that_it_needs_where_there_are_no_functions() {
    works(
        &with_tenant(&["--rename-command", "FCALL", "", "--rename-command", "FUNCTION", ""]).await,
    )
    .await;
}

#[tokio::test]
async fn a_tenant_cannot_do_more() {
    let store = with_tenant(&["--enable-debug-command", "yes"]).await;
    let function = Scripts::shared().function(Transition::LockRelease);
    let other = "hf:shop2:{lock/orders/a}:l";
    let forbidden: &[&[&str]] = &[
        &["EVAL", "return 1", "0"],
        &["EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0"],
        &["EVAL_RO", "return 1", "0"],
        &["FUNCTION", "LOAD", "#!lua name=x\nreturn 1"],
        &["FUNCTION", "LIST"],
        &["FUNCTION", "FLUSH"],
        &["FUNCTION", "DELETE", Scripts::shared().library()],
        &["FUNCTION", "KILL"],
        &["SCRIPT", "LOAD", "return 1"],
        &["SCRIPT", "FLUSH"],
        &["SCRIPT", "KILL"],
        &["CONFIG", "GET", "*"],
        &["CONFIG", "SET", "maxmemory", "1"],
        &["FLUSHALL"],
        &["FLUSHDB"],
        &["KEYS", "*"],
        &["SCAN", "0"],
        &["RANDOMKEY"],
        &["DBSIZE"],
        &["ACL", "LIST"],
        &["ACL", "SETUSER", "tenant", "on", "+@all"],
        &["ACL", "WHOAMI"],
        &["CLIENT", "LIST"],
        &["CLIENT", "KILL", "TYPE", "normal"],
        &["DEBUG", "SLEEP", "0"],
        &["SHUTDOWN", "NOSAVE"],
        &["REPLICAOF", "NO", "ONE"],
        &["MONITOR"],
        &["DEL", "hf:shop:{lock/orders/a}:l"],
        &["MULTI"],
        &["SELECT", "1"],
        &["MIGRATE", "127.0.0.1", "1", "k", "0", "1"],
        &["SAVE"],
        &["SLOWLOG", "GET"],
        &["PSUBSCRIBE", "*"],
        // Its own marker is the operator's.
        &["SET", "hf:shop:epoch", "99"],
        &["FCALL", function, "1", "hf:shop:epoch"],
        // Other namespaces: keys, keys inside a function, channels. `shop2` is no part of `shop`.
        &["GET", other],
        &["SET", other, "x"],
        &["GET", "hf:shop2:epoch"],
        &["GET", "whatever"],
        &[
            "FCALL",
            function,
            "3",
            other,
            "hf:shop2:{lock/orders/a}:q",
            "hf:shop2:{lock/orders/a}:w",
        ],
        &["SUBSCRIBE", "hf:shop2:s:x"],
        &["PUBLISH", "hf:shop2:s:x", "l h"],
        &["SUBSCRIBE", "whatever"],
    ];
    let before: Vec<String> = store.command(&["ACL", "LIST"]).await.unwrap();
    for words in forbidden {
        let refused = command_as::<redis::Value>(&url(&store.server), words).await.unwrap_err();
        assert_eq!(refused.code(), Some("NOPERM"), "{words:?}: {refused}");
    }
    println!("{} commands, all refused", forbidden.len());
    assert_eq!(store.command::<Vec<String>>(&["ACL", "LIST"]).await.unwrap(), before);
    works(&store).await;
}

#[tokio::test]
async fn a_tenants_function_cannot_reach_into_another_namespace() {
    let store = with_tenant(&[]).await;
    // The same user, as a sidecar of another namespace would use it.
    let credentials =
        Credentials { username: Some("tenant".into()), password: Some(PASSWORD.into()) };
    let config =
        mk_redis(&store.server).with_credentials(Arc::new(move || Ok(credentials.clone())));
    let (id, hub) = (SessionId::random(), holdfast_backend::hub::Hub::new());
    store.admin.open_epoch("shop2", 1).await.unwrap();
    let epoch = store.epoch.subscribe();
    let locks = RedisLocks::connect(config, "shop2", id.clone(), hub.clone(), epoch).unwrap();
    let intruder = Session { id, hub, locks };
    let at = mk_address_in("shop2", "a");
    let refused = intruder.try_acquire(&at, &mk_config(), &HoldId::random()).await;
    assert!(matches!(refused, Err(BackendError::Forbidden(_))), "{refused:?}");
    let refused = intruder.locks.query(&at, &mk_config()).await;
    assert!(matches!(refused, Err(BackendError::Forbidden(_))), "{refused:?}");
    let listed = tenant(&store).locks.list(at.kind, "shop", &at.class, &mk_config(), 9).await;
    assert!(matches!(listed, Err(BackendError::Forbidden(_))), "{listed:?}");
}

#[tokio::test]
async fn passwords_rotate_with_an_overlap_and_a_dropped_user_is_out() {
    let store = with_tenant(&[]).await;
    let (session, at, config) = (tenant(&store), mk_address("a"), mk_config());
    session.fence(&at, &config).await;
    let both = [PASSWORD.to_owned(), "pass-2".to_owned()];
    store.admin.ensure_user(NAMESPACE, "tenant", &both).await.unwrap();
    session.fence(&at, &config).await;
    assert_eq!(session.locks.connects(), 1);
    let second = format!("redis://tenant:pass-2@{}/", store.server.address());
    for url in [&url(&store.server), &second] {
        command_as::<String>(url, &["PING"]).await.unwrap();
    }
    store.admin.ensure_user(NAMESPACE, "tenant", &both[1..]).await.unwrap();
    assert!(command_as::<String>(&url(&store.server), &["PING"]).await.is_err());
    store.admin.drop_user("tenant").await.unwrap();
    store.admin.drop_user("tenant").await.unwrap();
    eventually("it is out", async || {
        let attempt = session.try_acquire(&at, &config, &HoldId::random()).await;
        matches!(attempt, Err(BackendError::Forbidden(_))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_purged_class_leaves_nothing_but_the_number_to_start_above() {
    let store = Store::start(&[]).await;
    let (session, config) = (store.session(), mk_config());
    let mut top = 0;
    for n in 0..500 {
        let (at, hold) = (mk_address(&format!("key/{n}")), HoldId::random());
        top = top.max(session.grant(&at, &config, &hold).await.fence.sequence());
        session.try_acquire(&at, &config, &HoldId::random()).await.unwrap();
        session.locks.cancel(&at, &config, &HoldId::random()).await.unwrap();
    }
    let class = mk_address("a").class;
    // Classes whose names it begins or contains stay.
    for stays in ["orders-2", "my-orders"] {
        let class = holdfast_core::ClassName::new(stays).unwrap();
        let at = Address { class, ..mk_address("a") };
        session.grant(&at, &config, &HoldId::random()).await;
    }
    let kind = Kind::Lock;
    assert_eq!(store.admin.purge_class(NAMESPACE, kind, &class).await, Ok(top));
    assert_eq!(store.admin.purge_class(NAMESPACE, kind, &class).await, Ok(0));
    let mut left: Vec<String> = store.command(&["KEYS", "*"]).await.unwrap();
    left.sort();
    assert_eq!(
        left,
        [
            "hf:shop:epoch",
            "hf:shop:{lock/my-orders/default}:l",
            "hf:shop:{lock/orders-2/default}:l"
        ]
        .map(|name| name.replace("default", "a"))
    );
}

#[tokio::test]
async fn a_probe_tells_what_makes_locks_unsafe() {
    let store = Store::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let probe = store.admin.probe().await.unwrap();
    assert!(probe.version.starts_with(|c: char| c.is_ascii_digit()), "{probe:?}");
    assert_eq!((probe.role.as_str(), probe.maxmemory_policy.as_str()), ("master", "allkeys-lru"));
    assert_eq!((probe.aof_enabled, probe.connected_replicas), (false, 0));
    assert_eq!(probe.replid.len(), 40);
    store.admin.load_library().await.unwrap();
    store
        .command::<()>(&[
            "FUNCTION",
            "LOAD",
            "#!lua name=holdfast_old\nredis.register_function('holdfast_old_x', function() end)",
        ])
        .await
        .unwrap();
    assert_eq!(store.admin.unload_other_libraries().await, Ok(1));
    store.session().fence(&mk_address("a"), &mk_config()).await;
}
