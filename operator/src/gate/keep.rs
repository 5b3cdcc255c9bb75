//! A pod that was let go: to renew its hold while it may run, to find it again after a change of
//! leader, and to end it with the pod.

use std::sync::Arc;

use holdfast_api::hold::PodHold;
use holdfast_backend::lease::names;
use holdfast_core::{
    Kind,
    lock::{Attempt, Push, Renewal},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use tokio::time::{Instant, sleep};

use super::{
    class::{Usable, resolve},
    life::{Held, LOOK_AGAIN, Life},
    seen::{Presence, Seen},
    tell::{HOLD_GRANTED, HOLD_LOST, HOLD_RELEASED, State, about_pod},
};

impl Life {
    /// One round of a pod that may run; whether there is more to come.
    pub(super) async fn keep(&mut self, seen: &Arc<Seen>, hold: &PodHold) -> bool {
        let Some(held) = self.held else { return self.adopt(seen, hold).await };
        tokio::select! {
            () = tokio::time::sleep_until(held.renew_at) => {}
            () = sleep(LOOK_AGAIN) => if !self.seems_taken(seen) { return true },
            push = Self::push(&mut self.asked) => match push {
                Push::Lost => {}
                Push::Granted { .. } | Push::Requeue => return true,
            },
            // How it stands now is looked at first.
            changed = self.pod.changed() => if changed.is_ok() { return true },
        }
        // Who may use the class by now is no matter: the pod runs.
        if let Ok(usable) = resolve(&self.gates, seen, hold) {
            self.forget_other(&usable).await;
            self.remember(usable);
        }
        let Some((usable, _)) = &self.asked else { return true };
        let (at, config, ttl) = (&usable.at, &usable.config, usable.ttl);
        let sent = self.gates.clock.now();
        match usable.backend.renew(at, config, &usable.hold, ttl).await {
            Ok(Renewal::Renewed { ttl }) => {
                self.backoff.reset();
                self.held = Some(Held::new(held.fence, sent, ttl));
                true
            }
            Ok(Renewal::Lost) => {
                self.lost(seen, hold, "it expired, was taken by force, or its class is gone").await;
                false
            }
            Err(error) => {
                tracing::debug!(%at, %error, "a pod's hold was not renewed yet");
                let renew_at = Instant::now() + self.backoff.next_delay();
                self.held = Some(Held { renew_at, ..held });
                true
            }
        }
    }

    /// Whether the operator's cache shows the Lease of a lock with somebody else, or nobody: taken by
    /// force, most likely. The renewal finds out. A Redis tells it by a push.
    fn seems_taken(&self, seen: &Seen) -> bool {
        let Some((usable, _)) = &self.asked else { return false };
        let at = &usable.at;
        if usable.has_queue() || at.kind != Kind::Lock {
            return false;
        }
        let name = names::lease_name(at.kind, &at.class, &at.key);
        let look = self.gates.ctx.sightings.look(&at.namespace, &name);
        look.is_some_and(|look| !look.is_held() || look.holder != seen.name)
    }

    /// A pod that an earlier leader let go: asks for its hold again, in no queue. One that expired
    /// while nobody renewed it is taken up again unless somebody else has it.
    async fn adopt(&mut self, seen: &Arc<Seen>, hold: &PodHold) -> bool {
        let usable = match resolve(&self.gates, seen, hold) {
            Ok(usable) => usable,
            Err(why) => {
                tracing::debug!(pod = seen.name, why, "a running pod's hold cannot be renewed");
                // Nor can anybody else ask for what it names.
                self.adopting = None;
                self.idle(seen, LOOK_AGAIN).await;
                return true;
            }
        };
        let Some(request) = usable.request(seen, &self.gates.running, false) else { return false };
        self.remember(usable.clone());
        let sent = self.gates.clock.now();
        let attempt = usable.backend.acquire(&usable.at, &request).await;
        match attempt {
            Ok(Attempt::Granted(grant)) => {
                self.backoff.reset();
                self.adopting = None;
                self.held = Some(Held::new(grant.fence, sent, grant.ttl));
                self.gates.ctx.metrics.gates.changed("adopted");
                if seen.fence() != Some(grant.fence.to_string().as_str()) {
                    self.finish(&State::Granted, Some(grant.fence)).await;
                    let note = format!(
                        "its hold of {} had expired while no operator renewed it, and was taken up \
                         again with fence {}",
                        hold.name(),
                        grant.fence
                    );
                    about_pod(&self.gates.ctx, seen, HOLD_GRANTED, note).await;
                }
                true
            }
            Ok(_) => {
                self.adopting = None;
                self.lost(seen, hold, "it expired while no operator renewed it").await;
                false
            }
            Err(error) => {
                tracing::debug!(at = %usable.at, %error, "a running pod's hold was not found yet");
                let delay = self.backoff.next_delay();
                self.idle(seen, delay).await;
                true
            }
        }
    }

    /// A pod goes on without its hold.
    async fn lost(&mut self, seen: &Seen, hold: &PodHold, why: &'static str) {
        self.gates.ctx.metrics.gates.changed("lost");
        tracing::warn!(
            pod = seen.name,
            namespace = seen.namespace,
            why,
            "a running pod's hold is lost"
        );
        let note = format!(
            "the pod runs on without its hold of {}: {why}. Another may run beside it; what it writes \
             is safe where its fence is checked",
            hold.name()
        );
        about_pod(&self.gates.ctx, seen, HOLD_LOST, note).await;
        self.finish(&State::Lost(why), None).await;
    }

    /// A pod has ended.
    pub(super) async fn release(&mut self, seen: &Seen, hold: &PodHold) {
        if let Some(usable) = self.usable_at_end(seen, hold) {
            let (at, config) = (&usable.at, &usable.config);
            let until = Instant::now() + usable.ttl;
            while let Err(error) = usable.backend.release(at, config, &usable.hold).await {
                tracing::debug!(%at, %error, "an ended pod's hold was not released yet");
                if Instant::now() > until {
                    break;
                }
                sleep(self.backoff.next_delay()).await;
            }
            tracing::info!(%at, pod = seen.name, "an ended pod's hold is released");
        }
        self.gates.ctx.metrics.gates.changed("released");
        if seen.presence == Presence::There {
            self.finish(&State::Released, None).await;
        }
        let note = format!("the pod has ended, and its hold of {} with it", hold.name());
        about_pod(&self.gates.ctx, seen, HOLD_RELEASED, note).await;
    }

    /// A pod will not run: whatever became of its request is undone.
    pub(super) async fn withdraw(&mut self, seen: &Seen, hold: &PodHold) {
        self.place = None;
        if seen.presence == Presence::Deleted && !self.is_gone(seen).await {
            // The label was taken off it, not the pod out of the cluster.
            tracing::warn!(pod = seen.name, "a pod lost its label; its hold is left to expire");
            return;
        }
        if let Some(usable) = self.usable_at_end(seen, hold) {
            let (at, config) = (&usable.at, &usable.config);
            let until = Instant::now() + usable.ttl;
            while let Err(error) = usable.backend.cancel(at, config, &usable.hold).await {
                tracing::debug!(%at, %error, "a gated pod's request was not withdrawn yet");
                if Instant::now() > until {
                    break;
                }
                sleep(self.backoff.next_delay()).await;
            }
        }
        self.gates.ctx.metrics.gates.changed("withdrawn");
    }

    /// Whether a pod is certainly not there any more.
    async fn is_gone(&mut self, seen: &Seen) -> bool {
        let api: Api<Pod> = Api::namespaced(self.gates.ctx.client.clone(), &seen.namespace);
        loop {
            match api.get_metadata_opt(&seen.name).await {
                Ok(there) => {
                    return there.is_none_or(|there| there.uid() != Some(seen.uid.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, "could not look for a pod");
                    sleep(self.backoff.next_delay()).await;
                }
            }
        }
    }

    /// The class as it is, or else as it was when it was asked last.
    fn usable_at_end(&self, seen: &Seen, hold: &PodHold) -> Option<Usable> {
        let known = self.asked.as_ref().map(|(usable, _)| usable.clone());
        match resolve(&self.gates, seen, hold) {
            // What was asked for is what is to be undone, whatever the annotation says by now.
            Ok(found) => Some(match known {
                Some(known) if known.hold != found.hold => known,
                _ => found,
            }),
            Err(_) => known,
        }
    }
}
