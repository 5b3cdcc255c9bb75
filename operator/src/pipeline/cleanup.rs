//! The end of a class: nothing is granted any more, what is held runs out, and then all that it had
//! is taken away, its fences' floor noted first. Validates nothing.
//!
//! It never wedges a namespace: a namespace that is going away is let go at once, and a store that
//! does not answer is waited for only so long.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_api::{
    bundle::LEASE_BACKEND,
    compile::floor_key,
    names::{FINALIZER, LABEL_CLASS, LABEL_KIND, LABEL_MANAGED},
    v1alpha1::Backend,
};
use holdfast_backend::lease::names;
use holdfast_core::{BackendError, ClassName, Kind, semaphore::slots::MAX_SLOTS};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, ResourceExt,
    api::ListParams,
    runtime::{controller::Action, events::EventType},
};
use tokio::time::timeout;

use super::Controlled;
use crate::{apply, context::Context, error::Error};

/// Clocks run unlike, and a record counts whole seconds.
const MARGIN: Duration = Duration::from_secs(1);
/// How often to look whether something has ended.
const LOOK: Duration = Duration::from_millis(500);
/// For how long one try at a store may take.
const TRY: Duration = Duration::from_secs(5);
/// After how long to try again at a store that does not answer.
const RETRY: Duration = Duration::from_secs(2);

/// How far the end has come.
enum Progress {
    Done,
    Wait(Duration),
}

/// Goes on with the end of a class.
///
/// # Errors
/// Whatever was in the way; trying again goes on from there.
pub async fn run<K: Controlled>(object: Arc<K>, ctx: &Context) -> Result<Action, Error> {
    let uid = object.uid().unwrap_or_default();
    if !object.finalizers().iter().any(|name| name == FINALIZER) {
        ctx.pace.forget(&uid);
        return Ok(Action::await_change());
    }
    let class = object.class();
    let end = End {
        ctx,
        namespace: object.namespace().unwrap_or_default(),
        name: class.name(),
        waited: ctx.pace.deleting_for(&uid),
        object: &*object,
    };
    let progress = match class.backend() {
        LEASE_BACKEND => end.of_leases().await?,
        backend => end.of_store(backend).await?,
    };
    match progress {
        Progress::Wait(left) => Ok(Action::requeue(left)),
        Progress::Done => {
            apply::remove_finalizer(ctx, &*object).await?;
            ctx.pace.forget(&uid);
            ctx.longest.forget_class(K::KIND, &end.namespace, &end.name);
            Ok(Action::await_change())
        }
    }
}

struct End<'a, K> {
    ctx: &'a Context,
    namespace: String,
    name: String,
    waited: Duration,
    object: &'a K,
}

