//! Dapr's lock API, over HTTP and gRPC.

use std::net::SocketAddr;

use holdfast_api::bundle::Bundle;
use holdfast_backend::redis::LocalEpoch;
use holdfast_core::{Holder, Substrate};
use holdfast_peers::{
    dapr::{
        TryLockRequest, UnlockRequest, dapr_client::DaprClient, unlock_response::Status as Unlock,
    },
    tonic::{Code as Grpc, transport::Channel},
};
use holdfast_sidecar::{Compat, Local};
use serde_json::json;

use crate::{
    client::{Answer, App, CLASSES, mk_bundle, mk_bundle_on},
    server::RedisServer,
};

const MORE: &str = r#"
---
apiVersion: holdfast.dev/v1alpha1
kind: Lock
metadata: {name: bounded}
spec: {backend: main, ttlSeconds: 10, maxHoldSeconds: 20}
"#;

struct Dapr {
    http: App,
    native: SocketAddr,
    grpc: DaprClient<Channel>,
    _epoch: Option<LocalEpoch>,
}

async fn start() -> Dapr {
    start_on(&mk_bundle(&[CLASSES, MORE].concat()), None).await
}

async fn start_on(bundle: &Bundle, redis: Option<(&str, &str)>) -> Dapr {
    let local = Local {
        namespace: "default".into(),
        holder: Holder::new("pod-a").unwrap(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        page: false,
    };
    let (mut serving, epoch) = local.start(bundle, redis).await.unwrap();
    if let Some(epoch) = &epoch {
        assert!(epoch.opened(std::time::Duration::from_secs(30)).await);
    }
    let wanted: Compat = "dapr-http=127.0.0.1:0,dapr-grpc=127.0.0.1:0".parse().unwrap();
    let bound = serving.compat(&wanted).await.unwrap();
    let at = format!("http://{}", bound.dapr_grpc.unwrap());
    let channel = Channel::from_shared(at).unwrap().connect().await.unwrap();
    let holdfast_sidecar::Listen::Tcp(native) = serving.listens[0].clone() else { unreachable!() };
    let http = App { serving, address: bound.dapr_http.unwrap() };
    Dapr { http, native, grpc: DaprClient::new(channel), _epoch: epoch }
}

impl Dapr {
    async fn lock(&self, store: &str, resource: &str, owner: &str, seconds: i64) -> Answer {
        let body = json!({
            "resourceId": resource, "lockOwner": owner, "expiryInSeconds": seconds, "more": "field"
        });
        self.http.post_json(&format!("/v1.0-alpha1/lock/{store}"), &body.to_string()).await
    }

    async fn unlock(&self, store: &str, resource: &str, owner: &str) -> Answer {
        let body = json!({"resourceId": resource, "lockOwner": owner}).to_string();
        self.http.post_json(&format!("/v1.0-alpha1/unlock/{store}"), &body).await
    }

    async fn unlocked(&self, store: &str, resource: &str, owner: &str) -> i64 {
        let answer = self.unlock(store, resource, owner).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["status"].as_i64().unwrap()
    }
}

#[tokio::test]
async fn a_lock_is_its_owners_until_it_is_given_back() {
    let dapr = start().await;
    let first = dapr.lock("slow", "order-1", "ann", 20).await;
    assert_eq!((first.status, &first.body), (200, &json!({"success": true})));
    let fence: u64 = first.headers["holdfast-fence"].to_str().unwrap().parse().unwrap();
    for owner in ["bob", "ann"] {
        let second = dapr.lock("slow", "order-1", owner, 20).await;
        assert_eq!((second.status, &second.body), (200, &json!({"success": false})), "{owner}");
        assert!(!second.headers.contains_key("holdfast-fence"));
    }
    assert_eq!(dapr.lock("slow", "order-2", "bob", 20).await.body["success"], true);
    assert_eq!(dapr.unlocked("slow", "order-1", "bob").await, 2);
    assert_eq!(dapr.unlocked("slow", "order-1", "ann").await, 0);
    assert_eq!(dapr.unlocked("slow", "order-1", "ann").await, 1);
    assert_eq!(dapr.unlocked("slow", "order-3", "ann").await, 1);
    let again = dapr.lock("slow", "order-1", "bob", 20).await;
    let next: u64 = again.headers["holdfast-fence"].to_str().unwrap().parse().unwrap();
    assert!(next > fence, "{next} after {fence}");
}

#[tokio::test]
async fn a_lock_of_the_native_api_belongs_to_others() {
    let dapr = start().await;
    let native = App { address: dapr.native, ..dapr.http };
    native.hold("slow", "key=order-1").await;
    let dapr = Dapr { http: App { address: dapr.http.address, ..native }, ..dapr };
    assert_eq!(dapr.lock("slow", "order-1", "ann", 20).await.body["success"], false);
    assert_eq!(dapr.unlocked("slow", "order-1", "ann").await, 2);
}

#[tokio::test]
async fn a_lock_lasts_as_long_as_was_asked_for_and_no_longer() {
    let dapr = start().await;
    let begun = tokio::time::Instant::now();
    // Longer than the class's time to live (4 s): renewed until then, and only until then.
    assert_eq!(dapr.lock("job", "a", "ann", 10).await.body["success"], true);
    // Shorter than the class's (10 s): never renewed.
    assert_eq!(dapr.lock("bounded", "a", "ann", 2).await.body["success"], true);
    while dapr.lock("bounded", "a", "bob", 2).await.body["success"] == false {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let short = begun.elapsed().as_millis();
    assert!((1_900..9_000).contains(&short), "{short} ms");
    while dapr.lock("job", "a", "bob", 10).await.body["success"] == false {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let long = begun.elapsed().as_millis();
    assert!((9_900..15_000).contains(&long), "{long} ms");
    assert_eq!(dapr.unlocked("job", "a", "ann").await, 2, "it is bob's now");
}

#[tokio::test]
async fn wrong_requests_get_daprs_words_and_a_sentence() {
    let dapr = start().await;
    for (store, resource, owner, seconds, code, says) in [
        ("slwo", "a", "ann", 5, "ERR_LOCK_STORE_NOT_FOUND", "did you mean \"slow\""),
        ("slow", "", "ann", 5, "ERR_MALFORMED_REQUEST", "resourceId"),
        ("slow", "a", "", 5, "ERR_MALFORMED_REQUEST", "lockOwner"),
        ("slow", "a", "ann", 0, "ERR_MALFORMED_REQUEST", "expiryInSeconds"),
        ("slow", "a", "ann", -1, "ERR_MALFORMED_REQUEST", "expiryInSeconds"),
        ("slow", "a\n", "ann", 5, "ERR_MALFORMED_REQUEST", "key"),
        ("bounded", "a", "ann", 21, "ERR_MALFORMED_REQUEST", "maxHoldSeconds"),
    ] {
        let refused = dapr.lock(store, resource, owner, seconds).await;
        assert_eq!((refused.status, &refused.body["errorCode"]), (400, &code.into()), "{says}");
        let message = refused.body["message"].as_str().unwrap();
        assert!(message.contains(says), "{says}: {message}");
    }
    let forbidden = dapr.unlock("guarded", "default", "ann").await;
    assert_eq!((forbidden.status, &forbidden.body["errorCode"]), (500, &"ERR_UNLOCK".into()));
    let unreadable = dapr.http.post_json("/v1.0-alpha1/lock/slow", "{").await;
    assert_eq!(unreadable.body["errorCode"], "ERR_MALFORMED_REQUEST");
}

#[tokio::test]
async fn its_health_routes_answer_once_there_are_classes() {
    let dapr = start().await;
    assert_eq!(dapr.http.get("/v1.0/healthz").await.status, 204);
    assert_eq!(dapr.http.get("/v1.0/healthz/outbound").await.status, 204);
    let metadata = dapr.http.get("/v1.0/metadata").await;
    assert_eq!(metadata.body["id"], "pod-a");
    assert_eq!(metadata.body["components"][0]["name"], "bounded");
    let native = App { address: dapr.native, ..dapr.http };
    native.get("/v1.0/healthz").await.is_problem(404, "not_found");
}

#[tokio::test]
async fn grpc_says_the_same() {
    let mut dapr = start().await;
    let lock = |owner: &str| TryLockRequest {
        store_name: "slow".into(),
        resource_id: "order-1".into(),
        lock_owner: owner.into(),
        expiry_in_seconds: 20,
    };
    let unlock = |owner: &str| UnlockRequest {
        store_name: "slow".into(),
        resource_id: "order-1".into(),
        lock_owner: owner.into(),
    };
    let first = dapr.grpc.try_lock_alpha1(lock("ann")).await.unwrap();
    assert!(first.metadata().get("holdfast-fence").is_some());
    assert!(first.into_inner().success);
    assert_eq!(dapr.lock("slow", "order-1", "ann", 5).await.body["success"], false);
    for (owner, status) in [
        ("bob", Unlock::LockBelongsToOthers),
        ("ann", Unlock::Success),
        ("ann", Unlock::LockDoesNotExist),
    ] {
        let unlocked = dapr.grpc.unlock_alpha1(unlock(owner)).await.unwrap().into_inner();
        assert_eq!(unlocked.status(), status, "{owner}");
    }
    let nowhere = TryLockRequest { store_name: "slwo".into(), ..lock("ann") };
    let refused = dapr.grpc.try_lock_alpha1(nowhere).await.unwrap_err();
    assert_eq!(refused.code(), Grpc::InvalidArgument);
    assert!(refused.message().contains("did you mean"), "{refused}");
}

#[tokio::test]
async fn without_its_store_an_unlock_has_failed_and_a_lock_is_an_error() {
    let mut server = RedisServer::start(&[]);
    let url = format!("redis://{}", server.address());
    let bundle = mk_bundle_on("redis", Substrate::Redis, CLASSES);
    let dapr = start_on(&bundle, Some(("redis", &url))).await;
    assert_eq!(dapr.lock("slow", "order-1", "ann", 20).await.body["success"], true);
    assert_eq!(dapr.lock("slow", "order-1", "bob", 20).await.body["success"], false);
    server.kill();
    assert_eq!(dapr.unlocked("slow", "order-1", "ann").await, 3);
    assert_eq!(dapr.unlocked("slow", "order-2", "ann").await, 3, "nobody can say");
    let refused = dapr.lock("slow", "order-2", "ann", 20).await;
    assert_eq!((refused.status, &refused.body["errorCode"]), (500, &"ERR_TRY_LOCK".into()));
}

#[tokio::test]
async fn an_owners_lock_is_given_back_by_its_own_pod_only_and_when_that_ends() {
    let server = RedisServer::start(&[]);
    let url = format!("redis://{}", server.address());
    let bundle = mk_bundle_on("redis", Substrate::Redis, CLASSES);
    let one = start_on(&bundle, Some(("redis", &url))).await;
    let other = start_on(&bundle, Some(("redis", &url))).await;
    assert_eq!(one.lock("slow", "order-1", "ann", 20).await.body["success"], true);
    assert_eq!(other.lock("slow", "order-1", "ann", 20).await.body["success"], false);
    assert_eq!(other.unlocked("slow", "order-1", "ann").await, 2);
    one.http.serving.close(true).await;
    assert_eq!(other.unlocked("slow", "order-1", "ann").await, 1);
    assert_eq!(other.lock("slow", "order-1", "ann", 20).await.body["success"], true);
}

#[tokio::test]
async fn owners_of_live_locks_are_kept_in_mind_however_many_there_are() {
    let mut dapr = start().await;
    let lock = |resource: String| TryLockRequest {
        store_name: "slow".into(),
        resource_id: resource,
        lock_owner: "ann".into(),
        // Renewed until then, however long it takes to make so many.
        expiry_in_seconds: 300,
    };
    // More than the number at which those without a hold are forgotten.
    for order in 0..1_100 {
        let locked = dapr.grpc.try_lock_alpha1(lock(format!("order-{order}"))).await.unwrap();
        assert!(locked.into_inner().success, "{order}");
    }
    for order in [0, 500, 1_099] {
        assert_eq!(dapr.unlocked("slow", &format!("order-{order}"), "ann").await, 0, "{order}");
    }
}
