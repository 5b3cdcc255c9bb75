//! What an uninstall takes with it, on an API server of its own: it takes everything that is there.

use std::process::Command;

use crate::{
    fixture::{Bed, OPERATOR, Plane, SYSTEM, eventually},
    redis::RedisServer,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_deletes_the_users_that_sidecars_logged_in_with() {
    let plane = Plane::start();
    let mut operator = plane.operator("operator", &[]);
    let bed = Bed::new(&plane).await;
    let redis = RedisServer::start(&[]);
    bed.backend("main", &redis, "");
    bed.lock("orders", "{backend: main}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let user = format!("holdfast-{}", bed.namespace);
    assert!(redis.talk("ACL USERS").contains(&user));
    // One that never answers is not in the way.
    let mut gone = RedisServer::start(&[]);
    bed.backend("gone", &gone, "");
    eventually("its epoch", async || {
        let backend = bed.get_backend("gone").await;
        backend.and_then(|backend| backend.status?.epoch).is_some()
    })
    .await;
    gone.kill();
    // No Deployment here: what scaling it to nothing does.
    assert!(operator.stop().await);

    let cleanup = Command::new(OPERATOR)
        .args(["cleanup"])
        .env("KUBECONFIG", plane.server.kubeconfig())
        .env("POD_NAMESPACE", SYSTEM)
        .output()
        .unwrap();
    assert!(cleanup.status.success(), "{}", String::from_utf8_lossy(&cleanup.stderr));
    assert!(!redis.talk("ACL USERS").contains(&user), "it stays");
    assert!(bed.kubectl(&["get", "secret", "holdfast-redis"], "").is_err());
    assert!(bed.get_lock("orders").await.unwrap().metadata.finalizers.is_none());
}
