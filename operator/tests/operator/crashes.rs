//! E1, E2: operators that are killed at any point, and two of them.

use std::{collections::BTreeMap, time::Duration};

use holdfast_core::lock::{LockBackend, Renewal};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::ConfigMap,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Api, ResourceExt, api::ListParams};
use tokio::time::Instant;

use crate::{
    fixture::{Bed, Plane, SYSTEM, acquire_soon, eventually},
    redis::RedisServer,
};

/// Kills at so many points.
const KILLS: u64 = 12;
/// Of replicas that take over from one another: soon, and with time for a slow machine to renew.
const REPLACED_SOON: &[&str] = &["--election-seconds", "5"];
/// A time to live that no round of kills is longer than.
const LONG: Duration = Duration::from_secs(300);

/// What was made in a namespace, by kind and name, without what differs from run to run.
async fn made(bed: &Bed<'_>) -> BTreeMap<String, Vec<String>> {
    let ours = ListParams::default().labels("holdfast.dev/managed=true");
    let (client, namespace) = (bed.client.clone(), &bed.namespace);
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let roles: Api<Role> = Api::namespaced(client.clone(), namespace);
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    let bundles: Api<ConfigMap> = Api::namespaced(client, namespace);
    fn names<K: ResourceExt>(all: Vec<K>) -> Vec<String> {
        all.iter().map(ResourceExt::name_any).collect()
    }
    BTreeMap::from([
        ("leases".into(), names(leases.list(&ours).await.unwrap().items)),
        ("roles".into(), names(roles.list(&ours).await.unwrap().items)),
        ("bindings".into(), names(bindings.list(&ours).await.unwrap().items)),
        ("bundles".into(), names(bundles.list(&ours).await.unwrap().items)),
    ])
}

/// Each round declares, changes and deletes, and kills the operator at another point of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_anywhere_comes_to_the_same_end() {
    let plane = Plane::start();
    let redis = RedisServer::start(&[]);
    let mut operator = plane.operator("crash", &["--election-seconds", "1"]);
    let bed = Bed::new(&plane).await;
    bed.backend("kept", &redis, "");
    bed.lock("steady", "{ttlSeconds: 300}");
    bed.until_ready("steady", "True", "Reconciled").await;
    let (locks, at) = (bed.leases().await, bed.at("steady", "default"));
    let steady = bed.config("steady").await;
    let (hold, fence) = acquire_soon(&*locks, &at, &steady, "pod").await;
    let mut expected = None;
    for round in 0..KILLS {
        bed.lock("orders", "{ttlSeconds: 2, keys: [a, b]}");
        bed.lock("cached", "{ttlSeconds: 2, backend: kept}");
        // From before the first write to after the last one.
        tokio::time::sleep(Duration::from_millis(round * 16)).await;
        operator.kill();
        if round % 2 == 0 {
            bed.lock("orders", "{ttlSeconds: 2, keys: [b, c]}");
        }
        // An operator that is away stops nobody.
        let renewal = locks.renew(&at, &steady, &hold, LONG).await.unwrap();
        assert!(matches!(renewal, Renewal::Renewed { .. }), "round {round}");
        operator = plane.operator("crash", &["--election-seconds", "1"]);
        if round % 2 == 1 {
            bed.lock("orders", "{ttlSeconds: 2, keys: [b, c]}");
        }
        bed.until_ready("orders", "True", "Reconciled").await;
        bed.until_ready("cached", "True", "Reconciled").await;
        let mut now = BTreeMap::new();
        eventually(&format!("round {round}: the same end as before"), async || {
            now = made(&bed).await;
            now["leases"].len() == 3 && expected.as_ref().is_none_or(|known| *known == now)
        })
        .await;
        expected = Some(now);
        // And in the middle of the end.
        bed.kubectl(&["delete", "lock", "orders", "cached", "--wait=false"], "").unwrap();
        tokio::time::sleep(Duration::from_millis(round * 16)).await;
        operator.kill();
        operator = plane.operator("crash", &["--election-seconds", "1"]);
        eventually(&format!("round {round}: all to be gone"), async || {
            bed.get_lock("orders").await.is_none() && bed.get_lock("cached").await.is_none()
        })
        .await;
        assert_eq!(made(&bed).await["leases"].len(), 1, "round {round}");
        let left = redis.keys(&format!("hf:{}:{{*", bed.namespace));
        assert_eq!(left, Vec::<String>::new(), "round {round}");
    }
    let view = locks.query(&at, &steady).await.unwrap();
    assert_eq!(view.holder.map(|holder| holder.fence), Some(fence), "nobody took it meanwhile");
    assert_eq!(bed.get_backend("kept").await.unwrap().status.unwrap().epoch.unwrap().number, 1);
}

