//! Locks: what the store shows of their holders, as status and Events.
//!
//! `Ready` says whether the lock can be used, never whether it is held. Holders are data: written
//! when they change, at most once a second, and Events with them.

use std::{collections::BTreeMap, time::Duration};

use holdfast_api::{
    compile::Class,
    conditions::{Verdict, set_conditions},
    v1alpha1::{Lock, LockStatus, lock::HolderStatus},
};
use holdfast_core::{Address, Fence, Key, Kind, Substrate};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::runtime::events::EventType;

use crate::{
    context::Context,
    error::Error,
    pipeline::{Applied, Controlled, Phase, Valid, force, judge},
    status,
};

pub(super) mod observe;
pub mod sightings;

/// How many holders a status names.
const NAMED: usize = 10;

/// How a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Released,
    Expired,
}

/// A hold that is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) pod: String,
    pub(super) fence: Fence,
    /// For how long, as far as the store says.
    pub(super) held_for: Option<Duration>,
}

/// What the store shows of a class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Observed {
    pub(super) held: BTreeMap<Key, Held>,
    /// How holds that are no more ended, where the store shows it.
    pub(super) endings: BTreeMap<Key, Ending>,
    /// How many wait, where the store shows it.
    pub(super) waiting: Option<u32>,
    /// When something changes by itself, or is to be looked at again.
    pub(super) again: Option<Duration>,
}

impl Controlled for Lock {
    const KIND: Kind = Kind::Lock;

    fn class(&self) -> Class {
        Class::Lock(self.clone())
    }

    fn keys(&self) -> Vec<Key> {
        let keys: Vec<Key> = self.spec.keys.iter().filter_map(|key| Key::new(key).ok()).collect();
        if keys.is_empty() { vec![Key::default_key()] } else { keys }
    }

    async fn report(&self, ctx: &Context, phase: Phase<'_>) -> Result<Option<Duration>, Error> {
        let before = self.status.clone().unwrap_or_default();
        match phase {
            Phase::Refused(verdict) => {
                // What is held stays held; nobody looks at it any more.
                let status = LockStatus {
                    conditions: self.conditions(&before, verdict),
                    observed_generation: self.metadata.generation,
                    ..before
                };
                status::write(ctx, self, self.status.as_ref(), &status).await
            }
            Phase::Applied(valid, applied) => self.observed(ctx, valid, applied, before).await,
        }
    }
}

trait Reported {
    fn conditions(
        &self,
        before: &LockStatus,
        verdict: Verdict,
    ) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>;

    async fn observed(
        &self,
        ctx: &Context,
        valid: &Valid,
        applied: Applied,
        before: LockStatus,
    ) -> Result<Option<Duration>, Error>;
}

impl Reported for Lock {
    fn conditions(
        &self,
        before: &LockStatus,
        verdict: Verdict,
    ) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
        set_conditions(&before.conditions, &[verdict], self.metadata.generation, Timestamp::now())
    }

    async fn observed(
        &self,
        ctx: &Context,
        valid: &Valid,
        applied: Applied,
        before: LockStatus,
    ) -> Result<Option<Duration>, Error> {
        let observed = match valid.substrate {
            Substrate::Lease => observe::leases(ctx, valid),
            Substrate::Redis | Substrate::Redlock => {
                observe::store(ctx, valid, observe::LEAST, as_before(&before)).await
            }
            Substrate::Memory => Observed::default(),
        };
        let verdict = judge::ready(valid, &applied);
        let status = LockStatus {
            observed_generation: self.metadata.generation,
            conditions: self.conditions(&before, verdict),
            holders: holders(&observed, &before),
            held: observed.held.len() as u32,
            waiting: observed.waiting,
            guarantee: Some(valid.guarantee.to_string()),
        };
        let again = [observed.again, applied.again].into_iter().flatten().min();
        if let Some(wait) = status::write(ctx, self, self.status.as_ref(), &status).await? {
            return Ok(Some(again.map_or(wait, |again| again.min(wait))));
        }
        for event in events(&before, &status, &observed) {
            let at = Address {
                kind: Kind::Lock,
                namespace: valid.namespace.as_str().into(),
                class: valid.class.name.clone(),
                key: event.key.clone(),
            };
            if event.reason == RELEASED && force::tells(ctx, self, &at, event.fence) {
                continue;
            }
            let about = Some((event.pod, event.key.to_string()));
            ctx.tell(self, event.kind, event.reason, event.note, about).await;
        }
        Ok(again)
    }
}

fn as_before(before: &LockStatus) -> Observed {
    let held = before.holders.iter().filter_map(|holder| {
        let fence = holder.fence.parse().ok()?;
        Some((Key::new(&holder.key).ok()?, Held { pod: holder.pod.clone(), fence, held_for: None }))
    });
    Observed { held: held.collect(), waiting: before.waiting, ..Observed::default() }
}

