//! Who is to lead: the pod that an annotation names, or a candidate of a higher priority than the
//! leader's. Both are one thing: the annotation, which the bundle tells to sidecars. They do the rest,
//! so with the operator away there is still a leader, only perhaps another one.
//!
//! An annotation goes when what it asks for has come true, cannot come true, or has not come true in
//! time. A pod that did not come is not preferred again for a while, whatever its priority.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use holdfast_api::{
    names::ANNOTATION_TRANSFER_TO,
    v1alpha1::{LeaderElection, election::LeaderStatus},
};
use holdfast_core::Key;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, runtime::events::EventType};
use serde_json::json;
use tokio::time::Instant;

use super::routing::is_pod_name;
use crate::{
    admission::inject::INJECTED_LABEL,
    apply,
    context::{Context, lock},
    error::Error,
};

/// The Events about it.
const ASKED: &str = "TransferRequested";
const REFUSED: &str = "TransferRefused";
const FAILED: &str = "TransferFailed";
/// A transfer may take three lease durations (finish, run out, be granted) and this.
const SLACK: Duration = Duration::from_secs(10);
/// For how long a pod that did not come is not preferred again.
const FORGIVE: Duration = Duration::from_secs(300);
/// How often to look whether a preferred pod is ready.
const LOOK: Duration = Duration::from_secs(5);

/// Transfers under way, and pods that did not come. Of this term of the operator only: after a
/// restart a transfer has its whole time again.
#[derive(Default)]
pub struct Transfers(Mutex<HashMap<String, Transfer>>);

#[derive(Default)]
struct Transfer {
    asked: Option<(String, Instant)>,
    missed: HashMap<String, Instant>,
}

impl Transfers {
    /// For how long a transfer to a pod has been under way.
    fn waited(&self, uid: &str, pod: &str) -> Duration {
        let mut all = lock(&self.0);
        let there = &mut all.entry(uid.to_owned()).or_default().asked;
        match there {
            Some((known, since)) if known == pod => since.elapsed(),
            _ => {
                *there = Some((pod.to_owned(), Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// A transfer is over; `missed` when the pod did not come.
    fn over(&self, uid: &str, missed: Option<&str>) {
        let mut all = lock(&self.0);
        let Some(there) = all.get_mut(uid) else { return };
        there.asked = None;
        there.missed.retain(|_, since| since.elapsed() < FORGIVE);
        if let Some(pod) = missed {
            there.missed.insert(pod.to_owned(), Instant::now());
        }
        if there.missed.is_empty() {
            all.remove(uid);
        }
    }

    fn is_missed(&self, uid: &str, pod: &str) -> bool {
        let all = lock(&self.0);
        let since = all.get(uid).and_then(|there| there.missed.get(pod));
        since.is_some_and(|since| since.elapsed() < FORGIVE)
    }
}

/// Goes on with a transfer, or begins one to a candidate of a higher priority. Returns when to look
/// again.
///
/// # Errors
/// Whatever the API server says; trying again goes on from there.
pub async fn follow(
    ctx: &Context,
    election: &LeaderElection,
    leader: Option<&LeaderStatus>,
) -> Result<Option<Duration>, Error> {
    match election.annotations().get(ANNOTATION_TRANSFER_TO) {
        Some(asked) => go_on(ctx, election, leader, asked).await,
        None => prefer(ctx, election, leader).await,
    }
}

async fn go_on(
    ctx: &Context,
    election: &LeaderElection,
    leader: Option<&LeaderStatus>,
    asked: &str,
) -> Result<Option<Duration>, Error> {
    let uid = election.uid().unwrap_or_default();
    let done = json!({ ANNOTATION_TRANSFER_TO: null });
    if leader.is_some_and(|leader| leader.pod == asked) {
        ctx.transfers.over(&uid, None);
        return apply::annotate(ctx, election, done).await.map(|()| None);
    }
    if let Some(why) = refusal(ctx, election, asked).await? {
        ctx.transfers.over(&uid, None);
        apply::annotate(ctx, election, done).await?;
        let note = format!("{ANNOTATION_TRANSFER_TO}: {why}");
        ctx.tell(election, EventType::Warning, REFUSED, note, about(asked)).await;
        return Ok(None);
    }
    let lease = Duration::from_secs(election.spec.lease_duration_seconds.into());
    let (waited, patience) = (ctx.transfers.waited(&uid, asked), 3 * lease + SLACK);
    if waited < patience {
        return Ok(Some(patience - waited));
    }
    ctx.transfers.over(&uid, Some(asked));
    apply::annotate(ctx, election, done).await?;
    let note = format!(
        "pod \"{asked}\" did not come to lead within {} s: does it stand in this election?",
        patience.as_secs()
    );
    ctx.tell(election, EventType::Warning, FAILED, note, about(asked)).await;
    Ok(None)
}

/// The pod that an Event is about: another pod is another Event.
fn about(pod: &str) -> Option<(String, String)> {
    Some((pod.to_owned(), Key::default_key().to_string()))
}

/// Why a pod cannot lead at all.
async fn refusal(
    ctx: &Context,
    election: &LeaderElection,
    pod: &str,
) -> Result<Option<String>, Error> {
    if !is_pod_name(pod) {
        return Ok(Some("the value is no pod's name".into()));
    }
    let found = find(ctx, election, pod).await?;
    Ok(match found {
        None => Some(format!("there is no pod \"{pod}\" in this namespace")),
        Some(found) if found.metadata.deletion_timestamp.is_some() => {
            Some(format!("pod \"{pod}\" is ending"))
        }
        Some(found) if found.labels().get(INJECTED_LABEL).is_none_or(|label| label != "true") => {
            Some(format!("pod \"{pod}\" has no sidecar, so it cannot stand"))
        }
        Some(_) => None,
    })
}

/// Begins a transfer to the best candidate that is ready, if it is better than the leader.
async fn prefer(
    ctx: &Context,
    election: &LeaderElection,
    leader: Option<&LeaderStatus>,
) -> Result<Option<Duration>, Error> {
    // Who leads first is for the candidates to settle.
    let Some(leader) = leader else { return Ok(None) };
    let namespace = election.namespace().unwrap_or_default();
    let (uid, own) =
        (election.uid().unwrap_or_default(), ctx.injected.priority(&namespace, &leader.pod));
    let better = ctx.injected.above(&namespace, &election.name_any(), own);
    for (priority, pod) in &better {
        if ctx.transfers.is_missed(&uid, pod) {
            continue;
        }
        if !find(ctx, election, pod).await?.is_some_and(|pod| is_ready(&pod)) {
            continue;
        }
        apply::annotate(ctx, election, json!({ ANNOTATION_TRANSFER_TO: pod })).await?;
        let note = format!(
            "pod \"{pod}\" has priority {priority}, and the leader \"{}\" has {own}",
            leader.pod
        );
        ctx.tell(election, EventType::Normal, ASKED, note, about(pod)).await;
        return Ok(None);
    }
    Ok((!better.is_empty()).then_some(LOOK))
}

async fn find(ctx: &Context, election: &LeaderElection, pod: &str) -> Result<Option<Pod>, Error> {
    let namespace = election.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), &namespace);
    pods.get_opt(pod).await.map_err(Error::api(format!("read pod \"{pod}\"")))
}

/// Whether a pod could do the work now. Readiness says so; it never says who leads.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}
