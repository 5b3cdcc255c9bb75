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
        EVICTION_SAFE, PERSISTENT, READY, REASON_BACKEND_UNAVAILABLE, REASON_PROBED,
        REASON_QUARANTINE, REASON_RECONCILED, REASON_UNSAFE, REPLICATED, Verdict, set_conditions,
    },
    names::FINALIZER,
    v1alpha1::{Backend, BackendStatus, backend::EpochStatus},
};
use holdfast_backend::redis::Probe;
use holdfast_core::BackendError;
use k8s_openapi::jiff::Timestamp;
use kube::{
    ResourceExt,
    runtime::{controller::Action, events::EventType},
};
use tokio::time::{Instant, timeout};

use self::epoch::{Change, Facts};
use crate::{
    apply,
    context::{Context, lock},
    controllers::tenants,
    error::Error,
    floors::epoch_key,
    status,
    stores::Store,
};

pub mod epoch;

/// A store that does not answer by then is away.
const WITHIN: Duration = Duration::from_secs(4);
/// The Event about a server that is away.
const BACKEND_LOST: &str = "BackendLost";
/// The operator's own marker in every store: what was lost with it may be more. The name is none
/// that a namespace can have.
const CANARY: &str = "_operator";

/// Numbers that an epoch must be raised above: somebody has found out that data was lost.
#[derive(Default)]
pub struct Doubts(Mutex<HashMap<String, u64>>);

impl Doubts {
    /// The epoch of a Backend must be higher than this.
    pub fn raise_above(&self, backend: &str, number: u64) {
        let mut all = lock(&self.0);
        let above = all.entry(backend.to_owned()).or_insert(number);
        *above = number.max(*above);
    }

    fn above(&self, backend: &str) -> Option<u64> {
        lock(&self.0).get(backend).copied()
    }

    fn settled(&self, backend: &str, number: u64) {
        let mut all = lock(&self.0);
        if all.get(backend).is_some_and(|above| *above < number) {
            all.remove(backend);
        }
    }
}

/// The longest time to live of each Backend's classes, now or lately: a hold that was granted before
/// a class was changed or deleted still counts by what the class said then.
#[derive(Default)]
pub struct Longest(Mutex<HashMap<String, (Duration, Instant)>>);

