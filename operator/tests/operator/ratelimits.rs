//! RateLimits: from a class to the bundle, its status, and the end of what it has in the store.

use std::{sync::Arc, time::Duration};

use holdfast_api::{bundle::ClassConfig, v1alpha1::RateLimit};
use holdfast_backend::redis::{Credentials, RedisConfig, RedisRateLimits};
use holdfast_core::{
    Address, Kind,
    ratelimit::{Check, Mode, Outcome, Policy, RateLimitBackend},
};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use crate::{
    fixture::{Bed, eventually, object, patient},
    redis::RedisServer,
};

const HOURLY: &str = "{backend: rates, limits: [{name: hour, limit: 3, windowSeconds: 3600}]}";

async fn get(bed: &Bed<'_>, name: &str) -> Option<RateLimit> {
    let api: Api<RateLimit> = Api::namespaced(bed.client.clone(), &bed.namespace);
    api.get_opt(name).await.unwrap()
}

async fn until(bed: &Bed<'_>, name: &str, is: impl Fn(&RateLimit) -> bool) {
    let mut seen = None;
    eventually(&format!("{name} to become as wanted"), async || {
        seen = get(bed, name).await;
        seen.as_ref().is_some_and(&is)
    })
    .await;
}

fn is_ready(limit: &RateLimit) -> bool {
    let status = limit.status.as_ref();
    status.is_some_and(|status| {
        status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
            && status.observed_generation == limit.metadata.generation
    })
}

/// Rate limits as a sidecar of the namespace uses them: its Secret, its bundle.
async fn as_sidecar(bed: &Bed<'_>, name: &str) -> (Arc<RedisRateLimits>, Arc<Policy>) {
    let api: Api<Secret> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let data = api.get("holdfast-redis").await.unwrap().data.unwrap();
    let text = |part: &str| String::from_utf8(data[&format!("rates.{part}")].0.clone()).ok();
    let credentials = Credentials { username: text("username"), password: text("password") };
    let bundle = bed.bundle().await.unwrap();
    let address = &bundle.backends["rates"].redis.as_ref().unwrap().addresses[0];
    let config = patient(RedisConfig::new(address).unwrap());
    let config = config.with_credentials(Arc::new(move || Ok(credentials.clone())));
    let class = bundle.class(Kind::RateLimit, name).unwrap();
    let ClassConfig::RateLimit(limits) = &class.config else { panic!("{class:?}") };
    (RedisRateLimits::connect(config, &bed.namespace).unwrap(), limits.policy())
}

fn at(bed: &Bed<'_>, name: &str, key: &str) -> Address {
    Address { kind: Kind::RateLimit, ..bed.at(name, key) }
}

async fn spend(limits: &RedisRateLimits, policy: &Arc<Policy>, at: &Address, cost: u64) -> bool {
    let check = Check { cost, mode: Mode::Enforce, max_wait_us: 0, permit: 0, least: cost };
    let decision = limits.check(at, policy, &check).await.unwrap();
    matches!(decision.outcome, Outcome::Allowed { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_checked_as_a_tenant_shown_changed_live_and_leaves_nothing_behind() {
    let bed = Bed::shared().await;
    let redis = RedisServer::start(&[]);
    bed.backend("rates", &redis, "");
    bed.kubectl(&["apply", "-f", "-"], &object("RateLimit", "api", HOURLY)).unwrap();
    until(&bed, "api", is_ready).await;
    let status = get(&bed, "api").await.unwrap().status.unwrap();
    assert_eq!(status.guarantee.as_deref(), Some("BestEffort"));

    let (limits, policy) = as_sidecar(&bed, "api").await;
    for (key, cost) in [("a", 3), ("b", 3), ("c", 1)] {
        assert!(spend(&limits, &policy, &at(&bed, "api", key), cost).await, "{key}");
    }
    assert!(!spend(&limits, &policy, &at(&bed, "api", "a"), 1).await);
    let limited = |n| move |limit: &RateLimit| limit.status.as_ref().unwrap().limited == Some(n);
    until(&bed, "api", limited(2)).await;
    let table = bed.kubectl(&["get", "rl"], "").unwrap();
    for column in ["READY", "LIMIT", "WINDOW", "ALGORITHM", "LIMITED", "BACKEND", "GUARANTEE"] {
        assert!(table.contains(column), "{table}");
    }

    // A higher limit is in force for what has been spent already.
    let more = HOURLY.replace("limit: 3", "limit: 10");
    bed.kubectl(&["apply", "-f", "-"], &object("RateLimit", "api", &more)).unwrap();
    until(&bed, "api", is_ready).await;
    until(&bed, "api", limited(0)).await;
    let (_, policy) = as_sidecar(&bed, "api").await;
    assert!(spend(&limits, &policy, &at(&bed, "api", "a"), 1).await);

    // The price of checks from memory is shown where the class is.
    assert_eq!(get(&bed, "api").await.unwrap().status.unwrap().over_admission, None);
    let leased = HOURLY.replace("{backend", "{accuracy: Leased, leased: {batch: 2}, backend");
    bed.kubectl(&["apply", "-f", "-"], &object("RateLimit", "api", &leased)).unwrap();
    // Three an hour give back less than one while a sidecar keeps tokens.
    until(&bed, "api", |limit| {
        let shown = limit.status.as_ref().and_then(|status| status.over_admission.as_deref());
        shown == Some("1 per sidecar, at most 1")
    })
    .await;

    bed.kubectl(&["delete", "rl", "api", "--timeout=30s"], "").unwrap();
    assert_eq!(redis.keys("hf:*ratelimit*"), Vec::<String>::new(), "its records are purged");
    eventually("the bundle without it", async || bed.bundle().await.unwrap().classes.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_told_in_the_condition_and_by_event() {
    let bed = Bed::shared().await;
    let spec = HOURLY.replace("rates", "nowhere");
    bed.kubectl(&["apply", "-f", "-"], &object("RateLimit", "lost", &spec)).unwrap();
    until(&bed, "lost", |limit| {
        let conditions = limit.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
        conditions.iter().any(|c| c.status == "False" && c.message.contains("\"nowhere\""))
    })
    .await;

    let redis = RedisServer::start(&[]);
    bed.backend("rates-2", &redis, "");
    let spec = HOURLY.replace("rates", "rates-2");
    bed.kubectl(&["apply", "-f", "-"], &object("RateLimit", "api", &spec)).unwrap();
    until(&bed, "api", is_ready).await;
    bed.kubectl(&["annotate", "rl", "api", "holdfast.dev/force-release=a"], "").unwrap();
    eventually("the refusal", async || {
        let notes = bed.events("api", "ForceReleaseRefused").await;
        notes.iter().any(|note| note.contains("has no holds to release"))
    })
    .await;
    tokio::time::timeout(Duration::from_secs(60), async {
        bed.kubectl(&["delete", "rl", "api", "lost", "--timeout=40s"], "").unwrap();
    })
    .await
    .unwrap();
}
