//! A semaphore on Leases: one for each permit, and no more of them than there may be.

use std::collections::BTreeSet;

use holdfast_backend::lease::{LeaseSemaphores, names};
use holdfast_core::{Key, lock::Release};
use k8s_openapi::api::{coordination::v1::Lease, rbac::v1::Role};
use kube::{ResourceExt, api::ListParams};
use tokio::time::{Instant, sleep};

use super::*;
use crate::fixture::acquire;

/// Of classes of which nothing is to run out.
const LONG: Duration = Duration::from_secs(300);

/// The slots of a key, and whether each is closed.
async fn slots(bed: &Bed<'_>, at: &Address) -> Vec<(u32, bool)> {
    let api: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let class = format!("{}={}", names::LABEL_CLASS, at.class);
    let all = api.list(&ListParams::default().labels(&class)).await.unwrap();
    let mut slots: Vec<(u32, bool)> = all
        .iter()
        .filter_map(|lease| {
            let number = names::slot_number(&at.class, &at.key, &lease.name_any())?;
            Some((number, lease.annotations().contains_key(names::CLOSED)))
        })
        .collect();
    slots.sort_unstable();
    slots
}

async fn until_slots(bed: &Bed<'_>, at: &Address, expected: &[(u32, bool)]) {
    let mut seen = Vec::new();
    eventually(&format!("slots {expected:?}"), async || {
        seen = slots(bed, at).await;
        seen == expected
    })
    .await;
}

async fn class(bed: &Bed<'_>, name: &str) -> Arc<LockConfig> {
    let bundle = bed.bundle().await.unwrap();
    let class = bundle.class(Kind::Semaphore, name).unwrap();
    Arc::new(class.config.lock(Substrate::Lease).unwrap())
}

fn declare(bed: &Bed<'_>, name: &str, spec: &str) {
    bed.kubectl(&["apply", "-f", "-"], &object("Semaphore", name, spec)).unwrap();
}

async fn status(bed: &Bed<'_>, name: &str) -> holdfast_api::v1alpha1::SemaphoreStatus {
    get(bed, name).await.unwrap().status.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_semaphore_has_one_lease_for_each_permit_and_shrinks_as_holds_end() {
    let bed = Bed::shared().await;
    let spec = |permits: u32| format!("{{backend: lease, permits: {permits}, ttlSeconds: 300}}");
    declare(&bed, "pool", &spec(3));
    let semaphore = until_ready(&bed, "pool").await;
    assert_eq!(semaphore.status.unwrap().guarantee.as_deref(), Some("Consensus"));
    let at = Address { kind: Kind::Semaphore, ..bed.at("pool", "default") };
    until_slots(&bed, &at, &[(0, false), (1, false), (2, false)]).await;
    let locks = bed.leases().await;
    let store = LeaseSemaphores::beside(&locks);
    let config = class(&bed, "pool").await;
    let mut holds = Vec::new();
    for pod in ["pod-0", "pod-1", "pod-2"] {
        holds.push(acquire(&*store, &at, &config, pod).await.unwrap());
    }
    assert!(holds.is_sorted_by_key(|(_, fence)| *fence), "{holds:?}");
    assert_eq!(acquire(&*store, &at, &config, "pod-3").await, None);
    eventually("the status counts", async || {
        let status = status(&bed, "pool").await;
        let named: Vec<_> = status.holders.iter().map(|h| (&*h.pod, h.fence.clone())).collect();
        (status.held, status.used) == (3, 3)
            && named
                == [("pod-0", &holds[0]), ("pod-1", &holds[1]), ("pod-2", &holds[2])]
                    .map(|(pod, (_, fence))| (pod, fence.to_string()))
    })
    .await;

    // Fewer permits: nothing is taken away, and nothing is granted until enough has ended.
    declare(&bed, "pool", &spec(1));
    until_ready(&bed, "pool").await;
    until_slots(&bed, &at, &[(0, true), (1, true), (2, true)]).await;
    for (hold, _) in &holds {
        let renewed = store.renew(&at, &config, hold, LONG).await.unwrap();
        assert!(matches!(renewed, Renewal::Renewed { .. }), "a resize took a hold away");
    }
    let roles: Api<Role> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let rules = roles.get("holdfast-leases").await.unwrap().rules.unwrap();
    let named: BTreeSet<String> =
        rules.into_iter().flat_map(|rule| rule.resource_names.unwrap_or_default()).collect();
    let slot = |n| names::slot_name(Kind::Semaphore, &at.class, &Key::default_key(), n);
    assert_eq!(named, (0..3).map(slot).collect(), "who holds a surplus slot may renew it");
    let release = async |n: usize| {
        let released = store.release(&at, &config, &holds[n].0).await.unwrap();
        assert_eq!(released, Release::Released);
    };
    // Greedy pods know the class of before: the change has not come to them yet.
    for (n, left) in [(0, 2), (1, 1)] {
        release(n).await;
        assert_eq!(acquire(&*store, &at, &config, "greedy").await, None, "granted above the limit");
        eventually("its slot goes", async || slots(&bed, &at).await.len() == left).await;
        assert_eq!(acquire(&*store, &at, &config, "greedy").await, None);
    }
    release(2).await;
    until_slots(&bed, &at, &[(0, false)]).await;
    let next = acquire(&*store, &at, &class(&bed, "pool").await, "next").await.unwrap();
    assert!(next.1 > holds[2].1);

    // More are there at once.
    declare(&bed, "pool", &spec(2));
    until_slots(&bed, &at, &[(0, false), (1, false)]).await;
    // The bundle may say so a moment later.
    eventually("a class of two", async || class(&bed, "pool").await.permits == 2).await;
    let config = class(&bed, "pool").await;
    assert!(acquire(&*store, &at, &config, "more").await.unwrap().1 > next.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_on_leases_are_taken_by_force_one_or_all() {
    let bed = Bed::shared().await;
    declare(&bed, "pool", "{backend: lease, permits: 3, keys: [a, b], ttlSeconds: 300}");
    until_ready(&bed, "pool").await;
    let at = Address { kind: Kind::Semaphore, ..bed.at("pool", "a") };
    let locks = bed.leases().await;
    let store = LeaseSemaphores::beside(&locks);
    let config = class(&bed, "pool").await;
    let mut holds = Vec::new();
    for pod in ["pod-0", "pod-1", "pod-2"] {
        holds.push(acquire(&*store, &at, &config, pod).await.unwrap());
    }
    let other = Address { key: Key::new("b").unwrap(), ..at.clone() };
    let (kept, _) = acquire(&*store, &other, &config, "pod-4").await.unwrap();
    let force = |what: &str| {
        let note = format!("holdfast.dev/force-release={what}");
        bed.kubectl(&["annotate", "--overwrite", "semaphore", "pool", &note], "").unwrap();
    };
    let renew = async |hold| store.renew(&at, &config, hold, LONG).await.unwrap();
    force(&format!("a#{}", holds[1].1));
    eventually("one is taken", async || renew(&holds[1].0).await == Renewal::Lost).await;
    for n in [0, 2] {
        assert!(matches!(renew(&holds[n].0).await, Renewal::Renewed { .. }), "the others are kept");
    }
    eventually("the annotation is gone", async || {
        get(&bed, "pool").await.unwrap().annotations().len() < 2
            && !get(&bed, "pool")
                .await
                .unwrap()
                .annotations()
                .contains_key("holdfast.dev/force-release")
    })
    .await;
    force("a");
    // Renewals without a pause come between the operator's reads and its writes: it needs several
    // tries, and tells of what each one took. Where the API server is so fast that it never gets
    // through, they come more and more slowly.
    let until_lost = async |hold| {
        let until = Instant::now() + Duration::from_secs(60);
        let mut tries = 0;
        while store.renew(&at, &config, hold, LONG).await != Ok(Renewal::Lost) {
            assert!(Instant::now() < until, "not taken");
            tries += 1;
            if tries > 500 {
                sleep(Duration::from_millis(tries / 50)).await;
            }
        }
    };
    tokio::join!(until_lost(&holds[0].0), until_lost(&holds[2].0));
    let renewed = store.renew(&other, &config, &kept, LONG).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }), "another key was touched");
    eventually("ForceReleased", async || {
        let told = bed.events("pool", "ForceReleased").await;
        told.iter().filter(|note| note.contains("was taken from pod")).count() == 3
    })
    .await;
    let next = acquire(&*store, &at, &config, "next").await.unwrap();
    assert!(next.1 > holds[2].1);
}

