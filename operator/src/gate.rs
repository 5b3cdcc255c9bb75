//! Pods that hold a lock or permits, with no code of their own: kept at a scheduling gate until the
//! leader has acquired on their behalf, renewed while they may run, released when they have ended.
//!
//! - All state is in the pod (gate, annotations) and in the store. A hold's id follows from the pod's
//!   UID, so whoever leads next goes on with the same hold from any point: nothing is granted twice.
//! - A request is withdrawn only for a pod that will not run, never because this replica stops.
//! - Running pods are seen to before gated ones of the same class: what they hold is theirs first.
//! - Absence of a pod releases nothing ([`seen::Stage`]); a running pod is never ended.
//!
//! [`seen`] says what is to be done about a pod, [`life`] does it (`wait` before it runs, `keep`
//! then), [`class`] finds what to ask, [`lines`] in which order, [`tell`] says how it stands. The
//! webhook that puts the gate there is
//! [`crate::admission::hold`].

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use holdfast_api::names::LABEL_HOLD;
use holdfast_backend::hub::Hub;
use holdfast_core::{Clock, SessionId, SystemClock};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use self::{
    life::Life,
    lines::Lines,
    seen::{Presence, Seen, Stage},
    stores::Stores,
};
use crate::context::Context;

pub mod class;
mod keep;
pub mod life;
pub mod lines;
pub mod metrics;
pub mod seen;
pub mod stores;
pub mod tell;
mod wait;

/// How many pods a list asks for at once.
const PAGE: u32 = 500;
/// Pods that are written at the same time.
const WRITES: usize = 16;
/// The session of all gated pods, the same whoever leads: their tickets outlive a change of leader.
const SESSION: &str = "holdfast-gates";
/// The session of running pods whose holds are looked for again. Not that of the gated ones: asking
/// would bring the tickets of those to life, and they would be served first.
const SESSION_OF_RUNNING: &str = "holdfast-gates-running";

/// What the lives of pods share, during one term of leadership.
pub struct Gates {
    ctx: Arc<Context>,
    stores: Stores,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    session: SessionId,
    running: SessionId,
    least_ttl: Duration,
    writes: Semaphore,
}

/// Sees to the holds of all pods. Ends only when something is broken.
///
/// # Errors
/// When a task has panicked: the term is started anew.
pub async fn run(ctx: Arc<Context>, watches: Client) -> anyhow::Result<()> {
    let gates = Arc::new(Gates {
        stores: Stores::default(),
        hub: Hub::new(),
        clock: Arc::new(SystemClock),
        session: SessionId::new(SESSION)?,
        running: SessionId::new(SESSION_OF_RUNNING)?,
        least_ttl: Duration::from_secs(ctx.args.pod_hold_seconds),
        writes: Semaphore::new(WRITES),
        ctx,
    });
    gates.ctx.metrics.gates.pods.reset();
    let config = watcher::Config::default().labels(LABEL_HOLD).page_size(PAGE);
    let pods = Api::<Pod>::all(watches);
    let mut events = Box::pin(watcher(pods, config).default_backoff());
    let mut pods = Pods { gates, known: HashMap::new(), lives: JoinSet::new() };
    let mut listed = Vec::new();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(pod))) => listed.push(Seen::of(&pod)),
                Some(Ok(watcher::Event::InitDone)) => pods.all(std::mem::take(&mut listed)),
                Some(Ok(watcher::Event::Apply(pod))) => pods.see(Seen::of(&pod)),
                Some(Ok(watcher::Event::Delete(pod))) => {
                    pods.see(Seen { presence: Presence::Deleted, ..Seen::of(&pod) });
                    pods.known.remove(&pod.uid().unwrap_or_default());
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "the watch of held pods was interrupted; it goes on");
                }
                None => anyhow::bail!("the watch of held pods ended"),
            },
            Some(ended) = pods.lives.join_next() => ended?,
        }
    }
}

/// The pods that something is to be done about.
struct Pods {
    gates: Arc<Gates>,
    known: HashMap<String, watch::Sender<Arc<Seen>>>,
    lives: JoinSet<()>,
}

impl Pods {
    /// All pods, as they were listed.
    fn all(&mut self, mut listed: Vec<Seen>) {
        let there: HashSet<String> = listed.iter().map(|seen| seen.uid.clone()).collect();
        self.known.retain(|uid, pod| {
            let is_there = there.contains(uid);
            if !is_there {
                pod.send_modify(|seen| {
                    *seen = Arc::new(Seen { presence: Presence::Vanished, ..(**seen).clone() });
                });
            }
            is_there
        });
        // Versions of one resource are in the order of its writes: the gated ones in that of their
        // creation, unless somebody wrote them since. Then by the time of their creation.
        listed.sort_by_key(|seen| (seen.stage() == Stage::Gated, seen.created.clone()));
        listed.into_iter().for_each(|seen| self.see(seen));
    }

    fn see(&mut self, seen: Seen) {
        if let Some(known) = self.known.get(&seen.uid) {
            known.send_if_modified(|before| {
                let changed = **before != seen;
                *before = Arc::new(seen);
                changed
            });
            return;
        }
        if seen.stage() != Stage::Done {
            let (uid, (sender, receiver)) = (seen.uid.clone(), watch::channel(Arc::new(seen)));
            self.lives.spawn(Life::new(self.gates.clone(), receiver).live());
            self.known.insert(uid, sender);
        }
    }
}

impl Gates {
    fn lines(&self) -> &Lines {
        &self.ctx.lines
    }
}
