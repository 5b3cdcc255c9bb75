//! The way of every class, each step with a type that shows the phase:
//! [`dereference`] (caches) → [`Found::check`] (pure) → [`Valid::plan`] (pure) → apply (the API
//! server) → observe → judge (pure) → update the status.
//!
//! - The finalizer is there before anything else is. A class in the bundle has it.
//! - Deletion ([`cleanup`]) validates nothing: a broken class can be deleted.
//! - A class that is wrong gets `Ready=False` and a sentence; the others are not affected.

use std::{fmt::Debug, future::Future, sync::Arc, time::Duration};

use holdfast_api::{
    bundle::{Bundle, BundleClass, ClassConfig},
    compile::{Class, Environment, compile},
    conditions::{READY, REASON_BACKEND_MISSING, REASON_INVALID, Verdict},
    names::{FINALIZER, LABEL_CLASS, LABEL_KIND},
    v1alpha1::Backend,
};
use holdfast_backend::lease::names;
use holdfast_core::{
    Guarantee, Key, Kind, Substrate,
    election::Interop,
    lock::{Keys, LockConfig},
    supports,
};
use k8s_openapi::{
    NamespaceResourceScope, api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource, ResourceExt, runtime::controller::Action};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    apply,
    context::Context,
    controllers::{bundle, lock::sightings::Sightings},
    error::Error,
};

pub mod cleanup;
pub mod force;
pub mod judge;
mod slots;

/// Nothing is missed by never looking again, but a look now and then costs nothing.
pub const RESYNC: Duration = Duration::from_secs(600);

/// After how long to look at something that is about to change.
const SOON: Duration = Duration::from_millis(500);

/// A kind of class, for the driver.
pub trait Controlled:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Its kind.
    const KIND: Kind;

    /// Its keys that have Leases, as far as the spec says.
    fn keys(&self) -> Vec<Key>;

    /// The class for the compiler.
    fn class(&self) -> Class;

    /// Looks at the store, judges, and writes the status. Returns when to look again.
    fn report(
        &self,
        ctx: &Context,
        phase: Phase<'_>,
    ) -> impl Future<Output = Result<Option<Duration>, Error>> + Send;
}

/// How far a class has come.
pub enum Phase<'a> {
    /// It breaks a rule.
    Refused(Verdict),
    /// It is valid, and its children have been applied.
    Applied(&'a Valid, Applied),
}

/// Phase 1: all that the decisions depend on, from the caches.
pub struct Found<K> {
    object: Arc<K>,
    class: Class,
    environment: Environment,
    /// The Backend that it names, whether its namespace may use it or not.
    backend: Option<Arc<Backend>>,
    leases: Vec<Arc<Lease>>,
    published: Option<Arc<Bundle>>,
    /// Names that the operator needs for itself.
    reserved: Option<String>,
}

/// Phase 2: a class that breaks no rule.
pub struct Valid {
    /// The class as sidecars will know it.
    pub class: BundleClass,
    /// The lock that its holds are of, if it has any.
    pub lock: Option<LockConfig>,
    /// Its namespace.
    pub namespace: String,
    /// Where it lives.
    pub substrate: Substrate,
    /// What its grants promise.
    pub guarantee: Guarantee,
    /// Its Backend, unless it is built in.
    pub backend: Option<Arc<Backend>>,
    /// The bundle that sidecars read now.
    pub published: Option<Arc<Bundle>>,
}

/// Phase 3: what is to be done to the Leases.
#[derive(Debug, Default, PartialEq)]
pub struct Planned {
    /// To be created, unheld.
    pub create: Vec<Lease>,
    /// Of an earlier class of the same name: to be owned by this one.
    pub adopt: Vec<Arc<Lease>>,
    /// Of keys that are no longer declared, and that nobody holds.
    pub delete: Vec<Arc<Lease>>,
    /// Slots of a semaphore that has more holds than permits: to be closed.
    pub close: Vec<Arc<Lease>>,
    /// Slots that were closed: to be opened.
    pub open: Vec<Arc<Lease>>,
    /// Drained: nobody holds them, and only our finalizer keeps them.
    pub free: Vec<Arc<Lease>>,
    /// When to look again at what could not be done yet.
    pub again: Option<Duration>,
    owner: Option<OwnerReference>,
}

