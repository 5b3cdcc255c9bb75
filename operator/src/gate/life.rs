//! One pod's hold, from its first sight to its end: a task per pod, in one straight line. What is done
//! while it is gated is in [`super::wait`], what comes after in [`super::keep`].
//!
//! Every step asks the store for the same hold, so each may be repeated, by this leader or the next.
//! Nothing is dropped half done: while a request is on its way, the task waits for its answer.

use std::{sync::Arc, time::Duration};

use holdfast_backend::hub::Inbox;
use holdfast_core::{Deadline, Fence, Stamp, clock::Backoff, lock::Push};
use prometheus::IntGauge;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Gates,
    class::Usable,
    lines::{Adopting, Place},
    seen::{Presence, Seen, Stage},
    tell::{self, State},
};
use crate::error::Error;

/// After how long to look again at what somebody has to see to.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// For how long the watch may take to show what was written.
pub(super) const SHOWN: Duration = Duration::from_secs(5);
/// Pauses between tries of a store or an API server that does not answer.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A pod's hold, in the hands of this leader.
pub struct Life {
    pub(super) gates: Arc<Gates>,
    pub(super) pod: watch::Receiver<Arc<Seen>>,
    /// What was said of it last by this leader.
    pub(super) said: Option<String>,
    pub(super) since: Instant,
    /// Its place in the line, as long as it has to be there.
    pub(super) place: Option<Place>,
    /// Until a running pod has been seen to.
    pub(super) adopting: Option<Adopting>,
    /// What was asked for last.
    pub(super) asked: Option<(Usable, Inbox)>,
    pub(super) held: Option<Held>,
    /// What the first of the line saw when it asked in vain, and when it may ask again.
    pub(super) tried: Option<(String, Instant)>,
    pub(super) backoff: Backoff,
    pub(super) counted: Counted,
}

#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) fence: Fence,
    pub(super) deadline: Deadline,
    pub(super) renew_at: Instant,
}

impl Held {
    /// A hold that was granted or renewed just now for `ttl`; `sent` was read before it was asked for.
    pub(super) fn new(fence: Fence, sent: Stamp, ttl: Duration) -> Self {
        let (deadline, renew_at) = (Deadline::new(sent, ttl), Instant::now() + ttl / 3);
        Held { fence, deadline, renew_at }
    }
}

/// Counts a pod in a gauge for as long as it lives.
pub(super) struct Counted(IntGauge);

