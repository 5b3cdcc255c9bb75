//! A gated pod: to ask for its hold when it is its turn, and to let it go once it has it.

use std::{sync::Arc, time::Duration};

use holdfast_api::{
    hold::PodHold,
    names::{LABEL_CLASS, LABEL_KIND},
};
use holdfast_core::{BackendError, Fence, lock::Attempt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use tokio::time::{Instant, sleep, timeout};

use super::{
    class::{Usable, resolve},
    life::{Counted, Held, LOOK_AGAIN, Life, RETRY, SHOWN},
    seen::{Seen, Stage},
    tell::{self, HOLD_BLOCKED, HOLD_GRANTED, HOLD_WAITING, State, about_class, about_pod},
};
use crate::error::Error;

/// How often the first of a line looks into the cache for a Lease that has changed.
const LOOK_AT_CACHE: Duration = Duration::from_millis(200);
/// A hold that is nearer to its end than this is asked for again before a pod is let go on it: what
/// a write to the API server may take, and then some.
const MARGIN: Duration = Duration::from_secs(15);
/// Waiters that far back are looked after half as often.
const FAR_BACK: u32 = 10;

impl Life {
    /// One round of a gated pod: asks if it is its turn, and waits until it is worth to ask again.
    pub(super) async fn wait(&mut self, seen: &Arc<Seen>, hold: &PodHold) {
        let found = resolve(&self.gates, seen, hold).and_then(|found| {
            let refusal = found.refusal(seen, hold);
            refusal.map_or(Ok(found), Err)
        });
        let usable = match found {
            Ok(usable) => usable,
            Err(why) => return self.blocked(seen, why).await,
        };
        self.forget_other(&usable).await;
        let gates = self.gates.clone();
        let lines = gates.lines();
        if !lines.all_adopted(&seen.namespace, hold) {
            drop(timeout(LOOK_AGAIN, lines.adopted(&seen.namespace, hold)).await);
            return;
        }
        let has_asked = self.place.is_none() && self.asked.is_some();
        if !has_asked || !usable.has_queue() {
            let join = || lines.join(&seen.namespace, hold, &seen.uid);
            let place = self.place.get_or_insert_with(join);
            if !place.is_first() {
                let number = place.number();
                if !usable.has_queue() {
                    self.say_place(seen, hold, number).await;
                }
                return self.stand(Duration::from_millis(usable.config.beat_ms())).await;
            }
        }
        if !usable.has_queue() && !self.is_worth_asking(&usable) {
            self.say_place(seen, hold, 1).await;
            return self.idle(seen, LOOK_AT_CACHE).await;
        }
        self.ask(seen, hold, usable).await;
    }

    /// Stands in the line until it is the first of it, or for so long.
    async fn stand(&mut self, at_most: Duration) {
        let until = Instant::now() + at_most;
        let Some(place) = &self.place else { return };
        while !place.is_first() {
            tokio::select! {
                () = place.moved() => {}
                () = tokio::time::sleep_until(until) => return,
                _ = self.pod.changed() => return,
            }
        }
    }

    /// Asks the store.
    async fn ask(&mut self, seen: &Arc<Seen>, hold: &PodHold, usable: Usable) {
        let Some(request) = usable.request(seen, &self.gates.session, usable.has_queue()) else {
            return self.idle(seen, LOOK_AGAIN).await;
        };
        if self.asked.is_none() {
            // Before the first request is sent: it may be granted by a push.
            let inbox = self.gates.hub.register(&usable.hold);
            self.asked = Some((usable.clone(), inbox));
        }
        let before = self.leases_of(&usable);
        let sent = self.gates.clock.now();
        let attempt = usable.backend.acquire(&usable.at, &request).await;
        if attempt.is_ok() {
            self.backoff.reset();
        }
        let beat = Duration::from_millis(usable.config.beat_ms());
        match attempt {
            Ok(Attempt::Granted(grant)) => {
                self.tried = None;
                self.let_go(seen, hold, &usable, Held::new(grant.fence, sent, grant.ttl)).await;
            }
            Ok(Attempt::Queued { position }) => {
                // Others may ask: the store keeps the order from here on.
                self.place = None;
                self.say_place(seen, hold, position).await;
                self.idle(seen, if position > FAR_BACK { beat * 2 } else { beat }).await;
            }
            Ok(Attempt::Locked { retry_after, .. }) => {
                self.tried = Some((before, Instant::now() + retry_after));
                self.say_place(seen, hold, 1).await;
                self.idle(seen, LOOK_AT_CACHE).await;
            }
            Ok(Attempt::QueueFull { waiters }) => {
                let why = format!(
                    "{waiters} wait for {} already, and its spec.queue.maxWaiters are no more",
                    hold.name()
                );
                self.blocked(seen, why).await;
            }
            Ok(Attempt::TooMany { most }) => {
                let why = format!("one hold of {} has at most {most} permits", hold.name());
                self.blocked(seen, why).await;
            }
            // A hold of this pod was withdrawn by somebody who took it for ended. The tombstone goes.
            Ok(Attempt::Cancelled) => self.idle(seen, LOOK_AGAIN).await,
            Err(error) => {
                // Whatever became of it, asking again is the same request.
                let why = match &error {
                    BackendError::Epoch => "the store's epoch is not open yet".to_owned(),
                    error => {
                        format!("the store of {} does not answer: {}", hold.name(), error.code())
                    }
                };
                tracing::debug!(at = %usable.at, %error, "could not ask for a pod's hold");
                let delay = self.backoff.next_delay();
                // A failover is short: it need not be told.
                if delay >= RETRY.1 / 2 {
                    self.say(&State::Blocked(why)).await;
                }
                self.idle(seen, delay).await;
            }
        }
    }

    /// Takes the gate off. Whatever goes wrong, the next round asks for the same hold again.
    async fn let_go(&mut self, seen: &Seen, hold: &PodHold, usable: &Usable, held: Held) {
        let gates = self.gates.clone();
        let left = held.deadline.remaining(gates.clock.now());
        if left < MARGIN.min(usable.ttl / 2) {
            // An offer of a few seconds: asking again has claimed it by then.
            return sleep(RETRY.0).await;
        }
        let newest = self.pod.borrow_and_update().clone();
        if newest.stage() != Stage::Gated {
            return;
        }
        let written = {
            let _turn = gates.writes.acquire().await;
            tell::let_go(&gates.ctx, &newest, held.fence).await
        };
        match written {
            Ok(()) => {
                self.held = Some(held);
                self.counted = Counted::new(&gates, "holding");
                self.said = Some(State::Granted.text());
                gates.ctx.metrics.gates.wait_seconds.observe(self.since.elapsed().as_secs_f64());
                self.tell_granted(seen, hold, usable, held.fence).await;
            }
            Err(Error::Conflict(_)) => drop(timeout(SHOWN, self.pod.changed()).await),
            Err(error) => {
                tracing::warn!(error = error.chain(), pod = seen.name, "could not let a pod go");
                sleep(self.backoff.next_delay()).await;
            }
        }
    }

    async fn tell_granted(&self, seen: &Seen, hold: &PodHold, usable: &Usable, fence: Fence) {
        let ctx = &self.gates.ctx;
        ctx.metrics.gates.changed("granted");
        tracing::info!(at = %usable.at, pod = seen.name, %fence, "let a pod go with its hold");
        let key = &usable.at.key;
        let note = format!("holds key \"{key}\" of {} with fence {fence}", hold.name());
        about_pod(ctx, seen, HOLD_GRANTED, note).await;
        let note = format!("pod \"{}\" holds key \"{key}\" until it ends", seen.name);
        about_class(ctx, seen, hold, HOLD_GRANTED, note).await;
    }

    /// Whether a Lease of the class has changed since the last try, or the hold seen then is over.
    fn is_worth_asking(&self, usable: &Usable) -> bool {
        let Some((seen, again)) = &self.tried else { return true };
        Instant::now() >= *again || *seen != self.leases_of(usable)
    }

    /// The versions of the Leases of a class, as the operator's cache has them.
    fn leases_of(&self, usable: &Usable) -> String {
        if usable.has_queue() {
            return String::new();
        }
        let at = &usable.at;
        let leases = &self.gates.ctx.caches.leases;
        let label = |lease: &Lease, name, value: &str| {
            lease.labels().get(name).is_some_and(|there| there == value)
        };
        let ours = leases.state_filter(|lease| {
            lease.metadata.namespace.as_deref() == Some(&*at.namespace)
                && label(lease, LABEL_CLASS, at.class.as_str())
                && label(lease, LABEL_KIND, at.kind.singular())
        });
        let mut versions: Vec<String> = ours
            .iter()
            .map(|lease| {
                format!("{}={}", lease.name_any(), lease.resource_version().unwrap_or_default())
            })
            .collect();
        versions.sort_unstable();
        versions.join(",")
    }

    /// Somebody has to see to something before this pod can be let go.
    async fn blocked(&mut self, seen: &Arc<Seen>, why: String) {
        // Those behind it need not wait for that.
        self.place = None;
        if self.say(&State::Blocked(why.clone())).await {
            about_pod(&self.gates.ctx, seen, HOLD_BLOCKED, why).await;
        }
        self.idle(seen, LOOK_AGAIN).await;
    }

    async fn say_place(&mut self, seen: &Arc<Seen>, hold: &PodHold, place: u32) {
        let is_first = !self.said.as_ref().is_some_and(|said| said.starts_with("Waiting"));
        if !self.say(&State::Waiting(place)).await {
            return;
        }
        let ctx = &self.gates.ctx;
        if is_first {
            let note = format!("waits for {} at place {place}", hold.name());
            about_pod(ctx, seen, HOLD_WAITING, note).await;
        }
        // How many wait is in the class's status, too.
        ctx.triggers.class(hold.kind, &seen.namespace, hold.class.as_str());
    }
}
