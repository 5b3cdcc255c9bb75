//! Backends: what a Redis is, as conditions, and the epoch of its data.
//!
//! The status is written as the version that was read: of two operators only one raises an epoch.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_api::{
    compile::Class,
    conditions::{
        EVICTION_SAFE, PERSISTENT, READY, REASON_BACKEND_UNAVAILABLE, REASON_PROBED, REPLICATED,
        Verdict, set_conditions,
    },
    names::FINALIZER,
    v1alpha1::{
        Backend, BackendStatus,
        backend::{EpochStatus, RedisMode},
    },
};
use holdfast_core::Kind;
use k8s_openapi::jiff::Timestamp;
use kube::{
    ResourceExt,
    runtime::{controller::Action, events::EventType},
};
use tokio::time::{Instant, timeout};

use crate::{
    apply,
    context::{Context, lock},
    controllers::tenants,
    error::Error,
    floors::epoch_key,
    status,
};

pub mod doubts;
pub mod epoch;
mod majority;
mod one;
pub mod quarantines;
mod several;
mod verdicts;

pub use self::{
    doubts::Doubts,
    quarantines::{Moment, Quarantines},
};

/// A store that does not answer by then is away.
const WITHIN: Duration = Duration::from_secs(4);
/// The Event about a server that is away.
const BACKEND_LOST: &str = "BackendLost";
/// The operator's own marker in every store: what was lost with it may be more. The name is none
/// that a namespace can have.
pub const CANARY: &str = "_operator";

/// How much longer than its time to live a hold of before a change may last: who has waited since then is
/// granted what the class said when the wait began (a minute at most), and sidecars hear of the change a
/// little after us.
const AFTER_A_CHANGE: Duration = Duration::from_secs(70);

/// The longest time to live of each Backend's classes, and of each class, now or lately: a hold that was
/// granted before a class was changed or deleted still counts by what the class said then. That of a
/// Backend is in its status, too, for an operator that takes over.
#[derive(Default)]
pub struct Longest(Mutex<HashMap<String, Known>>);

struct Known {
    longest: Duration,
    /// When it was seen last.
    since: Instant,
    /// The longest that was seen after that.
    next: Duration,
}

impl Known {
    fn now(longest: Duration) -> Self {
        Known { longest, since: Instant::now(), next: Duration::ZERO }
    }
}

impl Longest {
    /// Notes what is the longest now, and returns what must be waited for. `before` is what an earlier
    /// operator wrote: for how long it has been over nobody knows.
    pub fn note(&self, of: &str, now_longest: Duration, before: Duration) -> Duration {
        let mut all = lock(&self.0);
        let known = all.entry(of.to_owned()).or_insert_with(|| Known::now(now_longest.max(before)));
        known.next = known.next.max(now_longest);
        if now_longest >= known.longest || known.since.elapsed() > known.longest + AFTER_A_CHANGE {
            *known = Known::now(known.next);
        }
        known.longest
    }

    /// As [`Longest::note`], of one class.
    pub fn note_class(&self, kind: Kind, namespace: &str, name: &str, ttl: Duration) -> Duration {
        self.note(&class_key(kind, namespace, name), ttl, Duration::ZERO)
    }

    /// Forgets a class that is gone.
    pub fn forget_class(&self, kind: Kind, namespace: &str, name: &str) {
        lock(&self.0).remove(&class_key(kind, namespace, name));
    }

    /// What must be waited for on a Backend, as far as is known.
    pub fn of(&self, backend: &str) -> Duration {
        lock(&self.0).get(backend).map_or(Duration::ZERO, |known| known.longest)
    }
}

/// No Backend has such a name.
fn class_key(kind: Kind, namespace: &str, name: &str) -> String {
    format!("{}/{namespace}/{name}", kind.singular())
}

/// Looks at a Backend.
///
/// # Errors
/// Whatever the API server says. A store that is away is a condition, not an error.
pub async fn reconcile(backend: Arc<Backend>, ctx: Arc<Context>) -> Result<Action, Error> {
    let name = backend.name_any();
    if backend.metadata.deletion_timestamp.is_some() {
        return end(&backend, &ctx).await;
    }
    if !backend.finalizers().iter().any(|known| known == FINALIZER) {
        apply::add_finalizer(&ctx, &*backend).await?;
        return Ok(Action::await_change());
    }
    let mut status = backend.status.clone().unwrap_or_default();
    let before = Duration::from_secs(status.longest_ttl_seconds.unwrap_or_default());
    let longest = ctx.longest.note(&name, longest_ttl(&ctx, &name), before);
    status.longest_ttl_seconds = Some(longest.as_millis().div_ceil(1_000) as u64);
    if let Some(epoch) = &status.epoch {
        ctx.quarantines.see(&name, epoch, Moment::now());
    }
    let looked = match backend.spec.redis.mode {
        RedisMode::Standalone | RedisMode::Sentinel => one::look(&ctx, &backend, longest).await,
        RedisMode::Cluster | RedisMode::Redlock => several::look(&ctx, &backend, longest).await,
    };
    let looked = match looked {
        Ok(looked) => looked,
        Err(why) => {
            let message = format!("cannot reach the server: {why}");
            if status.conditions.iter().any(|c| c.type_ == READY && c.status == "True") {
                ctx.tell(&*backend, EventType::Warning, BACKEND_LOST, message.clone(), None).await;
            }
            let verdict = Verdict::new(READY, false, REASON_BACKEND_UNAVAILABLE, message);
            // What was known of it may still be so.
            let rest = known_verdicts(&status);
            write(&ctx, &backend, &mut status, [vec![verdict], rest].concat()).await?;
            return Ok(Action::requeue(ctx.args.probe_every()));
        }
    };
    status.version = Some(looked.version);
    status.role = Some(looked.role);
    status.epoch = looked.epoch;
    write(&ctx, &backend, &mut status, looked.verdicts).await?;
    if let Some(epoch) = &status.epoch {
        ctx.doubts.settled(&name, epoch.number);
    }
    let opens_in = status.epoch.as_ref().and_then(|epoch| ctx.quarantines.next(&name, epoch));
    let opens_in = opens_in.map(|left| left.max(Duration::from_millis(10)));
    let every = ctx.args.probe_every();
    Ok(Action::requeue(opens_in.map_or(every, |opens_in| every.min(opens_in))))
}