/// Phase 4: what has been done.
#[derive(Debug, Default, PartialEq)]
pub struct Applied {
    /// Whether every Lease is there.
    pub complete: bool,
    /// A Lease of somebody else's that is in the way.
    pub in_the_way: Option<String>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// Brings one class to where its spec wants it.
///
/// # Errors
/// Whatever was in the way; trying again goes on from there.
pub async fn reconcile<K: Controlled>(object: Arc<K>, ctx: Arc<Context>) -> Result<Action, Error> {
    if object.meta().deletion_timestamp.is_some() {
        return cleanup::run(object, &ctx).await;
    }
    let namespace = object.namespace().unwrap_or_default();
    ctx.longest.note_class(K::KIND, &namespace, &object.name_any(), object.class().ttl());
    let found = dereference(object.clone(), &ctx);
    let valid = match found.check() {
        Ok(valid) => valid,
        Err(verdict) => {
            let again = object.report(&ctx, Phase::Refused(verdict)).await?;
            return Ok(Action::requeue(again.unwrap_or(RESYNC)));
        }
    };
    if !object.finalizers().iter().any(|name| name == FINALIZER) {
        // The change brings us back here; nothing is made before it is known to be written.
        apply::add_finalizer(&ctx, &*object).await?;
        return Ok(Action::await_change());
    }
    let planned = valid.plan(&found, &ctx.sightings);
    let applied = apply::leases(&ctx, &valid, planned).await?;
    let forced = force::by_annotation(&ctx, &*object, &valid).await;
    // What a release waits for is in the status, too.
    let again = object.report(&ctx, Phase::Applied(&valid, applied)).await?;
    forced?;
    Ok(Action::requeue(again.unwrap_or(RESYNC)))
}

/// Phase 1.
fn dereference<K: Controlled>(object: Arc<K>, ctx: &Context) -> Found<K> {
    let namespace = object.namespace().unwrap_or_default();
    let class = object.class();
    let election = ctx.args.election.as_str();
    let is_reserved = namespace == ctx.namespace && class.name() == election;
    Found {
        environment: bundle::environment(ctx, &namespace),
        backend: ctx.caches.backend(class.backend()),
        leases: leases_of(ctx, &namespace, K::KIND, &class.name()),
        published: ctx.published.get(&ctx.caches, &namespace),
        reserved: is_reserved.then(|| election.to_owned()),
        class,
        object,
    }
}

/// Our Leases of a class.
pub fn leases_of(ctx: &Context, namespace: &str, kind: Kind, class: &str) -> Vec<Arc<Lease>> {
    ctx.caches.leases.state_filter(|lease| {
        let label = |name: &str| lease.labels().get(name).map(String::as_str);
        lease.metadata.namespace.as_deref() == Some(namespace)
            && label(LABEL_CLASS) == Some(class)
            && label(LABEL_KIND) == Some(kind.singular())
    })
}

impl<K: Controlled> Found<K> {
    /// Phase 2: the rules, and the sentence for the user when one is broken.
    fn check(&self) -> Result<Valid, Verdict> {
        let refuse = |reason, message: String| Err(Verdict::new(READY, false, reason, message));
        if let Some(name) = &self.reserved {
            let message = format!("the name \"{name}\" is the operator's own here; choose another");
            return refuse(REASON_INVALID, message);
        }
        let namespace = self.object.namespace().unwrap_or_default();
        let wanted = self.class.backend();
        if let (Some(backend), false) =
            (&self.backend, self.environment.backends.contains_key(wanted))
        {
            let labels = backend.spec.namespaces.clone().unwrap_or_default().match_labels;
            let labels: Vec<_> = labels.iter().map(|(name, v)| format!("{name}={v}")).collect();
            let message = format!(
                "Backend \"{wanted}\" does not admit namespace \"{namespace}\": its \
                 spec.namespaces wants the labels {}",
                labels.join(", ")
            );
            return refuse(REASON_BACKEND_MISSING, message);
        }
        let classes = std::slice::from_ref(&self.class);
        let (bundle, problems) = compile(&namespace, classes, &self.environment);
        let Some(class) = bundle.classes.into_iter().next() else {
            let errors = problems.iter().flat_map(|problem| &problem.errors);
            let message: Vec<String> = errors.map(ToString::to_string).collect();
            let is_missing = wanted != holdfast_api::bundle::LEASE_BACKEND
                && !self.environment.backends.contains_key(wanted);
            let reason = if is_missing { REASON_BACKEND_MISSING } else { REASON_INVALID };
            return refuse(reason, message.join("; "));
        };
        let substrate = bundle.backends.get(&class.backend).map(|backend| backend.substrate);
        let substrate = substrate.unwrap_or(Substrate::Lease);
        // A class on Leases has no entry there.
        let guarantee = match bundle.backends.get(&class.backend) {
            Some(backend) => backend.guarantee(K::KIND),
            None => supports(K::KIND, substrate),
        };
        let guarantee = guarantee.map_err(|why| Verdict::new(READY, false, REASON_INVALID, why))?;
        Ok(Valid {
            lock: class.config.lock(substrate),
            class,
            namespace,
            substrate,
            guarantee,
            backend: self.backend.clone(),
            published: self.published.clone(),
        })
    }
}

impl Valid {
    /// The keys that have a Lease each; none on other substrates.
    pub fn lease_keys(&self) -> Vec<Key> {
        lease_keys(&self.class, self.substrate)
    }

