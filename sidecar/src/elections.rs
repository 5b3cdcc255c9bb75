//! The elections that this pod stands in: one task each, that asks for the leadership, watches over a
//! term, and asks again.
//!
//! A term is a hold like any other: kept by [`Holds`](crate::holds::Holds), bound to the app, ended by
//! its deadline. What a candidate *says* here follows that hold's events; whether the pod leads right
//! now is always read from the hold itself, so that no late task can make a lost term look alive.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use holdfast_backend::hub::lock;
use holdfast_core::{ClassName, Fence, HoldId, Holder};
use holdfast_wire::{Code, HoldEventKind, Standing};
use tokio::{
    sync::{Notify, broadcast::error::RecvError, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    holds::{Found, View, stream::Subscription},
    service::Sidecar,
    snapshot::Snapshot,
};

/// After how long to look again for a class that is not there.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Why nobody can stand in an election that is not declared.
const NO_CLASS: &str = "there is no such LeaderElection here";

/// What a candidate says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// How it stands.
    pub standing: Standing,
    /// The term it leads or led last.
    pub term: Option<Fence>,
    /// The hold that the term is, while it lasts.
    pub hold: Option<HoldId>,
    /// Why it does not lead any more, cannot stand, or is to hand over.
    pub reason: Option<String>,
}

impl Said {
    /// What there is to say of a pod that never stood.
    pub fn not_candidate() -> Self {
        Said { standing: Standing::NotCandidate, term: None, hold: None, reason: None }
    }
}

/// The candidacies of a pod.
#[derive(Default)]
pub struct Elections(Mutex<HashMap<ClassName, Candidacy>>);

struct Candidacy {
    candidate: Arc<Candidate>,
    _task: AbortOnDropHandle<()>,
}

/// One candidacy.
pub struct Candidate {
    name: ClassName,
    said: watch::Sender<Said>,
    /// Not before then does it ask again.
    paused: Mutex<Option<Instant>>,
    /// The pause was changed.
    changed: Notify,
    /// The pod that is to lead, if one is named.
    heir: watch::Sender<Option<Holder>>,
    /// An heir that was waited for in vain: somebody must lead.
    missed: Mutex<Option<Holder>>,
}

impl Elections {
    /// Stands in an election; one that it stands in already is left alone.
    pub fn campaign(&self, sidecar: &Arc<Sidecar>, name: &ClassName) -> Arc<Candidate> {
        let mut all = self.all();
        let there = all.entry(name.clone()).or_insert_with(|| {
            let said = Said { standing: Standing::Standby, ..Said::not_candidate() };
            let candidate = Arc::new(Candidate {
                name: name.clone(),
                said: watch::Sender::new(said),
                paused: Mutex::default(),
                changed: Notify::new(),
                heir: watch::Sender::new(heir_of(&sidecar.snapshot.load(), name)),
                missed: Mutex::default(),
            });
            let task = tokio::spawn(candidate.clone().stand(sidecar.clone()));
            Candidacy { candidate, _task: AbortOnDropHandle::new(task) }
        });
        there.candidate.clone()
    }

    /// The candidacy in an election, if there is one.
    pub fn find(&self, name: &ClassName) -> Option<Arc<Candidate>> {
        self.all().get(name).map(|there| there.candidate.clone())
    }

    /// Tells the candidates who is to lead.
    pub fn look_again(&self, snapshot: &Snapshot) {
        for (name, there) in self.all().iter() {
            let heir = heir_of(snapshot, name);
            there.candidate.heir.send_if_modified(|known| {
                let is_news = *known != heir;
                *known = heir;
                is_news
            });
        }
    }

    /// The elections that the pod stands in.
    pub fn names(&self) -> Vec<ClassName> {
        let mut names: Vec<ClassName> = self.all().keys().cloned().collect();
        names.sort();
        names
    }