impl Counted {
    pub(super) fn new(gates: &Gates, state: &str) -> Self {
        let gauge = gates.ctx.metrics.gates.pods.with_label_values(&[state]);
        gauge.inc();
        Counted(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Life {
    /// A pod that was seen for the first time. It has its place in the line from now on.
    pub fn new(gates: Arc<Gates>, pod: watch::Receiver<Arc<Seen>>) -> Self {
        let seen = pod.borrow().clone();
        let (hold, stage) = (seen.hold(), seen.stage());
        let of = |wanted: Stage| hold.as_ref().filter(|_| stage == wanted);
        let lines = gates.lines();
        let place = of(Stage::Gated).map(|hold| lines.join(&seen.namespace, hold, &seen.uid));
        let adopting = of(Stage::Holds).map(|hold| lines.adopting(&seen.namespace, hold));
        let counted = Counted::new(&gates, if place.is_some() { "gated" } else { "holding" });
        Life {
            pod,
            said: seen.state().map(str::to_owned),
            since: Instant::now(),
            place,
            adopting,
            asked: None,
            held: None,
            tried: None,
            backoff: Backoff::new(RETRY.0, RETRY.1),
            counted,
            gates,
        }
    }

    /// Sees to the pod's hold until there is nothing more to do.
    pub async fn live(mut self) {
        loop {
            let seen = self.pod.borrow_and_update().clone();
            let Some(hold) = seen.hold() else { return };
            match seen.stage() {
                // The watch has not shown yet that it was let go.
                Stage::Gated if self.held.is_some() => {
                    if timeout(SHOWN, self.pod.changed()).await.is_err() {
                        self.held = None;
                    }
                }
                Stage::Gated => self.wait(&seen, &hold).await,
                Stage::Holds => {
                    // Not before: whoever is behind it would ask in vain.
                    self.place = None;
                    if !self.keep(&seen, &hold).await {
                        return;
                    }
                }
                Stage::NeverRan => return self.withdraw(&seen, &hold).await,
                Stage::Ended => return self.release(&seen, &hold).await,
                Stage::Unknown => {
                    self.gates.ctx.metrics.gates.changed("left_to_expire");
                    let (namespace, pod) = (&seen.namespace, &seen.name);
                    tracing::info!(namespace, pod, "a pod vanished that may run: its hold expires");
                    return;
                }
                Stage::Done => return,
            }
        }
    }

    pub(super) fn remember(&mut self, usable: Usable) {
        let inbox = match self.asked.take() {
            Some((known, inbox)) if known.hold == usable.hold => inbox,
            _ => self.gates.hub.register(&usable.hold),
        };
        self.asked = Some((usable, inbox));
    }

    /// Withdraws what was asked for before the annotation, or the class's only key, was changed.
    pub(super) async fn forget_other(&mut self, usable: &Usable) {
        let Some((known, _)) = &self.asked else { return };
        if known.hold == usable.hold {
            return;
        }
        let cancelled = known.backend.cancel(&known.at, &known.config, &known.hold).await;
        if let Err(error) = cancelled {
            tracing::warn!(at = %known.at, %error, "an earlier request of a pod is left to expire");
        }
        (self.asked, self.place, self.tried) = (None, None, None);
    }

    /// Notes how it stands, if that is news; whether it was noted.
    pub(super) async fn say(&mut self, state: &State) -> bool {
        let text = state.text();
        if self.said.as_ref() == Some(&text) {
            return false;
        }
        let newest = self.pod.borrow().clone();
        let _turn = self.gates.writes.acquire().await;
        match tell::note(&self.gates.ctx, &newest, state, None).await {
            Ok(()) => {
                self.said = Some(text);
                true
            }
            // The next round says it.
            Err(error) => {
                tracing::debug!(%error, pod = newest.name, "could not note how a hold stands");
                false
            }
        }
    }

    /// Notes what the next leader must know: until it is noted, or the pod is gone.
    pub(super) async fn finish(&mut self, state: &State, fence: Option<Fence>) {
        loop {
            let newest = self.pod.borrow_and_update().clone();
            if newest.presence != Presence::There {
                return;
            }
            let noted = {
                let _turn = self.gates.writes.acquire().await;
                tell::note(&self.gates.ctx, &newest, state, fence).await
            };
            match noted {
                Ok(()) => return,
                Err(Error::Conflict(_)) => drop(timeout(SHOWN, self.pod.changed()).await),
                Err(Error::Api { source: kube::Error::Api(status), .. }) if status.code == 404 => {
                    return;
                }
                Err(error) => {
                    tracing::debug!(error = error.chain(), "could not note how a hold ended");
                    sleep(self.backoff.next_delay()).await;
                }
            }
        }
    }

    /// Waits: for so long at the most, until a push comes, or until something else is to be done about
    /// the pod. What we wrote on it ourselves is nothing new.
    pub(super) async fn idle(&mut self, seen: &Arc<Seen>, at_most: Duration) {
        let until = Instant::now() + at_most;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                _ = Self::push(&mut self.asked) => return,
                changed = self.pod.changed() => {
                    if changed.is_err() {
                        return tokio::time::sleep_until(until).await;
                    }
                    let now = self.pod.borrow_and_update();
                    if now.stage() != seen.stage() || now.hold() != seen.hold() {
                        return;
                    }
                }
            }
        }
    }

    /// The next push about the hold, if any was asked for.
    pub(super) async fn push(asked: &mut Option<(Usable, Inbox)>) -> Push {
        match asked {
            Some((_, inbox)) => inbox.recv().await,
            None => std::future::pending().await,
        }
    }
}