    /// Whether candidates of client-go may contest its Lease.
    pub fn is_shared(&self) -> bool {
        match &self.class.config {
            ClassConfig::Lock(_) | ClassConfig::RateLimit(_) | ClassConfig::Semaphore(_) => false,
            ClassConfig::LeaderElection(config) => config.interop == Interop::ClientGo,
        }
    }

    /// The name of a key's Lease.
    pub fn lease_name(&self, key: &Key) -> String {
        names::lease_name(self.class.config.kind(), &self.class.name, key)
    }

    /// Phase 3.
    fn plan<K: Controlled>(&self, found: &Found<K>, sightings: &Sightings) -> Planned {
        let owner = owner(&*found.object);
        let mut planned = Planned::default();
        let later = |again: &mut Option<Duration>, left: Duration| {
            *again = Some(again.map_or(left, |known| known.min(left)));
        };
        let left_of = |lease: &Lease| {
            let look = sightings.look(&self.namespace, &lease.name_any());
            look.map(|look| look.left).unwrap_or_default()
        };
        let mut wanted = Vec::new();
        let kind = self.class.config.kind();
        let mut slots = Vec::new();
        for key in self.lease_keys() {
            let numbers = match kind {
                Kind::Semaphore => self.plan_slots(&key, &found.leases, sightings, &mut planned),
                Kind::Lock | Kind::LeaderElection | Kind::RateLimit => vec![0],
            };
            slots.extend(numbers.into_iter().map(|number| (key.clone(), number)));
        }
        for (key, number) in slots {
            let (namespace, class) = (&self.namespace, &self.class.name);
            let mut lease = names::unheld_slot(namespace, kind, class, &key, number);
            lease.metadata.owner_references = owner.clone().map(|owner| vec![owner]);
            if self.is_shared() {
                let label = (names::LABEL_INTEROP.to_owned(), "ClientGo".to_owned());
                lease.metadata.labels.get_or_insert_default().extend([label]);
            }
            let name = lease.name_any();
            match found.leases.iter().find(|there| there.name_any() == name) {
                // On its way out; the next look creates it anew.
                Some(there) if there.metadata.deletion_timestamp.is_some() => {
                    planned.free.push(there.clone());
                    later(&mut planned.again, left_of(there).max(SOON));
                }
                Some(there) if !is_owned(there, owner.as_ref()) => {
                    planned.adopt.push(there.clone())
                }
                Some(_) => {}
                None => match sightings.absent_for(&self.namespace, &name) {
                    Duration::ZERO => planned.create.push(lease),
                    left => later(&mut planned.again, left),
                },
            }
            wanted.push(name);
        }
        for there in found.leases.iter().filter(|there| !wanted.contains(&there.name_any())) {
            match left_of(there) {
                Duration::ZERO => planned.delete.push(there.clone()),
                left => later(&mut planned.again, left),
            }
        }
        planned.free.retain(|lease| left_of(lease).is_zero());
        planned.owner = owner;
        planned
    }
}

impl Planned {
    /// The reference that makes a Lease this class's.
    pub fn owner(&self) -> Option<&OwnerReference> {
        self.owner.as_ref()
    }
}

/// The keys of a class that have a Lease each; none on other substrates.
pub fn lease_keys(class: &BundleClass, substrate: Substrate) -> Vec<Key> {
    match (substrate, class.config.lock(substrate).map(|lock| lock.keys)) {
        (Substrate::Lease, Some(Keys::Fixed(keys))) => keys,
        (Substrate::Lease, Some(Keys::Any) | None)
        | (Substrate::Redis | Substrate::Redlock | Substrate::Memory, _) => Vec::new(),
    }
}

/// With it, the API server deletes the Leases of a class that was deleted with no operator around.
fn owner<K: Controlled>(object: &K) -> Option<OwnerReference> {
    // Not blocking: a deletion in the foreground must not wait for what we drain first.
    let owner = object.controller_owner_ref(&())?;
    Some(OwnerReference { block_owner_deletion: Some(false), ..owner })
}

fn is_owned(lease: &Lease, owner: Option<&OwnerReference>) -> bool {
    owner.is_none_or(|owner| lease.owner_references().iter().any(|known| known.uid == owner.uid))
}
