//! Tells every pod that asked for a sidecar and has none why, by an Event on the pod.
//!
//! At admission a pod has no UID and perhaps no name, so nothing can be said about it there. The
//! webhook marks what it skips; this task, on the leading replica, watches for the marks and for
//! pods that asked and were never seen (in an excluded namespace, or before the installation).
//!
//! An Event has a name that is made from the pod's UID: said once, however often we look.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Clients,
    inject::{self, INJECT_LABEL, INJECTED_LABEL, InjectSettings, SKIPPED_ANNOTATION, SkipReason},
};

/// Explains skipped pods while this replica leads, until `stop`.
pub async fn explain(
    clients: Clients,
    settings: Arc<InjectSettings>,
    mut leader: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let marked = format!("{INJECTED_LABEL}=false");
    let unseen = format!("{INJECT_LABEL}=true,!{INJECTED_LABEL}");
    loop {
        let led = tokio::select! {
            led = leader.wait_for(|leads| *leads) => led.is_ok(),
            () = stop.cancelled() => return,
        };
        if !led {
            // The election has ended: so has the process, soon.
            return stop.cancelled().await;
        }
        tokio::select! {
            () = follow(&clients, &settings, &marked) => {}
            () = follow(&clients, &settings, &unseen) => {}
            _ = leader.wait_for(|leads| !*leads) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Watches the pods of a selector. Ends only with the process.
async fn follow(clients: &Clients, settings: &InjectSettings, selector: &str) {
    let config = watcher::Config::default().labels(selector).page_size(100);
    let pods = watcher(Api::<Pod>::all(clients.watches.clone()), config)
        .default_backoff()
        .applied_objects()
        .inspect_err(|error| tracing::debug!(%error, "the watch of skipped pods was interrupted"));
    pods.for_each(|pod| async {
        let Ok(pod) = pod else { return };
        let reason = reason(&pod, settings);
        match tell(&clients.calls, &pod, reason).await {
            Ok(()) => {}
            // Known already, or the namespace is going away.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => {}
            Err(error) => tracing::warn!(%error, pod = pod.name_any(), "could not write an Event"),
        }
    })
    .await;
}

/// Why this pod has no sidecar.
pub fn reason(pod: &Pod, settings: &InjectSettings) -> SkipReason {
    let namespace = pod.namespace().unwrap_or_default();
    inject::skip_reason(pod, &namespace, settings).unwrap_or(SkipReason::NotSeen)
}

async fn tell(client: &Client, pod: &Pod, reason: SkipReason) -> kube::Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    events.create(&PostParams::default(), &event(pod, reason)).await?;
    tracing::info!(namespace, pod = pod.name_any(), reason = reason.word(), "pod has no sidecar");
    Ok(())
}

/// The Event about a skipped pod.
pub fn event(pod: &Pod, reason: SkipReason) -> Event {
    let uid = pod.uid().unwrap_or_default();
    let marked = pod.annotations().contains_key(SKIPPED_ANNOTATION);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("holdfast-{uid}")),
            namespace: pod.namespace(),
            ..ObjectMeta::default()
        },
        action: Some(if marked { "Inject" } else { "Audit" }.into()),
        event_time: Some(MicroTime(jiff::Timestamp::now())),
        reason: Some("SidecarSkipped".into()),
        note: Some(format!("No holdfast sidecar ({}): {reason}.", reason.word())),
        regarding: Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            namespace: pod.namespace(),
            uid: pod.uid(),
            resource_version: pod.resource_version(),
            field_path: None,
        }),
        reporting_controller: Some("holdfast.dev/operator".into()),
        reporting_instance: Some("admission".into()),
        type_: Some("Warning".into()),
        ..Event::default()
    }
}