    /// Ends a candidacy. Its term, if it has one, must have been released before.
    pub fn withdraw(&self, name: &ClassName) {
        if let Some(there) = self.all().remove(name) {
            there.candidate.say(Said::not_candidate());
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ClassName, Candidacy>> {
        lock(&self.0)
    }
}

impl Candidate {
    /// What it says, now and later.
    pub fn said(&self) -> watch::Receiver<Said> {
        self.said.subscribe()
    }

    /// Lets those who listen look at its hold again.
    pub fn say_again(&self) {
        self.said.send_modify(|_| {});
    }

    /// Lets it ask again after a pause only.
    pub fn pause(&self, pause: Duration) {
        *self.paused() = Some(Instant::now() + pause);
        self.changed.notify_one();
    }

    /// The pod that this one must let lead.
    fn yields_to(&self, own: &Holder) -> Option<Holder> {
        let heir = self.heir.borrow().clone();
        let missed = lock(&self.missed);
        heir.filter(|heir| heir != own && missed.as_ref() != Some(heir))
    }

    /// Stands back for an heir, but not for ever.
    async fn stand_back(&self, sidecar: &Sidecar, heir: Holder, patience: Duration) {
        self.stand_by(Some(format!("pod \"{heir}\" is to lead")));
        let mut next = self.heir.subscribe();
        tokio::select! {
            () = sleep(patience) => {
                tracing::warn!(election = %self.name, %heir, "the pod that is to lead does not come");
                *lock(&self.missed) = Some(heir);
            }
            _ = next.wait_for(|known| known.as_ref() != Some(&heir)) => *lock(&self.missed) = None,
            () = sidecar.closing.cancelled() => {}
        }
        self.stand_by(None);
    }

    async fn stand(self: Arc<Self>, sidecar: Arc<Sidecar>) {
        let mut heir = self.heir.subscribe();
        while !sidecar.closing.is_cancelled() {
            let paused = *self.paused();
            if let Some(until) = paused.filter(|until| *until > Instant::now()) {
                tokio::select! {
                    () = sleep_until(until) => {}
                    () = self.changed.notified() => {}
                    () = sidecar.closing.cancelled() => return,
                }
                continue;
            }
            let class = sidecar.snapshot.load().elections.get(self.name.as_str()).cloned();
            let Some(class) = class else {
                self.stand_by(Some(NO_CLASS.into()));
                tokio::select! {
                    () = sleep(LOOK_AGAIN) => continue,
                    () = sidecar.closing.cancelled() => return,
                }
            };
            if self.said.borrow().reason.as_deref() == Some(NO_CLASS) {
                self.stand_by(None);
            }
            heir.mark_unchanged();
            if let Some(heir) = self.yields_to(&sidecar.identity.holder) {
                // A leader may take one lease duration to finish, and a dead one takes as long.
                let patience = 2 * Duration::from_millis(class.term.config.ttl_ms);
                self.stand_back(&sidecar, heir, patience).await;
                continue;
            }
            let asked = tokio::select! {
                biased;
                () = sidecar.closing.cancelled() => return,
                () = self.changed.notified() => continue,
                // Whoever queues would be granted what is meant for another.
                _ = heir.changed() => continue,
                asked = sidecar.stand_once(&class.term) => asked,
            };
            match asked {
                Ok(view) => self.lead(&sidecar, &mut heir, view).await,
                // The wait is over, and another leads: nothing is in the way.
                Err(failure) if failure.0.code == Code::Locked => self.stand_by(None),
                Err(failure) => {
                    tracing::debug!(election = %self.name, why = failure.0.detail, "cannot stand");
                    self.stand_by(Some(failure.0.detail));
                    let pause = class.retry.mul_f64(rand::random_range(0.5..1.0));
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = self.changed.notified() => {}
                    }
                }
            }
        }
    }

    /// Says what happens to a term until it is over; hands it over when another is to lead.
    async fn lead(
        &self,
        sidecar: &Arc<Sidecar>,
        heir: &mut watch::Receiver<Option<Holder>>,
        view: View,
    ) {
        let Ok(mut events) = sidecar.holds.subscribe(&view.hold) else { return };
        let say = |standing, reason| {
            let hold = Some(view.hold.clone());
            self.say(Said { standing, term: Some(view.fence), hold, reason });
        };
        tracing::info!(election = %self.name, term = %view.fence, "leads");
        let drain = Duration::from_millis(view.class.config.ttl_ms);
        let mut over: Option<Instant> = None;
        let mut is_late = events.first.event == HoldEventKind::Suspended;
        loop {
            match self.yields_to(&sidecar.identity.holder) {
                Some(heir) => {
                    if over.is_none() {
                        tracing::info!(election = %self.name, %heir, "hands over");
                    }
                    over = over.or_else(|| Some(Instant::now() + drain));
                    let why = format!("pod \"{heir}\" is to lead: finish, and resign");
                    say(Standing::Suspended, Some(why));
                }
                None => {
                    over = None;
                    let standing = if is_late { Standing::Suspended } else { Standing::Leading };
                    say(standing, None);
                }
            }
            let event = tokio::select! {
                event = next(&mut events) => event,
                _ = heir.changed() => continue,
                () = sleep_until(over.unwrap_or_else(Instant::now)), if over.is_some() => {
                    // What cannot be released now goes on in the background.
                    drop(sidecar.let_go_of(view.clone()).finish().await);
                    break;
                }
            };
            match event {
                Some(HoldEventKind::Granted) => is_late = false,
                Some(HoldEventKind::Suspended) => is_late = true,
                Some(HoldEventKind::Lost | HoldEventKind::Released) | None => break,
            }
        }
        let reason = match sidecar.holds.find(&view.hold) {
            Found::Ended(end) => end.sentence().to_owned(),
            Found::Live(_) | Found::Unknown => "the term is over".into(),
        };
        tracing::info!(election = %self.name, term = %view.fence, reason, "leads no more");
        let said = Said {
            standing: Standing::Standby,
            term: Some(view.fence),
            hold: None,
            reason: Some(reason),
        };
        self.say(said);
    }

    /// Says that it stands by; why it does not lead, if that is news.
    fn stand_by(&self, reason: Option<String>) {
        self.said.send_if_modified(|said| {
            let next = Said { standing: Standing::Standby, hold: None, reason, term: said.term };
            let is_news = *said != next;
            *said = next;
            is_news
        });
    }

    fn say(&self, next: Said) {
        self.said.send_if_modified(|said| {
            let is_news = *said != next;
            *said = next;
            is_news
        });
    }

    fn paused(&self) -> MutexGuard<'_, Option<Instant>> {
        lock(&self.paused)
    }
}

/// The pod that is to lead, by the bundle.
fn heir_of(snapshot: &Snapshot, name: &ClassName) -> Option<Holder> {
    snapshot.elections.get(name.as_str())?.transfer_to.clone()
}

async fn next(subscription: &mut Subscription) -> Option<HoldEventKind> {
    loop {
        match subscription.events.recv().await {
            Ok(event) => return Some(event.event),
            // The last event is always kept.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}