/// A class that is deleted waits for its holds, and goes with all of its Leases; one that is created
/// again starts above. A slot that somebody deletes under its holder stays away until then.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_semaphore_on_leases_waits_for_its_holds() {
    let bed = Bed::shared().await;
    let spec = "{backend: lease, permits: 2, ttlSeconds: 10}";
    declare(&bed, "pool", spec);
    until_ready(&bed, "pool").await;
    let at = Address { kind: Kind::Semaphore, ..bed.at("pool", "default") };
    let locks = bed.leases().await;
    let store = LeaseSemaphores::beside(&locks);
    let config = class(&bed, "pool").await;
    let begun = Instant::now();
    let (_, first) = acquire(&*store, &at, &config, "pod-0").await.unwrap();
    let held = slots(&bed, &at).await.len();
    assert_eq!(held, 2);
    // The operator must have seen the hold, or it is none to it.
    eventually("it is seen", async || status(&bed, "pool").await.used == 1).await;
    let api: Api<Lease> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let class_of = format!("{}={}", names::LABEL_CLASS, at.class);
    let all = api.list(&ListParams::default().labels(&class_of)).await.unwrap();
    let is_held = |lease: &&Lease| {
        lease
            .spec
            .as_ref()
            .and_then(|s| s.holder_identity.as_deref())
            .is_some_and(|h| !h.is_empty())
    };
    let held = all.iter().find(is_held).unwrap().name_any();
    bed.kubectl(&["delete", "lease", &held], "").unwrap();
    eventually("it comes again", async || slots(&bed, &at).await.len() == 2).await;
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());

    let begun = Instant::now();
    let (_, second) = acquire(&*store, &at, &config, "pod-1").await.unwrap();
    bed.kubectl(&["delete", "semaphore", "pool", "--timeout=60s"], "").unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(slots(&bed, &at).await, []);
    declare(&bed, "pool", spec);
    until_ready(&bed, "pool").await;
    let (_, third) = acquire(&*store, &at, &class(&bed, "pool").await, "pod-2").await.unwrap();
    assert!(first < second && second < third, "{first} {second} {third}");
}
