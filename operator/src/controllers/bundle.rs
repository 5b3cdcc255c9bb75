//! A namespace: its bundle, the Roles of its accounts, and what it has on each Redis. One look at a
//! time per namespace, so that no older bundle ever follows a newer one.
//!
//! Order: first what sidecars need to use a class (Roles, users, markers), then the bundle that
//! tells them of it. Only classes with our finalizer are in it, and none that is being deleted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_api::{
    bundle::{
        BUNDLE_CONFIG_MAP, BUNDLE_KEY, Bundle, BundleBackend, Epoch, EpochRun, LEASE_BACKEND,
        RedisAck, RedisAddress,
    },
    compile::{Class, Environment, compile, floor_key},
    names::{FINALIZER, LABEL_LEASE_WATCH, LABEL_MANAGED, LEASE_WATCH_SHARED},
    v1alpha1::{
        Backend,
        backend::{RedisMode, RunStatus},
    },
};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, runtime::controller::Action};

use super::{access, tenants};
use crate::{
    apply,
    context::{Context, lock},
    error::Error,
    pipeline::RESYNC,
    watch::Caches,
};

/// What fits into a ConfigMap.
const MAX_BYTES: usize = 1 << 20;
/// How often the markers of a namespace on its Redis servers are looked at.
const CHECK_MARKERS: Duration = Duration::from_secs(5);

/// The bundles that are in force, parsed once per version.
#[derive(Default)]
pub struct Published(Mutex<HashMap<String, (String, Arc<Bundle>)>>);

impl Published {
    /// The bundle that a namespace's sidecars read now.
    pub fn get(&self, caches: &Caches, namespace: &str) -> Option<Arc<Bundle>> {
        let map = caches.bundle(namespace)?;
        let version = map.resource_version().unwrap_or_default();
        if let Some((known, bundle)) = lock(&self.0).get(namespace)
            && *known == version
        {
            return Some(bundle.clone());
        }
        let bundle: Bundle = serde_json::from_str(map.data.as_ref()?.get(BUNDLE_KEY)?).ok()?;
        let bundle = Arc::new(bundle);
        lock(&self.0).insert(namespace.to_owned(), (version, bundle.clone()));
        Some(bundle)
    }
}

/// What the classes of a namespace are compiled against: the Backends that admit it, and the fences
/// that deleted classes left on stores that forget.
pub fn environment(ctx: &Context, namespace: &str) -> Environment {
    let labels = ctx.caches.namespace(namespace).map(|namespace| namespace.labels().clone());
    let labels = labels.unwrap_or_default();
    let all = ctx.caches.backends.state();
    let backends: BTreeMap<String, BundleBackend> = all
        .iter()
        .filter(|backend| backend.metadata.deletion_timestamp.is_none() && admits(backend, &labels))
        .map(|backend| (backend.name_any(), describe(backend)))
        .collect();
    let share = labels.get(LABEL_LEASE_WATCH).is_some_and(|value| value == LEASE_WATCH_SHARED);
    let fence_floors = fence_floors(ctx, namespace);
    Environment { backends, all_on: None, fence_floors, share_lease_watch: share }
}

fn fence_floors(ctx: &Context, namespace: &str) -> BTreeMap<String, u64> {
    let mut floors = ctx.floors.of_namespace(namespace);
    if !floors.is_empty() {
        // A floor is a sequence of Redis; a Lease's fences are revisions, which never go back.
        let classes = ctx.caches.classes_in(namespace);
        let on_stores = classes.iter().filter(|class| class.backend() != LEASE_BACKEND);
        let on_stores: BTreeSet<_> =
            on_stores.map(|class| floor_key(class.kind(), &class.name())).collect();
        floors.retain(|key, _| on_stores.contains(key));
    }
    floors
}

/// Whether a namespace with these labels may use a Backend.
fn admits(backend: &Backend, labels: &BTreeMap<String, String>) -> bool {
    let wanted = backend.spec.namespaces.as_ref().map(|selector| &selector.match_labels);
    wanted.is_none_or(|wanted| wanted.iter().all(|(name, value)| labels.get(name) == Some(value)))
}

/// A Backend as sidecars need it.
fn describe(backend: &Backend) -> BundleBackend {
    let redis = &backend.spec.redis;
    let epoch = backend.status.as_ref().and_then(|status| status.epoch.clone());
    BundleBackend {
        substrate: redis.mode.substrate(),
        redis: Some(RedisAddress {
            addresses: redis.addresses.clone(),
            cluster: redis.mode == RedisMode::Cluster,
            master_name: redis.sentinel.as_ref().map(|sentinel| sentinel.master_name.clone()),
            tls: redis.tls.is_some(),
            ca: redis.tls.as_ref().and_then(|tls| tls.ca.clone()),
            database: i64::from(redis.database),
            ack: redis
                .ack
                .map(|ack| RedisAck { replicas: ack.replicas, timeout_ms: ack.timeout_ms }),
        }),
        epoch: epoch.map(|epoch| Epoch {
            number: epoch.number,
            replid: epoch.replid,
            open: epoch.open,
            runs: epoch.runs.into_iter().map(describe_run).collect(),
        }),
        share_watch: false,
    }
}

