//! The Redis passwords of a namespace change, and nobody is locked out.

use holdfast_core::lock::LockBackend;

use crate::{
    fixture::{Bed, acquire_soon, eventually},
    redis::RedisServer,
};

/// As if so much time had gone by since the passwords were made.
fn age(bed: &Bed<'_>) {
    let since = "holdfast.dev/passwords-since=2020-01-01T00:00:00Z";
    let secret = ["annotate", "--overwrite", "secret", "holdfast-redis", since];
    bed.kubectl(&secret, "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_change_with_an_overlap_in_which_both_are_good() {
    let bed = Bed::shared().await;
    let (redis, other) = (RedisServer::start(&[]), RedisServer::start(&[]));
    bed.backend("vault", &redis, "");
    bed.lock("orders", "{ttlSeconds: 20, backend: vault}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (config, at) = (bed.config("orders").await, bed.at("orders", "k"));
    let first = bed.credential("vault.password").await;
    let running = bed.redis("vault").await;
    acquire_soon(&*running, &at, &config, "pod-1").await;
    assert_eq!(bed.credential("vault.previous-password").await, None);

    age(&bed);
    // A Secret is read when something is different, or after a minute: this is quicker.
    bed.backend("vault-2", &other, "");
    eventually("another password", async || bed.credential("vault.password").await != first).await;
    let second = bed.credential("vault.password").await;
    assert_eq!(bed.credential("vault.previous-password").await, first);
    eventually("the new one is good", async || {
        let locks = bed.redis_as("vault", second.clone()).await;
        locks.query(&at, &config).await.is_ok()
    })
    .await;
    let late = bed.redis_as("vault", first.clone()).await;
    late.query(&at, &config).await.expect("a pod that has not been told yet");
    running.query(&at, &config).await.expect("who is connected stays so");

    age(&bed);
    bed.backend("vault-3", &other, "");
    eventually("the end of the old one", async || {
        bed.credential("vault.previous-password").await.is_none()
    })
    .await;
    assert_eq!(bed.credential("vault.password").await, second, "it does not change again so soon");
    eventually("the old one is refused", async || {
        let locks = bed.redis_as("vault", first.clone()).await;
        locks.query(&at, &config).await.is_err()
    })
    .await;
    bed.redis("vault").await.query(&at, &config).await.expect("the new one");
    running.query(&at, &config).await.expect("who is connected stays so");
}
