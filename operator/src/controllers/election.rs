//! LeaderElections: who leads, as status, as an Event, and as a route to the leader's pod.
//!
//! `Ready` says whether candidates can stand, never whether anybody leads.

use std::time::Duration;

use holdfast_api::{
    compile::Class,
    conditions::{Verdict, set_conditions},
    v1alpha1::{LeaderElection, LeaderElectionStatus, election::LeaderStatus},
};
use holdfast_core::{Key, Kind, Substrate};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::runtime::events::EventType;

use super::lock::{Held, Observed, observe};
use crate::{
    context::Context,
    error::Error,
    pipeline::{Applied, Controlled, Phase, Valid, judge},
    status,
};

pub mod routing;
pub mod transfer;

/// The Event about a change.
const LEADER_CHANGED: &str = "LeaderChanged";

impl Controlled for LeaderElection {
    const KIND: Kind = Kind::LeaderElection;

    fn class(&self) -> Class {
        Class::LeaderElection(self.clone())
    }

    fn keys(&self) -> Vec<Key> {
        vec![Key::default_key()]
    }

    async fn report(&self, ctx: &Context, phase: Phase<'_>) -> Result<Option<Duration>, Error> {
        let before = self.status.clone().unwrap_or_default();
        match phase {
            Phase::Refused(verdict) => {
                let status = LeaderElectionStatus {
                    conditions: conditions(self, &before, verdict),
                    observed_generation: self.metadata.generation,
                    ..before
                };
                status::write(ctx, self, self.status.as_ref(), &status).await
            }
            Phase::Applied(valid, applied) => observed(self, ctx, valid, applied, before).await,
        }
    }
}

fn conditions(
    election: &LeaderElection,
    before: &LeaderElectionStatus,
    verdict: Verdict,
) -> Vec<Condition> {
    let generation = election.metadata.generation;
    set_conditions(&before.conditions, &[verdict], generation, Timestamp::now())
}

async fn observed(
    election: &LeaderElection,
    ctx: &Context,
    valid: &Valid,
    applied: Applied,
    before: LeaderElectionStatus,
) -> Result<Option<Duration>, Error> {
    let observed = match valid.substrate {
        Substrate::Lease => observe::leases(ctx, valid),
        Substrate::Redis => observe::store(ctx, valid, every(election), as_before(&before)).await,
        Substrate::Memory => Observed::default(),
    };
    let leader = leader(observed.held.values().next(), &before);
    // Before the status says so: who waits for the status then finds the route.
    routing::follow(ctx, election, leader.as_ref()).await?;
    let status = LeaderElectionStatus {
        observed_generation: election.metadata.generation,
        conditions: conditions(election, &before, judge::ready(valid, &applied)),
        leader: leader.clone(),
        candidates: observed.waiting,
        guarantee: Some(routing::guarantee(valid)),
    };
    let next = transfer::follow(ctx, election, leader.as_ref()).await?;
    let again = [observed.again, applied.again, next].into_iter().flatten().min();
    if let Some(wait) = status::write(ctx, election, election.status.as_ref(), &status).await? {
        return Ok(Some(again.map_or(wait, |again| again.min(wait))));
    }
    if let Some((note, pod)) = news(&before, &status) {
        let about = Some((pod, Key::default_key().to_string()));
        ctx.tell(election, EventType::Normal, LEADER_CHANGED, note, about).await;
    }
    Ok(again)
}

/// How often a Redis is asked who leads. A label and a route follow a change within a retry period, so
/// where there is one to write it is asked twice as often.
fn every(election: &LeaderElection) -> Duration {
    let spec = &election.spec;
    if spec.leader_label.is_none() && spec.service.is_none() {
        return observe::LEAST;
    }
    (Duration::from_secs(spec.retry_period_seconds.into()) / 2).min(observe::LEAST)
}

/// The leader, since it was first seen: the same term keeps its time.
fn leader(held: Option<&Held>, before: &LeaderElectionStatus) -> Option<LeaderStatus> {
    let held = held?;
    let term = held.fence.to_string();
    let known = before.leader.as_ref().filter(|known| known.term == term && known.pod == held.pod);
    let since = known.map_or_else(
        || Time(Timestamp::now() - held.held_for.unwrap_or_default()),
        |known| known.since.clone(),
    );
    Some(LeaderStatus { pod: held.pod.clone(), term, since })
}

/// What changed between two statuses, in a sentence, and the pod that it is about. Pure.
fn news(before: &LeaderElectionStatus, after: &LeaderElectionStatus) -> Option<(String, String)> {
    let named = |status: &LeaderElectionStatus| {
        status.leader.as_ref().map(|leader| (leader.pod.clone(), leader.term.clone()))
    };
    match (named(before), named(after)) {
        (old, new) if old == new => None,
        (_, Some((pod, term))) => Some((format!("pod \"{pod}\" leads, term {term}"), pod)),
        (Some((pod, term)), None) => {
            Some((format!("pod \"{pod}\" leads no more, term {term}; nobody does"), pod))
        }
        (None, None) => None,
    }
}

fn as_before(before: &LeaderElectionStatus) -> Observed {
    let held = before.leader.iter().filter_map(|leader| {
        let fence = leader.term.parse().ok()?;
        Some((Key::default_key(), Held { pod: leader.pod.clone(), fence, held_for: None }))
    });
    Observed { held: held.collect(), waiting: before.candidates, ..Observed::default() }
}

#[cfg(test)]
mod tests {
    use holdfast_core::Fence;

    use super::*;

    fn mk_status(
        leader: Option<(&str, u64)>,
        before: &LeaderElectionStatus,
    ) -> LeaderElectionStatus {
        let held = leader.map(|(pod, fence)| Held {
            pod: pod.into(),
            fence: Fence::new(fence),
            held_for: None,
        });
        LeaderElectionStatus {
            leader: super::leader(held.as_ref(), before),
            ..LeaderElectionStatus::default()
        }
    }

    #[test]
    fn a_route_on_a_redis_is_looked_at_twice_in_a_retry_period() {
        let of = |spec: &str| {
            let json = format!(r#"{{"metadata": {{"name": "boss"}}, "spec": {spec}}}"#);
            every(&serde_json::from_str(&json).unwrap()).as_millis()
        };
        let routed = r#""service": {"name": "web"}"#;
        assert_eq!(of(&format!(r#"{{"retryPeriodSeconds": 1, {routed}}}"#)), 500);
        assert_eq!(of(&format!(r#"{{"retryPeriodSeconds": 9, {routed}}}"#)), 1_000);
        assert_eq!(of(r#"{"retryPeriodSeconds": 1}"#), 1_000, "nothing follows it");
    }

    #[test]
    fn a_change_of_leader_is_told_once_and_the_same_term_keeps_its_time() {
        let none = LeaderElectionStatus::default();
        let first = mk_status(Some(("a", 7)), &none);
        assert_eq!(news(&none, &first), Some(("pod \"a\" leads, term 7".into(), "a".into())));
        assert_eq!(mk_status(Some(("a", 7)), &first), first);
        assert_eq!(news(&first, &first), None);
        let second = mk_status(Some(("a", 9)), &first);
        assert!(news(&first, &second).is_some(), "the same pod's next term is news");
        let gone = mk_status(None, &second);
        assert!(news(&second, &gone).unwrap().0.contains("nobody"));
    }
}