fn describe_run(run: RunStatus) -> EpochRun {
    EpochRun { server: run.server, replid: run.replid, tags: run.tags, open: run.open }
}

/// Phase 1: all that a namespace's objects depend on.
struct Found {
    namespace: String,
    classes: Vec<Class>,
    environment: Environment,
    /// The Backends that its classes live on.
    backends: BTreeSet<String>,
    published: Option<Arc<Bundle>>,
}

/// Brings a namespace to where its classes want it.
///
/// # Errors
/// Whatever was in the way; trying again goes on from there.
pub async fn reconcile(namespace: Arc<Namespace>, ctx: Arc<Context>) -> Result<Action, Error> {
    // A namespace that goes away takes its objects with it, and takes no new ones.
    if namespace.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let mut found = dereference(&namespace, &ctx);
    let is_used = !found.classes.is_empty()
        || ctx.caches.bundle(&found.namespace).is_some()
        || ctx.injected.contains(&found.namespace);
    if !is_used {
        return Ok(Action::await_change());
    }
    let admitted = found.environment.backends.keys().cloned().collect();
    let tenants = tenants::provision(
        &ctx,
        &found.namespace,
        &found.backends,
        &admitted,
        found.published.as_deref(),
    )
    .await?;
    for (backend, described) in &mut found.environment.backends {
        match &mut described.epoch {
            Some(epoch) if epoch.runs.is_empty() => epoch.open &= tenants.is_open(backend),
            Some(epoch) => {
                for run in &mut epoch.runs {
                    run.open &= tenants.is_open_on(backend, &run.server);
                }
                epoch.open = epoch.runs.iter().any(|run| run.open);
            }
            None => {}
        }
    }
    let mut planned = plan(&found)?;
    // Another operator may have deleted a class meanwhile: its floor is not in our memory yet.
    let is_new = text_of(&ctx, &found.namespace).as_ref() != Some(&planned.text);
    if is_new && !found.backends.is_empty() && ctx.floors.refresh().await? {
        found.environment.fence_floors = fence_floors(&ctx, &found.namespace);
        planned = plan(&found)?;
        for class in &found.classes {
            ctx.triggers.class(class.kind(), &found.namespace, &class.name());
        }
    }
    access::apply(&ctx, &found.namespace, &planned.bundle).await?;
    publish(&ctx, &found.namespace, &planned).await?;
    let again = if found.backends.is_empty() { RESYNC } else { CHECK_MARKERS };
    Ok(Action::requeue(tenants.again.unwrap_or(again)))
}

fn dereference(namespace: &Namespace, ctx: &Context) -> Found {
    let namespace = namespace.name_any();
    let mut classes = ctx.caches.classes_in(&namespace);
    classes.retain(|class| {
        let finalizers = class.meta().finalizers.as_deref().unwrap_or_default();
        class.meta().deletion_timestamp.is_none() && finalizers.iter().any(|f| f == FINALIZER)
    });
    let environment = environment(ctx, &namespace);
    let backends = classes.iter().map(|class| class.backend().to_owned());
    let backends = backends.filter(|backend| environment.backends.contains_key(backend)).collect();
    Found {
        published: ctx.published.get(&ctx.caches, &namespace),
        classes,
        environment,
        backends,
        namespace,
    }
}

/// Phase 3: the bundle, and its text.
struct Planned {
    bundle: Bundle,
    text: String,
}

/// Classes that break a rule are left out; their own reconciliation tells the user.
fn plan(found: &Found) -> Result<Planned, Error> {
    let (bundle, _) = compile(&found.namespace, &found.classes, &found.environment);
    // A bundle has string keys only, so it always has a JSON form.
    let text = serde_json::to_string(&bundle).unwrap_or_default();
    if text.len() > MAX_BYTES {
        return Err(Error::TooLarge(format!(
            "the classes of namespace \"{}\" need {} bytes, and a ConfigMap holds {MAX_BYTES}: \
             spread them over more namespaces",
            found.namespace,
            text.len()
        )));
    }
    Ok(Planned { bundle, text })
}

/// What the bundle says now.
fn text_of(ctx: &Context, namespace: &str) -> Option<String> {
    ctx.caches.bundle(namespace)?.data.as_ref()?.get(BUNDLE_KEY).cloned()
}

/// Phase 4: the ConfigMap, if it says something else.
async fn publish(ctx: &Context, namespace: &str, planned: &Planned) -> Result<(), Error> {
    if text_of(ctx, namespace).as_ref() == Some(&planned.text) {
        return Ok(());
    }
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(BUNDLE_CONFIG_MAP.into()),
            namespace: Some(namespace.to_owned()),
            labels: Some([(LABEL_MANAGED.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([(BUNDLE_KEY.to_owned(), planned.text.clone())].into()),
        ..ConfigMap::default()
    };
    apply::child(ctx, "bundle", &map).await?;
    let classes = planned.bundle.classes.len();
    tracing::info!(namespace, hash = planned.bundle.hash, classes, "published a bundle");
    Ok(())
}