impl Longest {
    /// Notes what is the longest now, and returns what must be waited for.
    fn note(&self, backend: &str, now_longest: Duration) -> Duration {
        let mut all = lock(&self.0);
        let known = all.entry(backend.to_owned()).or_insert((now_longest, Instant::now()));
        if now_longest >= known.0 || known.1.elapsed() > known.0 {
            *known = (now_longest, Instant::now());
        }
        known.0
    }
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
    let longest = ctx.longest.note(&name, longest_ttl(&ctx, &name));
    let mut status = backend.status.clone().unwrap_or_default();
    let looked = match look(&ctx, &backend).await {
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
    status.version = Some(match looked.probe.valkey {
        true => format!("valkey {}", looked.probe.version),
        false => looked.probe.version.clone(),
    });
    status.role = Some(looked.probe.role.clone());
    let unfit = unfit(&looked.probe);
    if unfit.is_none() {
        let facts = Facts {
            replid: &looked.probe.replid,
            marker: looked.marker,
            above: ctx.doubts.above(&name),
            floor: ctx.floors.get(&epoch_key(&name)),
            longest_ttl: longest,
            now: Timestamp::now(),
        };
        match epoch::next(status.epoch.as_ref(), &facts) {
            Change::None => {}
            Change::Raise(raised) => {
                tracing::warn!(backend = name, epoch = raised.number, "a new epoch");
                if backend.status.as_ref().is_some_and(|status| status.epoch.is_some()) {
                    let note = format!(
                        "the server was restarted, failed over or lost data: epoch {} opens at {}",
                        raised.number, raised.not_before.0
                    );
                    ctx.tell(&*backend, EventType::Warning, "EpochRaised", note, None).await;
                }
                status.epoch = Some(raised);
            }
            Change::Open(opened) => {
                // The marker first: what is said to be open must be open.
                if let Err(error) = open(&looked.store, opened.number).await {
                    tracing::warn!(%error, backend = name, "cannot open an epoch");
                } else {
                    tracing::info!(backend = name, epoch = opened.number, "opened an epoch");
                    status.epoch = Some(opened);
                }
            }
        }
    }
    let ack = backend.spec.redis.ack.map_or(0, |ack| u32::from(ack.replicas));
    let verdicts = verdicts(&looked.probe, unfit, status.epoch.as_ref(), ack);
    write(&ctx, &backend, &mut status, verdicts).await?;
    if let Some(epoch) = &status.epoch {
        ctx.doubts.settled(&name, epoch.number);
    }
    let opens_in = status.epoch.as_ref().filter(|epoch| !epoch.open).map(|epoch| {
        let left = epoch.not_before.0.as_millisecond() - Timestamp::now().as_millisecond();
        Duration::from_millis(left.max(10) as u64)
    });
    let every = ctx.args.probe_every();
    Ok(Action::requeue(opens_in.map_or(every, |opens_in| every.min(opens_in))))
}

struct Looked {
    store: Arc<Store>,
    probe: Probe,
    marker: Option<u64>,
}

/// Asks the store what it is, and sees to the library. The error is a sentence.
async fn look(ctx: &Context, backend: &Backend) -> Result<Looked, String> {
    let store = ctx.stores.get(backend).map_err(|error| error.to_string())?;
    let credentials =
        tenants::own_credentials(ctx, backend).await.map_err(|error| error.chain())?;
    store.set_credentials(credentials);
    let ask = async {
        let probe = store.admin.probe().await?;
        if probe.role == "master" && !probe.cluster_enabled {
            store.ensure_library(&probe.replid).await?;
        }
        let marker = store.admin.marker(CANARY).await?;
        Ok::<_, BackendError>((probe, marker))
    };
    match timeout(WITHIN, ask).await {
        Ok(Ok((probe, marker))) => Ok(Looked { store: store.clone(), probe, marker }),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {WITHIN:?}")),
    }
}

async fn open(store: &Store, number: u64) -> Result<(), BackendError> {
    let opened = timeout(WITHIN, store.admin.open_epoch(CANARY, number)).await;
    opened.unwrap_or_else(|_| Err(BackendError::Unknown(format!("no answer within {WITHIN:?}"))))
}

/// For how long a hold of before may still be believed in.
fn longest_ttl(ctx: &Context, backend: &str) -> Duration {
    let users = ctx.caches.classes_on(backend);
    users.iter().map(Class::ttl).max().unwrap_or_default()
}

/// Why a server cannot be used at all, in a sentence.
fn unfit(probe: &Probe) -> Option<String> {
    if probe.cluster_enabled {
        return Some("the server is part of a cluster, which is not supported yet".into());
    }
    (probe.role != "master").then(|| {
        format!("the server is a {}: put the primary's address into spec.redis", probe.role)
    })
}

/// `ack` is how many replicas grants wait for.
fn verdicts(
    probe: &Probe,
    unfit: Option<String>,
    epoch: Option<&EpochStatus>,
    ack: u32,
) -> Vec<Verdict> {
    let is_safe = probe.maxmemory_policy == "noeviction";
    let ready = match (unfit, epoch) {
        (Some(why), _) => Verdict::new(READY, false, REASON_UNSAFE, why),
        (None, _) if !is_safe => Verdict::new(
            READY,
            false,
            REASON_UNSAFE,
            "the server may drop locks and fences when its memory is full; set maxmemory-policy \
             to noeviction",
        ),
        (None, Some(epoch)) if !epoch.open => Verdict::new(
            READY,
            false,
            REASON_QUARANTINE,
            format!(
                "epoch {} opens at {}, when every hold of the epoch before has run out",
                epoch.number, epoch.not_before.0
            ),
        ),
        (None, Some(epoch)) => {
            Verdict::new(READY, true, REASON_RECONCILED, format!("epoch {} is open", epoch.number))
        }
        (None, None) => Verdict::new(READY, false, REASON_QUARANTINE, "no epoch is open yet"),
    };
    let probed = |type_, ok, message: String| Verdict::new(type_, ok, REASON_PROBED, message);
    let policy = &probe.maxmemory_policy;
    vec![
        ready,
        probed(
            EVICTION_SAFE,
            is_safe,
            match is_safe {
                true => "maxmemory-policy is noeviction: a full server refuses writes".into(),
                false => format!(
                    "maxmemory-policy is {policy}: a full server drops locks and fences; set it \
                     to noeviction"
                ),
            },
        ),
        probed(
            PERSISTENT,
            probe.aof_enabled,
            match probe.aof_enabled {
                true => "the append-only file is on: a restart keeps what was written".into(),
                false => "the append-only file is off: a restart loses every hold, and a new \
                          epoch keeps locks closed for a while; set appendonly to yes"
                    .into(),
            },
        ),
        probed(
            REPLICATED,
            probe.connected_replicas >= ack.max(1),
            match probe.connected_replicas {
                n if n < ack => format!(
                    "{n} replicas follow, and grants wait for {ack}: none is made until more \
                     replicas follow or spec.redis.ack asks for fewer"
                ),
                0 => "the server has no replica: locks wait for as long as it is down".into(),
                n => format!("{n} replicas follow; a failover opens a new epoch"),
            },
        ),
    ]
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
    apply::remove_finalizer(ctx, backend).await?;
    Ok(Action::await_change())
}