const ACQUIRED: &str = "Acquired";
const RELEASED: &str = "Released";
const EXPIRED: &str = "Expired";

/// The first holders by key, each since it was first seen: the same hold keeps its time.
fn holders(observed: &Observed, before: &LockStatus) -> Vec<HolderStatus> {
    let now = Timestamp::now();
    let first = observed.held.iter().take(NAMED);
    first
        .map(|(key, held)| {
            let (key, fence) = (key.to_string(), held.fence.to_string());
            let known =
                before.holders.iter().find(|known| known.key == key && known.fence == fence);
            let since = known.map_or_else(
                || Time(now - held.held_for.unwrap_or_default()),
                |known| known.since.clone(),
            );
            HolderStatus { key, pod: held.pod.clone(), fence, since }
        })
        .collect()
}

#[derive(Debug, PartialEq)]
struct Told {
    kind: EventType,
    reason: &'static str,
    note: String,
    pod: String,
    key: Key,
    fence: Fence,
}

/// What happened between two statuses, as far as they name holders. Pure.
fn events(before: &LockStatus, after: &LockStatus, observed: &Observed) -> Vec<Told> {
    let is_in = |holder: &HolderStatus, status: &LockStatus| {
        status.holders.iter().any(|h| h.key == holder.key && h.fence == holder.fence)
    };
    let told = |holder: &HolderStatus, kind, reason, what: &str| {
        let key = Key::new(&holder.key).ok()?;
        let fence = holder.fence.parse().ok()?;
        let note = format!("pod \"{}\" {what} key \"{}\"", holder.pod, holder.key);
        Some(Told { kind, reason, note, pod: holder.pod.clone(), key, fence })
    };
    let mut all = Vec::new();
    for gone in before.holders.iter().filter(|holder| !is_in(holder, after)) {
        let still = Key::new(&gone.key).ok().and_then(|key| observed.held.get(&key));
        if still.is_some_and(|held| held.fence.to_string() == gone.fence) {
            // Pushed off the list by others; it goes on.
            continue;
        }
        let ending = Key::new(&gone.key).ok().and_then(|key| observed.endings.get(&key).copied());
        all.extend(match ending {
            Some(Ending::Expired) => told(gone, EventType::Warning, EXPIRED, "let expire"),
            Some(Ending::Released) | None => told(gone, EventType::Normal, RELEASED, "released"),
        });
    }
    for new in after.holders.iter().filter(|holder| !is_in(holder, before)) {
        all.extend(told(new, EventType::Normal, ACQUIRED, "acquired"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_observed(held: &[(&str, &str, u64)]) -> Observed {
        let held = held.iter().map(|(key, pod, fence)| {
            let held = Held { pod: (*pod).into(), fence: Fence::new(*fence), held_for: None };
            (Key::new(key).unwrap(), held)
        });
        Observed { held: held.collect(), ..Observed::default() }
    }

    fn mk_status(observed: &Observed, before: &LockStatus) -> LockStatus {
        LockStatus { holders: holders(observed, before), ..LockStatus::default() }
    }

    #[test]
    fn a_hold_is_told_when_it_begins_and_how_it_ended() {
        let none = LockStatus::default();
        let held = mk_observed(&[("a", "p1", 7)]);
        let first = mk_status(&held, &none);
        let told = events(&none, &first, &held);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].reason, &*told[0].note), (ACQUIRED, "pod \"p1\" acquired key \"a\""));

        let mut next = mk_observed(&[("a", "p2", 9)]);
        next.endings.insert(Key::new("a").unwrap(), Ending::Expired);
        let second = mk_status(&next, &first);
        let reasons: Vec<_> = events(&first, &second, &next).iter().map(|t| t.reason).collect();
        assert_eq!(reasons, [EXPIRED, ACQUIRED]);
    }

    #[test]
    fn the_same_hold_keeps_its_time_and_makes_no_event() {
        let held = mk_observed(&[("a", "p1", 7)]);
        let first = mk_status(&held, &LockStatus::default());
        let second = mk_status(&held, &first);
        assert_eq!(first, second);
        assert_eq!(events(&first, &second, &held), []);
    }

    #[test]
    fn a_status_names_ten_and_a_hold_that_is_pushed_off_is_not_released() {
        let keys: Vec<String> = (0..12).map(|i| format!("k{i:02}")).collect();
        let all: Vec<_> = keys.iter().map(|key| (key.as_str(), "p", 5)).collect();
        let later = mk_observed(&all[1..]);
        let first = mk_status(&later, &LockStatus::default());
        let earlier = mk_observed(&all);
        let second = mk_status(&earlier, &first);
        assert_eq!(second.holders.len(), NAMED);
        let told = events(&first, &second, &earlier);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].reason, told[0].key.as_str()), (ACQUIRED, "k00"));
    }
}
