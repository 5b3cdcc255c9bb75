//! What an app asks of an election: to stand, to know, to resign.

use std::{sync::Arc, time::Duration};

use holdfast_api::bundle::Verb;
use holdfast_core::Address;
use holdfast_wire::{
    CampaignRequest, Code, ElectionState, LeaderResponse, ResignRequest, Standing, TermState,
};
use tokio::{sync::watch, time::timeout};

use super::{
    MAX_WAIT, Sidecar, Wanted,
    answers::{mk_closing, mk_releasing, usable},
    terms::{Terms, invalid},
};
use crate::{
    elections::Said,
    error::Failure,
    holds::{Found, View},
    snapshot::{ElectionClass, LockClass},
};

/// The longest that a resigned leader may stand back.
const MAX_PAUSE: Duration = Duration::from_secs(3_600);

impl Sidecar {
    /// Stands in an election, and waits for the leadership if asked to.
    ///
    /// # Errors
    /// 403, 404, 422, or 503 while the sidecar stops.
    pub async fn campaign(
        self: &Arc<Self>,
        name: &str,
        request: &CampaignRequest,
    ) -> Result<TermState, Failure> {
        if self.closing.is_cancelled() {
            return Err(mk_closing());
        }
        let class = self.election(name, Verb::Acquire)?.0;
        let wait = read_seconds("waitSeconds", request.wait_seconds, MAX_WAIT)?;
        let candidate = self.elections.campaign(self, &class.term.name);
        let mut said = candidate.said();
        let leads = |said: &Said| self.term_state(said).state == Standing::Leading;
        // Whether it leads in the end is for the answer to say.
        drop(timeout(wait.unwrap_or_default(), said.wait_for(leads)).await);
        Ok(self.term_state(&said.borrow().clone()))
    }

    /// Gives a leadership up, and stands back for a while or for good.
    ///
    /// # Errors
    /// 403, 404, 422, or 503 when the store does not answer: the release goes on in the background.
    pub async fn resign(
        self: &Arc<Self>,
        name: &str,
        request: &ResignRequest,
    ) -> Result<TermState, Failure> {
        let class = self.election(name, Verb::Acquire)?.0;
        let pause = read_seconds("pauseSeconds", request.pause_seconds, MAX_PAUSE)?;
        let Some(candidate) = self.elections.find(&class.term.name) else {
            return Ok(self.term_state(&Said::not_candidate()));
        };
        // First the pause, or the candidate would win the release that follows.
        candidate.pause(pause.unwrap_or(class.retry));
        let hold = candidate.said().borrow().hold.clone();
        let released = match hold.map(|hold| self.holds.find(&hold)) {
            Some(Found::Live(view)) => {
                let mut releasing = self.let_go_of(view);
                // It leads no more, whatever the store answers.
                candidate.say_again();
                releasing.finish().await
            }
            Some(Found::Ended(_) | Found::Unknown) | None => Ok(()),
        };
        if request.withdraw == Some(true) {
            self.elections.withdraw(&class.term.name);
        }
        released?;
        let said = self.elections.find(&class.term.name).map(|found| found.said());
        let Some(mut said) = said else { return Ok(self.term_state(&Said::not_candidate())) };
        // The candidate hears of the release in a moment.
        drop(timeout(Duration::from_secs(1), said.wait_for(|said| said.hold.is_none())).await);
        Ok(self.term_state(&said.borrow().clone()))
    }

    /// Who leads, and how this pod stands.
    ///
    /// # Errors
    /// 403, 404, or those of the store.
    pub async fn election_state(&self, name: &str) -> Result<ElectionState, Failure> {
        let (class, at) = self.election(name, Verb::Read)?;
        let own = self.term_state(&self.said(&class));
        let leading = own.state == Standing::Leading;
        let leader = match (leading, &own.term) {
            (true, Some(term)) => {
                Some(LeaderResponse { pod: self.identity.holder.to_string(), term: term.clone() })
            }
            _ => {
                let view = class.term.client.backend().query(&at, &class.term.config).await?;
                view.holder.map(|holder| LeaderResponse {
                    pod: holder.holder.to_string(),
                    term: holder.fence.to_string(),
                })
            }
        };
        Ok(ElectionState { name: name.to_owned(), leader, leading, own })
    }

