//! From a class to its Leases, Roles, bundle and status.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use holdfast_core::lock::LockBackend;
use k8s_openapi::api::{
    coordination::v1::Lease,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::json;
use tokio::time::Instant;

use crate::fixture::{Bed, acquire, acquire_soon, eventually, is_guarded, message};

#[tokio::test(flavor = "multi_thread")]
async fn a_class_becomes_leases_roles_a_bundle_and_a_status() {
    let bed = Bed::shared().await;
    bed.lock("orders", "{ttlSeconds: 5, keys: [a, b]}");
    bed.lock("mine", "{ttlSeconds: 5, access: [{serviceAccounts: [ann]}]}");
    let lock = bed.until_ready("orders", "True", "Reconciled").await;
    bed.until_ready("mine", "True", "Reconciled").await;
    assert!(is_guarded(&lock));
    assert_eq!(lock.status.as_ref().unwrap().guarantee.as_deref(), Some("Consensus"));

    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let labels = ListParams::default().labels("holdfast.dev/class=orders");
    let leases = leases.list(&labels).await.unwrap().items;
    assert_eq!(leases.len(), 2);
    for lease in &leases {
        assert_eq!(lease.spec.as_ref().unwrap().holder_identity.as_deref(), Some(""));
        assert_eq!(lease.owner_references()[0].uid, lock.uid().unwrap());
    }

    // As the account would: the API server itself keeps it to what `access` says.
    let may = |account: &str, verb: &str, what: &str| bed.may(account, verb, what);
    let name = leases[0].name_any();
    assert!(may("default", "patch", &format!("lease/{name}")));
    assert!(may("default", "get", "configmap/holdfast-bundle"));
    assert!(may("ann", "patch", "lease/holdfast-lock-mine"));
    for (account, verb, what) in [
        ("default", "patch", "lease/holdfast-lock-mine"),
        ("default", "create", "lease"),
        ("default", "delete", &*format!("lease/{name}")),
        ("default", "update", "configmap/holdfast-bundle"),
        ("default", "get", "configmap/other"),
        ("default", "get", "secret/holdfast-redis"),
    ] {
        assert!(!may(account, verb, what), "{account} may {verb} {what}");
    }

    let bundle = bed.bundle().await.unwrap();
    let names: Vec<_> = bundle.classes.iter().map(|class| class.name.to_string()).collect();
    assert_eq!(names, ["mine", "orders"]);
    assert_eq!(bed.config("orders").await.generation, lock.metadata.generation.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_may_share_one_watch_of_its_leases() {
    let bed = Bed::shared().await;
    bed.lock("mine", "{ttlSeconds: 5, access: [{serviceAccounts: [ann]}]}");
    bed.until_ready("mine", "True", "Reconciled").await;
    let may = |verb: &str, what: &str| bed.may("bob", verb, what);
    for (label, shares) in [
        ("holdfast.dev/lease-watch=each", false),
        ("holdfast.dev/lease-watch=shared", true),
        ("holdfast.dev/lease-watch-", false),
    ] {
        let args = ["label", "namespace", "--overwrite", &bed.namespace, label];
        bed.kubectl_cluster(&args, "").unwrap();
        eventually("right and bundle as the label says", async || {
            let bundle = bed.bundle().await.unwrap();
            may("watch", "leases") == shares && bundle.backends["lease"].share_watch == shares
        })
        .await;
        assert!(!may("patch", "lease/holdfast-lock-mine"), "{label}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_is_wrong_gets_a_sentence_and_the_others_are_not_affected() {
    let bed = Bed::shared().await;
    bed.lock("good", "{ttlSeconds: 5}");
    bed.lock("lost", "{backend: leas}");
    let lost = bed.until_ready("lost", "False", "BackendNotFound").await;
    let expected = "there is no Backend \"leas\"";
    assert!(message(&lost).contains(expected), "{}", message(&lost));
    assert!(message(&lost).contains("did you mean \"lease\"?"), "{}", message(&lost));
    assert!(!is_guarded(&lost), "nothing was made of it");
    bed.until_ready("good", "True", "Reconciled").await;
    let bundle = bed.bundle().await.unwrap();
    assert_eq!(bundle.classes.len(), 1);
    bed.kubectl(&["delete", "lock", "lost", "--timeout=40s"], "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_show_in_the_status_with_events_and_not_as_readiness() {
    let bed = Bed::shared().await;
    // Nobody renews: even a slow machine must have shown a hold before it runs out.
    bed.lock("orders", "{ttlSeconds: 30}");
    bed.lock("short", "{ttlSeconds: 10}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (config, locks, at) =
        (bed.config("orders").await, bed.leases().await, bed.at("orders", "default"));
    let (hold, fence) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    eventually("pod-1 in the status", async || {
        let status = bed.get_lock("orders").await.unwrap().status.unwrap();
        status.held == 1
            && status.holders[0].pod == "pod-1"
            && status.holders[0].fence == fence.to_string()
    })
    .await;
    let lock = bed.until_ready("orders", "True", "Reconciled").await;
    assert_eq!(lock.status.unwrap().waiting, None, "nobody but the sidecars knows: not a 0");
    eventually("Acquired", async || !bed.events("orders", "Acquired").await.is_empty()).await;
    locks.release(&at, &config, &hold).await.unwrap();
    eventually("Released", async || !bed.events("orders", "Released").await.is_empty()).await;
    assert_eq!(bed.get_lock("orders").await.unwrap().status.unwrap().held, 0);

    // This one runs out.
    bed.until_ready("short", "True", "Reconciled").await;
    let (config, at) = (bed.config("short").await, bed.at("short", "default"));
    acquire_soon(&*locks, &at, &config, "pod-2").await;
    eventually("Expired", async || {
        let notes = bed.events("short", "Expired").await;
        notes.iter().any(|note| note.contains("pod-2"))
    })
    .await;
    assert_eq!(bed.get_lock("short").await.unwrap().status.unwrap().held, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_lock_is_not_a_write_of_status_each_time() {
    let bed = Bed::shared().await;
    bed.lock("busy", "{ttlSeconds: 5}");
    let before = bed.until_ready("busy", "True", "Reconciled").await;
    let (config, locks, at) =
        (bed.config("busy").await, bed.leases().await, bed.at("busy", "default"));
    let api: Api<holdfast_api::v1alpha1::Lock> =
        Api::namespaced(bed.client.clone(), &bed.namespace);
    let changes = Arc::new(AtomicUsize::new(0));
    let version = before.resource_version().unwrap();
    let watched = tokio::spawn(count_changes(api, version, changes.clone()));
    let (mut taken, started) = (0, Instant::now());
    // Also on a slow machine so many that a write for each would be too many.
    while started.elapsed() < Duration::from_secs(4) || taken <= 20 {
        let (hold, _) = acquire_soon(&*locks, &at, &config, "pod").await;
        locks.release(&at, &config, &hold).await.unwrap();
        taken += 1;
    }
    eventually("a write of status", async || changes.load(Relaxed) > 0).await;
    assert!(!watched.is_finished(), "not all were counted");
    let (changes, took) = (changes.load(Relaxed), started.elapsed());
    // They are a second apart.
    let most = took.as_secs() + 3;
    assert!(changes as u64 <= most, "{changes} writes of status for {taken} holds in {took:?}");
    watched.abort();
}

/// Counts the changes of the objects of a namespace, until it is aborted.
async fn count_changes(
    api: Api<holdfast_api::v1alpha1::Lock>,
    from: String,
    changes: Arc<AtomicUsize>,
) {
    use futures::TryStreamExt;
    let events = api.watch(&WatchParams::default(), &from).await.unwrap();
    let counted = events.try_for_each(|event| {
        // Bookmarks come as well.
        let is_change = matches!(event, WatchEvent::Modified(_));
        changes.fetch_add(usize::from(is_change), Relaxed);
        std::future::ready(Ok(()))
    });
    counted.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_longer_declared_keeps_its_lease_until_it_is_free() {
    let bed = Bed::shared().await;
    bed.lock("orders", "{ttlSeconds: 30, keys: [a, b, c]}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (config, locks) = (bed.config("orders").await, bed.leases().await);
    let held_at = bed.at("orders", "a");
    let (hold, _) = acquire_soon(&*locks, &held_at, &config, "pod-1").await;
    bed.lock("orders", "{ttlSeconds: 30, keys: [c]}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let count = async || {
        let labels = ListParams::default().labels("holdfast.dev/class=orders");
        leases.list(&labels).await.unwrap().items.len()
    };
    eventually("the free Lease to go", async || count().await == 2).await;
    locks.release(&held_at, &config, &hold).await.unwrap();
    eventually("the released Lease to go", async || count().await == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_delete_or_change_comes_back() {
    let bed = Bed::shared().await;
    bed.lock("orders", "{ttlSeconds: 3}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let bundle = bed.bundle().await.unwrap();
    bed.kubectl(&["delete", "configmap", "holdfast-bundle"], "").unwrap();
    bed.kubectl(&["delete", "rolebinding", "holdfast-leases"], "").unwrap();
    let roles: Api<Role> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let more = json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    let params = PatchParams::default();
    roles.patch("holdfast-leases", &params, &Patch::Merge(&more)).await.unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(bed.client.clone(), &bed.namespace);
    eventually("the objects to come back", async || {
        let role = roles.get("holdfast-leases").await.unwrap();
        bed.bundle().await.as_ref() == Some(&bundle)
            && bindings.get_opt("holdfast-leases").await.unwrap().is_some()
            && role.rules.unwrap()[0].resources == Some(vec!["leases".into()])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_deleted_under_its_holder_comes_back_later_and_with_higher_fences() {
    let bed = Bed::shared().await;
    bed.lock("orders", "{ttlSeconds: 10}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (config, locks, at) =
        (bed.config("orders").await, bed.leases().await, bed.at("orders", "default"));
    // Before it is granted: it is believed in for nine tenths of its time from then on.
    let asked = Instant::now();
    let (_, first) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    eventually("the operator to see it", async || {
        bed.get_lock("orders").await.unwrap().status.unwrap().held == 1
    })
    .await;
    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    leases.delete("holdfast-lock-orders", &DeleteParams::default()).await.unwrap();
    let others = bed.leases().await;
    let (_, second) = acquire_soon(&*others, &at, &config, "pod-2").await;
    assert!(second > first, "{second} after {first}");
    let after = asked.elapsed();
    assert!(after >= Duration::from_secs(9), "granted while pod-1 still believed: {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_releases_by_force_once() {
    let bed = Bed::shared().await;
    bed.lock("orders", "{ttlSeconds: 60, keys: [a, b]}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (config, locks, at) =
        (bed.config("orders").await, bed.leases().await, bed.at("orders", "a"));
    let (hold, first) = acquire_soon(&*locks, &at, &config, "pod-1").await;
    let annotate = |value: &str| {
        let note = format!("holdfast.dev/force-release={value}");
        bed.kubectl(&["annotate", "lock", "orders", "--overwrite", &note], "").unwrap();
    };
    let is_done = async || {
        let lock = bed.get_lock("orders").await.unwrap();
        !lock.annotations().keys().any(|name| name.starts_with("holdfast.dev/force-release"))
    };
    annotate("a");
    eventually("the annotation to be dealt with", is_done).await;
    // The Event comes after the deed.
    let told = async |reason: &str| !bed.events("orders", reason).await.is_empty();
    eventually("the Event", async || told("ForceReleased").await).await;
    let notes = bed.events("orders", "ForceReleased").await;
    assert!(notes.len() == 1 && notes[0].contains("pod-1"), "{notes:?}");
    let others = bed.leases().await;
    let (_, second) = acquire(&*others, &at, &config, "pod-2").await.expect("it is free");
    assert!(second > first);
    let renewal = locks.renew(&at, &config, &hold, Duration::from_secs(60)).await.unwrap();
    assert_eq!(renewal, holdfast_core::lock::Renewal::Lost);

    annotate("c");
    eventually("the annotation to be dealt with", is_done).await;
    eventually("the Event", async || told("ForceReleaseRefused").await).await;
    let refused = bed.events("orders", "ForceReleaseRefused").await;
    assert!(refused[0].contains("there is no key \"c\""), "{refused:?}");
    // pod-2 was left alone.
    assert_eq!(acquire(&*locks, &at, &config, "pod-3").await, None);
}
