//! The controllers, run by whoever leads: one per kind, and the loop around them that starts and
//! ends with a term of leadership.

use std::{
    collections::HashMap,
    fmt::Debug,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, channel::mpsc, future::select_all};
use holdfast_backend::{
    hub::Hub,
    lease::{LeaseClient, LeaseLocks},
};
use holdfast_core::{SystemClock, clock::Backoff};
use kube::{
    Client, Config, Resource,
    runtime::{
        applier,
        controller::{self, Action},
        events::{Recorder, Reporter},
        reflector::{ObjectRef, Store},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    args::ControlArgs,
    context::Context,
    controllers::{
        backend::{Doubts, Longest, Quarantines},
        bundle::Published,
        tenants::Users,
    },
    error::Error,
    floors::Floors,
    gate,
    metrics::Metrics,
    pipeline,
    status::Pace,
    stores::Stores,
    watch::{Queues, Triggers, requests, start},
};

pub mod access;
pub mod backend;
pub mod bundle;
pub mod election;
pub mod lock;
pub mod ratelimit;
pub mod semaphore;
pub mod tenants;

/// How many objects of a kind are seen to at once.
const CONCURRENCY: u16 = 16;
/// After how long to try again at what was in the way, the first time and at the most.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(15);
/// After how long to start a term anew.
const START_OVER: Duration = Duration::from_secs(2);

/// What the controllers are given.
#[derive(Clone)]
pub struct Work {
    /// The API server.
    pub client: Client,
    /// How it is reached.
    pub config: Config,
    /// The operator's own namespace.
    pub namespace: String,
    /// This replica's name.
    pub instance: String,
    /// The flags.
    pub args: ControlArgs,
    /// The metrics.
    pub metrics: Metrics,
}

/// Runs the controllers whenever this replica leads, until `stop`.
///
/// # Errors
/// When a client cannot be built at all.
pub async fn run(
    work: Work,
    mut leads: watch::Receiver<bool>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let led = tokio::select! {
            led = leads.wait_for(|leads| *leads) => led.is_ok(),
            () = stop.cancelled() => false,
        };
        if !led {
            return Ok(());
        }
        work.metrics.leads.set(1);
        let broken = tokio::select! {
            ended = lead(&work) => ended.err(),
            _ = leads.wait_for(|leads| !*leads) => None,
            () = stop.cancelled() => None,
        };
        work.metrics.leads.set(0);
        if let Some(error) = broken {
            // Starting over is all that can be done, and is always right.
            tracing::warn!(error = format!("{error:#}"), "a term of work broke; starting over");
            tokio::select! {
                () = tokio::time::sleep(START_OVER) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// One term: watches, caches, and the controllers on them. Ends only when something is broken.
async fn lead(work: &Work) -> anyhow::Result<()> {
    // Watches must not end for want of news; calls must end.
    let mut config = work.config.clone();
    config.default_retry = false;
    let watches = Client::try_from(config)?;
    let held = watches.clone();
    let (triggers, queues) = Triggers::new();
    let (sightings, injected) = (Arc::default(), Arc::default());
    let (caches, watches) = start(&watches, &triggers, &sightings, &injected);
    let watching = select_all(watches);
    let clock = Arc::new(SystemClock);
    let leases = LeaseLocks::new(LeaseClient::new(&work.config)?, Hub::new(), clock);
    let reporter = Reporter {
        controller: "holdfast.dev/operator".into(),
        instance: Some(work.instance.clone()),
    };
    let working = async {
        let floors = Floors::load(work.client.clone(), &work.namespace).await?;
        caches.complete().await?;
        tracing::info!(locks = caches.locks.len(), "the caches are complete");
        let ctx = Arc::new(Context {
            client: work.client.clone(),
            namespace: work.namespace.clone(),
            args: work.args.clone(),
            caches: caches.clone(),
            triggers: triggers.clone(),
            injected,
            sightings,
            published: Published::default(),
            leases,
            stores: Stores::default(),
            users: Users::default(),
            doubts: Doubts::default(),
            quarantines: Quarantines::default(),
            longest: Longest::default(),
            floors,
            routes: election::routing::Routes::default(),
            transfers: election::transfer::Transfers::default(),
            lines: gate::lines::Lines::default(),
            forced: crate::context::Forced::default(),
            pace: Pace::default(),
            recorder: Recorder::new(work.client.clone(), reporter),
            metrics: work.metrics.clone(),
        });
        caches.trigger_all(&triggers);
        tokio::select! {
            () = control(ctx.clone(), queues) => Ok(()),
            ended = gate::run(ctx, held) => ended,
        }
    };
    tokio::select! {
        _ = watching => anyhow::bail!("a watch ended"),
        ended = working => ended,
    }
}

/// Every controller at once. They end when their queues do: never, in a term.
async fn control(ctx: Arc<Context>, queues: Queues) {
    let Queues { locks, elections, semaphores, rate_limits, backends, namespaces } = queues;
    let caches = ctx.caches.clone();
    tokio::join!(
        drive("Lock", &ctx, caches.locks, locks, pipeline::reconcile),
        drive("LeaderElection", &ctx, caches.elections, elections, pipeline::reconcile),
        drive("RateLimit", &ctx, caches.rate_limits, rate_limits, pipeline::reconcile),
        drive("Semaphore", &ctx, caches.semaphores, semaphores, pipeline::reconcile),
        drive("Backend", &ctx, caches.backends, backends, backend::reconcile),
        drive("Namespace", &ctx, caches.namespaces, namespaces, bundle::reconcile),
    );
}

/// Objects that failed last time, and when each is tried again: sooner after the first failure than
/// after the tenth, and not all at the same moment.
struct Failures<K: Resource>(Mutex<HashMap<ObjectRef<K>, Backoff>>)
where
    K::DynamicType: Eq + Hash;

impl<K: Resource<DynamicType = ()>> Default for Failures<K> {
    fn default() -> Self {
        Failures(Mutex::default())
    }
}

impl<K: Resource<DynamicType = ()>> Failures<K> {
    fn next_delay(&self, object: &ObjectRef<K>) -> Duration {
        let mut all = crate::context::lock(&self.0);
        let backoff = all.entry(object.clone()).or_insert_with(|| Backoff::new(RETRY, RETRY_CAP));
        backoff.next_delay()
    }

    fn forget(&self, object: &ObjectRef<K>) {
        crate::context::lock(&self.0).remove(object);
    }
}

/// Runs one controller: takes from its queue, measures, and tries again what failed.
async fn drive<K, F>(
    kind: &'static str,
    ctx: &Arc<Context>,
    store: Store<K>,
    queue: mpsc::UnboundedReceiver<ObjectRef<K>>,
    reconcile: fn(Arc<K>, Arc<Context>) -> F,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone,
    F: Future<Output = Result<Action, Error>> + Send,
{
    let failures: Arc<Failures<K>> = Arc::default();
    let known = failures.clone();
    let measured = move |object: Arc<K>, ctx: Arc<Context>| {
        let failures = known.clone();
        Box::pin(async move {
            let name = ObjectRef::from_obj(&*object);
            let metrics = ctx.metrics.clone();
            let timer = metrics.reconcile_seconds.with_label_values(&[kind]).start_timer();
            let ended = reconcile(object, ctx).await;
            timer.observe_duration();
            let outcome = ended.as_ref().map_or_else(Error::label, |_| "done");
            metrics.reconciles.with_label_values(&[kind, outcome]).inc();
            if ended.is_ok() {
                failures.forget(&name);
            }
            ended
        })
    };
    let again = move |object: Arc<K>, error: &Error, _: Arc<Context>| {
        let name = ObjectRef::from_obj(&*object);
        let delay = failures.next_delay(&name);
        match error {
            // Decided on a cache that was behind: it catches up.
            Error::Conflict(_) => tracing::debug!(%error, object = %name, "changed meanwhile"),
            error => {
                tracing::warn!(error = error.chain(), object = %name, "not done; trying again");
            }
        }
        Action::requeue(delay)
    };
    let config = controller::Config::default().concurrency(CONCURRENCY);
    applier(measured, again, ctx.clone(), store, requests(queue), config)
        .for_each(|ended| {
            // What failed has been logged, and what is gone needs nothing.
            if let Err(error) = ended {
                tracing::trace!(%error, kind);
            }
            std::future::ready(())
        })
        .await;
}