    /// This pod's own state, if it leads without a doubt. Asks no store.
    ///
    /// # Errors
    /// 409 when it does not; 403, 404.
    pub fn leading(&self, name: &str) -> Result<TermState, Failure> {
        let (class, _) = self.election(name, Verb::Read)?;
        let own = self.term_state(&self.said(&class));
        match own.state {
            Standing::Leading => Ok(own),
            Standing::Suspended => {
                let late = "this pod's term is in doubt: a renewal is late; begin nothing new";
                Err(Failure::new(Code::NotLeading, own.reason.unwrap_or_else(|| late.into())))
            }
            Standing::Standby => Err(Failure::new(Code::NotLeading, "this pod stands by")),
            Standing::NotCandidate => {
                let why = "this pod is no candidate; POST …/campaign makes it one";
                Err(Failure::new(Code::NotLeading, why))
            }
        }
    }

    /// What this pod says of itself in an election, now and later, and how long a term lasts.
    ///
    /// # Errors
    /// 403, 404, or 409 when it is no candidate.
    pub fn terms(&self, name: &str) -> Result<(watch::Receiver<Said>, Duration), Failure> {
        let (class, _) = self.election(name, Verb::Read)?;
        let candidate = self.elections.find(&class.term.name).ok_or_else(|| {
            let why = "this pod is no candidate; POST …/campaign first";
            Failure::new(Code::NotLeading, why)
        })?;
        Ok((candidate.said(), Duration::from_millis(class.term.config.ttl_ms)))
    }

    /// What is said, with what the hold says of its time.
    pub fn term_state(&self, said: &Said) -> TermState {
        let live = said.hold.as_ref().map(|hold| self.holds.find(hold));
        let term = said.term.map(|term| term.to_string());
        match live {
            // One that is being released is over, whatever the store answers.
            Some(Found::Live(view)) if !view.is_releasing => TermState {
                state: said.standing,
                term,
                hold_id: Some(view.hold.to_string()),
                hold_for_ms: Some(view.left.as_millis() as u64),
                deadline_boottime_ns: Some(view.deadline.boot_ns().to_string()),
                reason: said.reason.clone(),
            },
            // The term has ended, and the candidate has not heard of it yet.
            ended => TermState {
                state: match said.standing {
                    Standing::Leading | Standing::Suspended => Standing::Standby,
                    other => other,
                },
                term,
                hold_id: None,
                hold_for_ms: None,
                deadline_boottime_ns: None,
                reason: match ended {
                    Some(Found::Ended(end)) => Some(end.sentence().to_owned()),
                    Some(Found::Live(_)) => Some(mk_releasing().0.detail),
                    _ => said.reason.clone(),
                },
            },
        }
    }

    /// Asks for a term once, waiting as long as a request may.
    pub(crate) async fn stand_once(&self, class: &Arc<LockClass>) -> Result<View, Failure> {
        // Also those that the pod's annotation names: it is not the pod that grants access.
        let at = self.address(class, None, Verb::Acquire)?;
        // A run of this process before this one may have left its term.
        if let Some(view) = self.holds.live().into_iter().find(|view| view.at == at) {
            return usable(view);
        }
        let terms = Terms::of_candidate(class, self.identity.in_pod);
        self.acquire_wanted(Wanted { class: class.clone(), at, terms, _place: None }).await
    }

    fn said(&self, class: &ElectionClass) -> Said {
        let found = self.elections.find(&class.term.name);
        found.map_or_else(Said::not_candidate, |candidate| candidate.said().borrow().clone())
    }

    fn election(&self, name: &str, verb: Verb) -> Result<(Arc<ElectionClass>, Address), Failure> {
        let class = self.snapshot.load().election(name)?.clone();
        let at = self.address(&class.term, None, verb)?;
        Ok((class, at))
    }
}

fn read_seconds(
    field: &str,
    value: Option<f64>,
    most: Duration,
) -> Result<Option<Duration>, Failure> {
    let Some(value) = value else { return Ok(None) };
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if duration <= most => Ok(Some(duration)),
        _ => {
            let most = most.as_secs();
            Err(invalid(field, &format!("must be from 0 to {most} here; got {value}")))
        }
    }
}
