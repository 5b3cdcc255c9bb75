//! Semaphores: how many permits are out, and who has them, as status.
//!
//! `Ready` says whether the semaphore can be used, never whether permits are left. A holder comes and
//! goes many times a second, so there are no Events about them but that of a forced release.

use std::time::Duration;

use holdfast_api::{
    bundle::LEASE_BACKEND,
    compile::Class,
    conditions::{Verdict, set_conditions},
    v1alpha1::{Semaphore, SemaphoreStatus, semaphore::PermitHolderStatus},
};
use holdfast_core::{
    Fence, Holder, Key, Kind, Substrate,
    lock::{HolderView, LockView},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::ResourceExt;
use tokio::time::{Instant, timeout};

use super::lock::{
    observe::{LEAST, SHARE, WITHIN},
    sightings::Look,
};
use crate::{
    context::Context,
    error::Error,
    pipeline::{Applied, Controlled, Phase, Valid, judge, leases_of},
    status,
};

/// How many holders a status names.
const NAMED: usize = 10;

impl Controlled for Semaphore {
    const KIND: Kind = Kind::Semaphore;

    fn class(&self) -> Class {
        Class::Semaphore(self.clone())
    }

    fn keys(&self) -> Vec<Key> {
        if self.spec.backend != LEASE_BACKEND {
            // None of them has a Lease.
            return Vec::new();
        }
        let keys: Vec<Key> = self.spec.keys.iter().filter_map(|key| Key::new(key).ok()).collect();
        if keys.is_empty() { vec![Key::default_key()] } else { keys }
    }

    async fn report(&self, ctx: &Context, phase: Phase<'_>) -> Result<Option<Duration>, Error> {
        let before = self.status.clone().unwrap_or_default();
        match phase {
            Phase::Refused(verdict) => {
                // What is held stays held; nobody looks at it any more.
                let status = SemaphoreStatus {
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

fn conditions(semaphore: &Semaphore, before: &SemaphoreStatus, verdict: Verdict) -> Vec<Condition> {
    let generation = semaphore.metadata.generation;
    set_conditions(&before.conditions, &[verdict], generation, Timestamp::now())
}

async fn observed(
    semaphore: &Semaphore,
    ctx: &Context,
    valid: &Valid,
    applied: Applied,
    before: SemaphoreStatus,
) -> Result<Option<Duration>, Error> {
    let asked = Instant::now();
    let (found, again) = match valid.substrate {
        Substrate::Redis => {
            let found = timeout(WITHIN, look(ctx, valid)).await.ok().flatten();
            (found, Some(LEAST.max(asked.elapsed() * SHARE)))
        }
        Substrate::Lease => {
            let (found, again) = slots(ctx, valid);
            (Some(found), again)
        }
        // Each pod's own.
        Substrate::Memory => (Some(Vec::new()), None),
    };
    let status = SemaphoreStatus {
        observed_generation: semaphore.metadata.generation,
        conditions: conditions(semaphore, &before, judge::ready(valid, &applied)),
        guarantee: Some(valid.guarantee.to_string()),
        ..match &found {
            Some(found) => counted(found, &before, Timestamp::now()),
            // A store that does not answer leaves things as they were: the Backend's condition tells.
            None => before,
        }
    };
    let wait = status::write(ctx, semaphore, semaphore.status.as_ref(), &status).await?;
    Ok([again, applied.again, wait].into_iter().flatten().min())
}

/// The holders on Leases, as the watch has told, and when the first of them expires. Who waits is known
/// to each sidecar alone.
fn slots(ctx: &Context, valid: &Valid) -> (Vec<(Key, LockView)>, Option<Duration>) {
    let leases = leases_of(ctx, &valid.namespace, Kind::Semaphore, valid.class.name.as_str());
    let mut again: Option<Duration> = None;
    let mut views = Vec::new();
    for key in valid.lease_keys() {
        let mut holders = Vec::new();
        for lease in valid.slots_of(&key, &leases).values() {
            let look = ctx.sightings.look(&valid.namespace, &lease.name_any());
            let Some(look) = look.filter(Look::is_held) else { continue };
            again = Some(again.map_or(look.left, |known| known.min(look.left)));
            holders.extend(Holder::new(&look.holder).ok().map(|holder| HolderView {
                holder,
                fence: look.record.fence.unwrap_or(Fence::new(0)),
                ttl: look.left,
                held_for: Duration::ZERO,
                permits: 1,
            }));
        }
        // A fence is as old as its hold.
        holders.sort_by_key(|holder| holder.fence);
        let held = holders.len() as u32;
        let mut named = holders.into_iter();
        let (holder, others) = (named.next(), named.collect());
        views.push((
            key,
            LockView { holder, others, holds: held, used: held, ..LockView::default() },
        ));
    }
    (views, again)
}

async fn look(ctx: &Context, valid: &Valid) -> Option<Vec<(Key, LockView)>> {
    let store = ctx.stores.get(valid.backend.as_ref()?).ok()?;
    let (namespace, name) = (&valid.namespace, &valid.class.name);
    let looked = store.look(Kind::Semaphore, namespace, name, valid.lock.as_ref()?).await;
    looked.inspect_err(|error| tracing::debug!(%error, "cannot look at a semaphore")).ok()
}

/// What the keys add up to. Pure.
fn counted(found: &[(Key, LockView)], before: &SemaphoreStatus, now: Timestamp) -> SemaphoreStatus {
    let sum = |of: fn(&LockView) -> u32| {
        found.iter().map(|(_, view)| of(view)).fold(0, u32::saturating_add)
    };
    let holders = found.iter().flat_map(|(key, view)| {
        view.holder.iter().chain(&view.others).map(move |holder| (key, holder))
    });
    let named = holders.take(NAMED).map(|(key, holder)| {
        let (key, fence) = (key.to_string(), holder.fence.to_string());
        // The same hold keeps its time.
        let known = before.holders.iter().find(|known| known.key == key && known.fence == fence);
        let since = known.map_or_else(|| Time(now - holder.held_for), |known| known.since.clone());
        let (pod, permits) = (holder.holder.to_string(), holder.permits);
        PermitHolderStatus { key, pod, permits, fence, since }
    });
    SemaphoreStatus {
        holders: named.collect(),
        held: sum(|view| view.holds),
        used: sum(|view| view.used),
        waiting: sum(|view| view.waiters),
        ..SemaphoreStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_view(permits: &[u32]) -> LockView {
        let mut holders = permits.iter().enumerate().map(|(i, permits)| HolderView {
            holder: Holder::new(format!("pod-{i}")).unwrap(),
            fence: Fence::new(i as u64 + 1),
            ttl: Duration::from_secs(1),
            held_for: Duration::from_secs(60),
            permits: *permits,
        });
        LockView {
            holder: holders.next(),
            others: holders.collect(),
            holds: permits.len() as u32,
            used: permits.iter().sum(),
            waiters: 2,
            ..LockView::default()
        }
    }

    #[test]
    fn a_status_adds_up_the_keys_and_the_same_hold_keeps_its_time() {
        let key = |name: &str| Key::new(name).unwrap();
        let found = [(key("a"), mk_view(&[3; 8])), (key("b"), mk_view(&[1, 2, 4]))];
        let first = counted(&found, &SemaphoreStatus::default(), Timestamp::UNIX_EPOCH);
        assert_eq!((first.held, first.used, first.waiting), (11, 31, 4));
        assert_eq!(first.holders.len(), NAMED);
        assert_eq!((first.holders[9].key.as_str(), first.holders[9].permits), ("b", 2));
        let later = Timestamp::UNIX_EPOCH + Duration::from_secs(5);
        assert_eq!(counted(&found, &first, later), first);
    }
}