fn leader_of(lease: &Lease) -> String {
    lease.spec.clone().unwrap().holder_identity.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_replica_takes_over_from_one_that_crashed_and_one_that_was_stopped() {
    let plane = Plane::start();
    let bed = Bed::new(&plane).await;
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), SYSTEM);
    let leader = async || {
        let lease = leases.get_opt("holdfast-lock-holdfast-operator").await.unwrap();
        lease.as_ref().map(leader_of).unwrap_or_default()
    };
    let mut first = plane.operator("op-1", REPLACED_SOON);
    eventually("op-1 to lead", async || leader().await.starts_with("op-1_")).await;
    let mut second = plane.operator("op-2", REPLACED_SOON);
    bed.lock("a", "{ttlSeconds: 5}");
    bed.until_ready("a", "True", "Reconciled").await;
    assert!(leader().await.starts_with("op-1_"));

    first.kill();
    bed.lock("b", "{ttlSeconds: 5}");
    bed.until_ready("b", "True", "Reconciled").await;
    assert!(leader().await.starts_with("op-2_"));

    // In good order there is no need to wait for the Lease to run out.
    let mut third = plane.operator("op-3", REPLACED_SOON);
    eventually("op-3 to stand", async || third.log().contains("reached the API server")).await;
    assert!(second.stop().await, "{}", second.log());
    bed.lock("c", "{ttlSeconds: 5}");
    bed.until_ready("c", "True", "Reconciled").await;
    assert!(leader().await.starts_with("op-3_"));
    let made = made(&bed).await;
    assert_eq!(made["leases"].len(), 3);
    assert!(third.stop().await, "{}", third.log());
    assert_eq!(leader().await, "", "handed over to nobody");
}

/// What was granted before a class was changed is waited for, also by an operator that was not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_waits_for_holds_from_before_another_operator_took_over() {
    let plane = Plane::start();
    let bed = Bed::new(&plane).await;
    let mut redis = RedisServer::start(&[]);
    let mut first = plane.operator("op-1", REPLACED_SOON);
    bed.backend("inherited", &redis, "");
    bed.lock("orders", "{ttlSeconds: 15, backend: inherited}");
    let status = async || bed.get_backend("inherited").await.unwrap().status.unwrap_or_default();
    eventually("it is written down", async || status().await.longest_ttl_seconds == Some(15)).await;
    bed.lock("orders", "{ttlSeconds: 1, backend: inherited}");
    bed.until_ready("orders", "True", "Reconciled").await;
    first.kill();
    let _second = plane.operator("op-2", REPLACED_SOON);
    bed.lock("more", "{ttlSeconds: 1, backend: inherited}");
    bed.until_ready("more", "True", "Reconciled").await;
    let before = status().await.epoch.unwrap().number;
    let lost = Instant::now();
    redis.restart();
    eventually("a new epoch", async || {
        status().await.epoch.is_some_and(|epoch| epoch.open && epoch.number > before)
    })
    .await;
    assert!(lost.elapsed() >= Duration::from_secs(15), "{:?}", lost.elapsed());
}

