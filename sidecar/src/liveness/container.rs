//! The containers of this pod, as the API server reports them. Watched only while a hold is bound to
//! them: an idle pod makes no request.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use futures::TryStreamExt;
use holdfast_core::clock::Backoff;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{WatchEvent, WatchParams},
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Observed, Running};
use crate::{holds::Holds, service::Sidecar};

/// How long the API server keeps a watch open.
const WATCH_SECONDS: u32 = 290;
/// A watch that is not there by then is asked for again.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often the pod is read while it is being shut down.
const LOOK: Duration = Duration::from_millis(300);

/// The pod that this sidecar is in.
#[derive(Clone)]
pub struct OwnPod {
    api: Api<Pod>,
    name: String,
}

impl OwnPod {
    /// By its name.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        OwnPod { api: Api::namespaced(client, namespace), name: name.into() }
    }

    /// Judges the holds by every report on the pod, while there are any that depend on it.
    pub async fn watch(self, sidecar: Arc<Sidecar>, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            tokio::select! {
                () = sidecar.holds.container_wanted() => {}
                () = stop.cancelled() => return,
            }
            let followed = tokio::select! {
                followed = self.follow(&sidecar) => followed,
                () = stop.cancelled() => return,
            };
            if let Err(error) = followed {
                tracing::debug!(error = format!("{error:#}"), "cannot see this pod's containers");
                tokio::select! {
                    () = sleep(backoff.next_delay()) => {}
                    () = stop.cancelled() => return,
                }
            } else {
                backoff.reset();
            }
        }
    }

    async fn follow(&self, sidecar: &Arc<Sidecar>) -> anyhow::Result<()> {
        let params = WatchParams::default()
            .fields(&format!("metadata.name={}", self.name))
            .timeout(WATCH_SECONDS);
        // No version: the newest state first, then what changes.
        let stream = timeout(ANSWER_WITHIN, self.api.watch(&params, "")).await;
        let mut events = Box::pin(stream.context("no answer")?.context("cannot watch the pod")?);
        while sidecar.holds.any_in_containers() {
            let event = tokio::select! {
                event = events.try_next() => event.context("the watch broke")?,
                // Holds end without a word of the API server's.
                () = sleep(Duration::from_secs(5)) => continue,
            };
            match event {
                Some(WatchEvent::Added(pod) | WatchEvent::Modified(pod)) => judge(sidecar, &pod),
                Some(WatchEvent::Error(status)) => anyhow::bail!("{}", status.message),
                Some(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_)) => {}
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether the app has ended for good: asked when this container is told to stop, which is
    /// after that in a pod that ends, but before it when only the sidecar is restarted.
    pub async fn app_has_ended(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        loop {
            match timeout(ANSWER_WITHIN.min(within), self.api.get(&self.name)).await {
                Ok(Ok(pod)) if is_ending(&pod) => return true,
                Ok(Ok(_)) => {}
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => return true,
                Ok(Err(error)) => tracing::debug!(%error, "cannot read this pod"),
                Err(_) => return false,
            }
            if Instant::now() + LOOK >= until {
                return false;
            }
            sleep(LOOK).await;
        }
    }
}

fn judge(sidecar: &Arc<Sidecar>, pod: &Pod) {
    let observed = observed(pod);
    for view in Holds::observe(&sidecar.holds, &observed) {
        tokio::spawn(sidecar.clone().release_at_length(view));
    }
}

/// The app's containers that run.
fn observed(pod: &Pod) -> Observed {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let mut observed = Observed::new();
    for status in statuses.into_iter().flatten() {
        let running = status.state.as_ref().and_then(|state| state.running.as_ref());
        if let (Some(running), Some(id)) = (running, &status.container_id) {
            let started = running.started_at.as_ref().map_or(0, |time| time.0.as_second());
            let running = Running { id: id.clone(), started_s: started.max(0) as u64 };
            observed.insert(status.name.clone(), running);
        }
    }
    observed
}

/// A pod that is being deleted stops its sidecars last; one whose containers have all ended (a Job's)
/// stops them then.
fn is_ending(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let all_ended = containers.is_some_and(|all| {
        all.iter().all(|one| one.state.as_ref().is_some_and(|state| state.terminated.is_some()))
    });
    pod.metadata.deletion_timestamp.is_some() || all_ended
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap()
    }

    #[test]
    fn only_containers_that_run_are_observed_and_a_job_ends_with_the_last() {
        let running = json!({"name": "app", "containerID": "c://1", "ready": true, "image": "",
            "imageID": "", "restartCount": 0,
            "state": {"running": {"startedAt": "1970-01-01T00:01:40Z"}}});
        let ended = json!({"name": "log", "containerID": "c://2", "ready": false, "image": "",
            "imageID": "", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}});
        let pod = mk_pod(json!({"containerStatuses": [running, ended]}));
        let seen = observed(&pod);
        assert_eq!(seen["app"], Running { id: "c://1".into(), started_s: 100 });
        assert_eq!(seen.len(), 1);
        assert!(!is_ending(&pod));
        assert!(is_ending(&mk_pod(json!({"containerStatuses": [ended]}))));
        assert!(!is_ending(&mk_pod(json!({}))), "nothing is known yet");
    }
}