/// What was found out, and done.
struct Looked {
    version: String,
    role: String,
    epoch: Option<EpochStatus>,
    verdicts: Vec<Verdict>,
}

/// Tells people of a new epoch, unless it is the first.
async fn tell_raised(ctx: &Context, backend: &Backend, number: u64, what: &str, opens: Timestamp) {
    tracing::warn!(backend = backend.name_any(), epoch = number, "a new epoch");
    if backend.status.as_ref().is_some_and(|status| status.epoch.is_some()) {
        let note = format!(
            "{what} was restarted, failed over or lost data: epoch {number} opens at {opens}"
        );
        ctx.tell(backend, EventType::Warning, "EpochRaised", note, None).await;
    }
}

/// For how long a hold of before may still be believed in.
fn longest_ttl(ctx: &Context, backend: &str) -> Duration {
    let users = ctx.caches.classes_on(backend);
    users.iter().map(Class::ttl).max().unwrap_or_default()
}

/// The verdicts but `Ready`, as they were.
fn known_verdicts(status: &BackendStatus) -> Vec<Verdict> {
    let known = |type_: &'static str| {
        let there = status.conditions.iter().find(|condition| condition.type_ == type_)?;
        let ok = there.status == "True";
        Some(Verdict::new(type_, ok, REASON_PROBED, there.message.clone()))
    };
    [EVICTION_SAFE, PERSISTENT, REPLICATED].into_iter().filter_map(known).collect()
}

/// Writes the status if it differs. The epoch is in it: only as the version that was read.
async fn write(
    ctx: &Context,
    backend: &Backend,
    status: &mut BackendStatus,
    verdicts: Vec<Verdict>,
) -> Result<(), Error> {
    let generation = backend.metadata.generation;
    status.observed_generation = generation;
    status.conditions = set_conditions(&status.conditions, &verdicts, generation, Timestamp::now());
    if backend.status.as_ref() == Some(status) {
        return Ok(());
    }
    status::write_exactly(ctx, backend, status).await
}

/// The end of a Backend: its epoch is noted, so that one created again under its name starts above
/// it. Its users are deleted if the server lets us; it is not waited for.
async fn end(backend: &Backend, ctx: &Context) -> Result<Action, Error> {
    let name = backend.name_any();
    if !backend.finalizers().iter().any(|known| known == FINALIZER) {
        return Ok(Action::await_change());
    }
    if let Some(epoch) = backend.status.as_ref().and_then(|status| status.epoch.as_ref()) {
        ctx.floors.raise(&epoch_key(&name), epoch.number).await?;
    }
    let dropped = async {
        for namespace in ctx.caches.namespaces_on(&name) {
            tenants::drop_user(ctx, &namespace, backend).await;
        }
    };
    if timeout(WITHIN, dropped).await.is_err() {
        tracing::info!(backend = name, "users stay in the store: it does not answer");
    }
    ctx.stores.forget(&name);
    ctx.quarantines.forget(&name);
    apply::remove_finalizer(ctx, backend).await?;
    Ok(Action::await_change())
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_time_to_live_counts_until_all_that_was_granted_for_it_is_over() {
        let (long, short) = (Duration::from_secs(300), Duration::from_secs(15));
        let longest = Longest::default();
        assert_eq!(longest.note("main", long, Duration::ZERO), long);
        advance(long + Duration::from_secs(69)).await;
        assert_eq!(longest.note("main", short, Duration::ZERO), long);
        advance(Duration::from_secs(2)).await;
        assert_eq!(longest.note("main", short, Duration::ZERO), short);
        // Nor is a shorter one forgotten that was there in between.
        assert_eq!(longest.note("main", long, Duration::ZERO), long);
        longest.note("main", long / 2, Duration::ZERO);
        advance(long + Duration::from_secs(71)).await;
        assert_eq!(longest.note("main", short, Duration::ZERO), long / 2);
        // Who takes over does not know since when it counts.
        let next = Longest::default();
        assert_eq!(next.note("main", short, long), long);
        advance(long + Duration::from_secs(69)).await;
        assert_eq!((next.note("main", short, short), next.of("main")), (long, long));
    }
}