/// Two leaders at once do no harm: every write is conditional or the same.
#[tokio::test(flavor = "multi_thread")]
async fn two_operators_without_an_election_end_as_one_and_do_not_fight() {
    let plane = Plane::start();
    let redis = RedisServer::start(&[]);
    let _one = plane.operator("one", &["--election", "one"]);
    let _two = plane.operator("two", &["--election", "two"]);
    let bed = Bed::new(&plane).await;
    bed.backend("both", &redis, "");
    for round in 0..5 {
        bed.lock("orders", &format!("{{ttlSeconds: {}, keys: [a, b]}}", round + 2));
        bed.lock("cached", "{ttlSeconds: 2, backend: both}");
        bed.until_ready("orders", "True", "Reconciled").await;
        bed.until_ready("cached", "True", "Reconciled").await;
        bed.kubectl(&["delete", "lock", "orders", "cached", "--timeout=30s"], "").unwrap();
    }
    bed.lock("orders", "{ttlSeconds: 5}");
    bed.lock("cached", "{ttlSeconds: 5, backend: both}");
    bed.until_ready("orders", "True", "Reconciled").await;
    bed.until_ready("cached", "True", "Reconciled").await;
    let backend = bed.get_backend("both").await.unwrap();
    assert_eq!(backend.status.unwrap().epoch.unwrap().number, 1, "only one raises an epoch");
    // Both have said all they had to say: nothing is written any more.
    let versions = async || {
        let lock = bed.get_lock("orders").await.unwrap().resource_version();
        let cached = bed.get_lock("cached").await.unwrap().resource_version();
        let backend = bed.get_backend("both").await.unwrap().resource_version();
        let maps: Api<ConfigMap> = Api::namespaced(bed.client.clone(), &bed.namespace);
        (lock, cached, backend, maps.get("holdfast-bundle").await.unwrap().resource_version())
    };
    let mut before = versions().await;
    eventually("quiet for two seconds", async || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = versions().await;
        std::mem::replace(&mut before, after.clone()) == after
    })
    .await;
}

/// E7: a hold that is renewed costs the API server what its sidecar writes, and the operator nothing.
#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_changes_nothing_is_written() {
    let plane = Plane::start();
    let redis = RedisServer::start(&[]);
    let operator = plane.operator("quiet", &[]);
    let bed = Bed::new(&plane).await;
    bed.backend("idle", &redis, "");
    for i in 0..20 {
        bed.lock(&format!("lock-{i}"), "{ttlSeconds: 10, keys: [a, b]}");
    }
    bed.lock("cached", "{ttlSeconds: 5, backend: idle}");
    bed.until_ready("cached", "True", "Reconciled").await;
    for i in 0..20 {
        bed.until_ready(&format!("lock-{i}"), "True", "Reconciled").await;
    }
    let (locks, config, at) =
        (bed.leases().await, bed.config("lock-7").await, bed.at("lock-7", "a"));
    let (hold, _) = acquire_soon(&*locks, &at, &config, "pod").await;
    // One that a slow API server did not answer in time is done again.
    let renew = async || {
        let renewal = locks.renew(&at, &config, &hold, Duration::from_secs(10)).await;
        assert!(!matches!(renewal, Ok(Renewal::Lost)), "{renewal:?}");
    };
    eventually("the hold in the status", async || {
        renew().await;
        bed.get_lock("lock-7").await.unwrap().status.unwrap().held == 1
    })
    .await;
    eventually("Acquired", async || {
        renew().await;
        !bed.events("lock-7", "Acquired").await.is_empty()
    })
    .await;
    let writes = || operator.metrics("holdfast_operator_writes_total");
    // A Redis that is slow for once is told, and told again when it answers: of three times one
    // must be quiet. Each is longer than the time to live: the operator then looks by itself.
    let mut before = writes();
    assert!(!before.is_empty());
    for again in [true, true, false] {
        for _ in 0..110 {
            renew().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let after = writes();
        if after == before {
            break;
        }
        assert!(again, "{after:?} after {before:?}");
        before = after;
    }
    // Control: a change is a write.
    locks.release(&at, &config, &hold).await.unwrap();
    eventually("a write", async || writes() != before).await;
}
