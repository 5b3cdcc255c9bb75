//! The admission policy of the chart, as it is, on a real API server: forged, stale and resurrecting
//! writes are refused, and so is what a Role does not name.

use std::{sync::Arc, time::Duration};

use holdfast_backend::lease::names;
use holdfast_core::{
    BackendError, HoldId, SystemClock,
    lock::{LockBackend, Release, Renewal},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::fixture::{Sidecar, allow, fresh, lease_of, leases, mk_config, plane};

const TTL: Duration = Duration::from_secs(15);

fn code<T>(answer: Result<T, kube::Error>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_and_stale_fences_are_refused_and_honest_ones_pass() {
    let server = plane();
    let (at, api, config) = (fresh(server).await, leases(server).await, mk_config(TTL));
    let name = lease_of(&at);
    let pod = Sidecar::new(server, "pod").await;
    let patch = async |body: Value| {
        let seen = api.get(&name).await.unwrap();
        let rv = seen.metadata.resource_version.unwrap();
        let body = body.to_string().replace("RV", &rv);
        let body: Value = serde_json::from_str(&body).unwrap();
        code(api.patch(&name, &PatchParams::default(), &Patch::Merge(&body)).await)
    };
    let take = |holder: &str, fence: &str| {
        json!({
            "metadata": { "resourceVersion": "RV", "annotations": { names::FENCE: fence } },
            "spec": { "holderIdentity": holder },
        })
    };
    let note = |name: &str, value: Value| json!({ "metadata": { "annotations": { name: value } } });

    assert_eq!(patch(take("thief", "9000000000000000000")).await, 422, "forged high");
    assert_eq!(patch(take("thief", "1")).await, 422, "forged low");
    assert_eq!(patch(json!({ "spec": { "holderIdentity": "thief" } })).await, 422, "no fence");
    assert_eq!(patch(note(names::FENCE, json!("7"))).await, 422, "raised without acquiring");

    let hold = HoldId::random();
    let first = pod.hold(&at, &config, &hold).await;
    assert_eq!(patch(take("thief", &first.fence.to_string())).await, 422, "stale fence");
    assert_eq!(patch(note(names::FENCE, json!(null))).await, 422, "fence taken away");
    assert_eq!(patch(note(names::HOLD, json!(names::mark("x")))).await, 422, "hold taken over");
    let bare = json!({ "metadata": { "labels": { names::LABEL_MANAGED: null } } });
    assert_eq!(patch(bare).await, 422, "unguarded");
    let other = json!({ "metadata": { "labels": { "team": "a" } } });
    assert_eq!(patch(other).await, 200, "a foreign label is nobody's business");

    // The foreign label moved the version: the renewal finds itself again.
    let renewed = pod.locks.renew(&at, &config, &hold, TTL).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }));
    assert_eq!(pod.locks.release(&at, &config, &hold).await.unwrap(), Release::Released);
    let next = pod.hold(&at, &config, &HoldId::random()).await;
    assert!(next.fence > first.fence);

    // Force raises the fence in the record itself, above every hold that there was.
    pod.locks.force_release(&at, &config).await.unwrap().expect("it was held");
    let forced = pod.locks.query(&at, &config).await.unwrap();
    assert!(forced.holder.is_none() && forced.last_fence > Some(next.fence));
    assert!(pod.hold(&at, &config, &HoldId::random()).await.fence > forced.last_fence.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_lease_cannot_be_brought_back_as_held() {
    let server = plane();
    let (at, api, config) = (fresh(server).await, leases(server).await, mk_config(TTL));
    let name = lease_of(&at);
    let (pod, hold) = (Sidecar::new(server, "zombie").await, HoldId::random());
    let held = pod.hold(&at, &config, &hold).await;
    let mut zombie: Lease = api.get(&name).await.unwrap();
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    // What re-creates a deleted Lease where no policy is: a PUT with the old resourceVersion.
    assert_eq!(code(api.replace(&name, &PostParams::default(), &zombie).await), 409);
    zombie.metadata.uid = None;
    assert_eq!(code(api.replace(&name, &PostParams::default(), &zombie).await), 422);
    zombie.metadata.resource_version = None;
    assert_eq!(code(api.create(&PostParams::default(), &zombie).await), 422);
    // Ours does not even try: no write of this crate creates anything.
    let renewed = pod.locks.renew(&at, &config, &hold, TTL).await.unwrap();
    assert_eq!(renewed, Renewal::Lost);
    assert!(api.get_opt(&name).await.unwrap().is_none());
    let absent = pod.locks.acquire(&at, &pod.request(&config, &HoldId::random())).await;
    let Err(BackendError::NotFound(what)) = absent else { panic!("{absent:?}") };
    assert!(what.contains("the operator has not created Lease"), "{what}");
    crate::fixture::provision(server, &at).await;
    assert!(pod.hold(&at, &config, &HoldId::random()).await.fence > held.fence);
}

/// The Role that the operator makes is enough, and more than it names is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_watch_and_patch_by_name_are_all_a_sidecar_needs() {
    let server = plane();
    let (at, foreign, config) = (fresh(server).await, fresh(server).await, mk_config(TTL));
    allow(server, "sidecar", &[lease_of(&at)]).await;
    let clock = Arc::new(SystemClock);
    let a = Sidecar::with(server, "a", "sidecar", server.port(), clock.clone()).await;
    let b = Sidecar::with(server, "b", "sidecar", server.port(), clock).await;
    let (one, two) = (HoldId::random(), HoldId::random());
    let first = a.hold(&at, &config, &one).await;
    let release = async {
        crate::fixture::eventually("b waits", async || {
            b.locks.query(&at, &config).await.unwrap().waiters == 1
        })
        .await;
        a.locks.release(&at, &config, &one).await.unwrap();
    };
    let (next, ()) = tokio::join!(b.hold(&at, &config, &two), release);
    assert!(next.fence > first.fence);
    let refused = a.locks.acquire(&foreign, &a.request(&config, &HoldId::random())).await;
    assert!(matches!(refused, Err(BackendError::Forbidden(_))), "{refused:?}");
}