impl<K: Controlled> End<'_, K> {
    /// Whether the namespace is going away with all that is in it.
    fn is_let_go(&self) -> bool {
        let namespace = self.ctx.caches.namespace(&self.namespace);
        namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some())
    }

    /// Drains the Leases: an unheld one is deleted as it was seen; a held one takes no new holder,
    /// and is freed once its hold has run out.
    async fn of_leases(&self) -> Result<Progress, Error> {
        let ctx = self.ctx;
        let api: Api<Lease> = Api::namespaced(ctx.client.clone(), &self.namespace);
        let labels = BTreeMap::from([
            (LABEL_MANAGED, "true"),
            (LABEL_KIND, K::KIND.singular()),
            (LABEL_CLASS, &self.name),
        ]);
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        // Not from the cache: it may not know yet what was created a moment ago.
        let what = format!("list the Leases of \"{}/{}\"", self.namespace, self.name);
        let params = ListParams::default().labels(&labels.join(","));
        let leases = api.list(&params).await.map_err(Error::api(what))?.items;
        let mut left = Duration::ZERO;
        let mut drained = Vec::new();
        for lease in &leases {
            ctx.sightings.see(lease);
            let look = ctx.sightings.look(&self.namespace, &lease.name_any());
            let held_for = look.map(|look| look.left).unwrap_or_default();
            match (lease.metadata.deletion_timestamp.is_some(), held_for) {
                (_, _) if self.is_let_go() => drained.push(lease),
                (true, Duration::ZERO) => drained.push(lease),
                (false, Duration::ZERO) => apply::delete_exactly(ctx, &api, lease).await?,
                (true, held_for) => left = left.max(held_for),
                (false, held_for) => {
                    apply::drain(ctx, lease).await?;
                    left = left.max(held_for);
                }
            }
        }
        for lease in drained {
            apply::remove_finalizer(ctx, lease).await?;
        }
        // Leases that were deleted under a holder: it may believe in its hold until then.
        let kind = K::KIND;
        if let (Ok(class), false) = (ClassName::new(&self.name), self.is_let_go()) {
            let slots = match kind {
                Kind::Semaphore => MAX_SLOTS,
                Kind::Lock | Kind::LeaderElection | Kind::RateLimit => 1,
            };
            let keys = self.object.keys();
            for (key, number) in keys.iter().flat_map(|key| (0..slots).map(move |n| (key, n))) {
                let name = names::slot_name(kind, &class, key, number);
                left = left.max(ctx.sightings.absent_for(&self.namespace, &name));
            }
        }
        match left {
            Duration::ZERO => Ok(Progress::Done),
            left => Ok(Progress::Wait(left.min(LOOK))),
        }
    }

    /// Takes all that the class has out of a store, once no sidecar knows the class any more and
    /// nobody holds it.
    async fn of_store(&self, backend: &str) -> Result<Progress, Error> {
        let ctx = self.ctx;
        let Some(found) = ctx.caches.backend(backend) else {
            return self.give_up(&format!("there is no Backend \"{backend}\" any more")).await;
        };
        let let_go = self.is_let_go();
        let patience = ctx.args.let_go_after();
        let bundle = ctx.published.get(&ctx.caches, &self.namespace);
        let is_known = bundle.is_some_and(|bundle| bundle.class(K::KIND, &self.name).is_some());
        if is_known && !let_go && self.waited < patience {
            ctx.triggers.namespace(&self.namespace);
            return Ok(Progress::Wait(LOOK));
        }
        match timeout(TRY, self.purge(&found, let_go)).await {
            Ok(Ok(progress)) => Ok(progress),
            Ok(Err(Error::Store { source, .. })) if !let_go && self.waited < patience => {
                tracing::warn!(error = %source, class = self.name, backend,
                    "the store does not answer; the class waits to be deleted");
                Ok(Progress::Wait(RETRY))
            }
            Err(_) if !let_go && self.waited < patience => Ok(Progress::Wait(RETRY)),
            Ok(Err(Error::Store { source, .. })) => {
                self.give_up(&format!("Backend \"{backend}\" does not answer ({source})")).await
            }
            Err(_) => self.give_up(&format!("Backend \"{backend}\" does not answer")).await,
            Ok(Err(error)) => Err(error),
        }
    }

    async fn purge(&self, backend: &Backend, let_go: bool) -> Result<Progress, Error> {
        let ctx = self.ctx;
        let what = format!("clean up after \"{}/{}\"", self.namespace, self.name);
        let failed = |error: BackendError| Error::store(what.clone())(error);
        let Ok(class) = ClassName::new(&self.name) else { return Ok(Progress::Done) };
        let store = ctx.stores.get(backend).map_err(failed)?;
        // Holds of sidecars that have ended run out by themselves; renewals of others end here.
        // Those of before it was changed count by what it said then; where that was before our time, by
        // what any class on the Backend may have said, as far as a deletion waits for anything.
        let has_holds = K::KIND.has_holds();
        let own = self.object.class().ttl();
        let own = ctx.longest.note_class(K::KIND, &self.namespace, &self.name, own);
        let ttl = own.max(ctx.longest.of(&backend.name_any()).min(ctx.args.let_go_after()));
        if has_holds && !let_go && self.waited < ttl + MARGIN {
            let held = store.held(K::KIND, &self.namespace, &class).await.map_err(failed)?;
            if let Some(left) = held {
                let until = (ttl + MARGIN).saturating_sub(self.waited);
                return Ok(Progress::Wait(left.min(until).clamp(LOOK / 10, LOOK)));
            }
        }
        let key = format!("{}.{}", self.namespace, floor_key(K::KIND, &self.name));
        // Before the first key is deleted: a crash in the middle forgets what has been read.
        // Sequences follow the store's clock in milliseconds.
        let now = jiff::Timestamp::now().as_millisecond().max(0) as u64;
        if has_holds {
            ctx.floors.raise(&key, now).await?;
        }
        let top = store.purge_class(&self.namespace, K::KIND, &class).await.map_err(failed)?;
        if top > now {
            ctx.floors.raise(&key, top).await?;
        }
        tracing::info!(class = self.name, namespace = self.namespace, "purged a deleted class");
        Ok(Progress::Done)
    }

    /// Lets go of a class whose store cannot be cleaned. What stays there keeps its fences, so a
    /// class that is created again under the name goes on above them.
    async fn give_up(&self, why: &str) -> Result<Progress, Error> {
        let note = format!("deleted without cleaning up, so its keys stay in the store: {why}");
        tracing::warn!(class = self.name, namespace = self.namespace, why, "let go of a class");
        self.ctx.tell(self.object, EventType::Warning, "BackendLost", note, None).await;
        Ok(Progress::Done)
    }
}
