//! Classes in, bundle out: the one function behind the operator and `holdfast dev`.

use std::{collections::BTreeMap, time::Duration};

use holdfast_core::{ClassName, Kind, Substrate, supports};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use sha2::{Digest, Sha256};

use crate::{
    bundle::{
        AccessRule, BUNDLE_FORMAT, Bundle, BundleBackend, BundleClass, ClassConfig, LEASE_BACKEND,
        Verb,
    },
    load::did_you_mean,
    v1alpha1::{LeaderElection, Lock, RateLimit, Semaphore, lock},
    validate::{FieldError, Resolved, Validate},
};

/// A class as it was declared.
#[derive(Clone, Debug, PartialEq)]
pub enum Class {
    /// A Lock.
    Lock(Lock),
    /// A LeaderElection.
    LeaderElection(LeaderElection),
    /// A RateLimit.
    RateLimit(RateLimit),
    /// A Semaphore.
    Semaphore(Semaphore),
}

impl Class {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Class::Lock(_) => Kind::Lock,
            Class::LeaderElection(_) => Kind::LeaderElection,
            Class::RateLimit(_) => Kind::RateLimit,
            Class::Semaphore(_) => Kind::Semaphore,
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        match self {
            Class::Lock(lock) => lock.name_any(),
            Class::LeaderElection(election) => election.name_any(),
            Class::RateLimit(limit) => limit.name_any(),
            Class::Semaphore(semaphore) => semaphore.name_any(),
        }
    }

    /// Its namespace; `default` when it names none.
    pub fn namespace(&self) -> String {
        match self {
            Class::Lock(lock) => lock.namespace().unwrap_or_else(|| "default".into()),
            Class::LeaderElection(election) => {
                election.namespace().unwrap_or_else(|| "default".into())
            }
            Class::RateLimit(limit) => limit.namespace().unwrap_or_else(|| "default".into()),
            Class::Semaphore(semaphore) => {
                semaphore.namespace().unwrap_or_else(|| "default".into())
            }
        }
    }

    /// Its metadata.
    pub const fn meta(&self) -> &ObjectMeta {
        match self {
            Class::Lock(lock) => &lock.metadata,
            Class::LeaderElection(election) => &election.metadata,
            Class::RateLimit(limit) => &limit.metadata,
            Class::Semaphore(semaphore) => &semaphore.metadata,
        }
    }

    /// How long one of its holds may last without a renewal, as far as the spec says.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(u64::from(match self {
            Class::Lock(lock) => lock.spec.ttl_seconds,
            Class::LeaderElection(election) => election.spec.lease_duration_seconds,
            // Nothing is held.
            Class::RateLimit(_) => 0,
            Class::Semaphore(semaphore) => semaphore.spec.ttl_seconds,
        }))
    }

    /// The backend it names.
    pub fn backend(&self) -> &str {
        match self {
            Class::Lock(lock) => lock.backend(),
            Class::LeaderElection(election) => election.backend(),
            Class::RateLimit(limit) => limit.backend(),
            Class::Semaphore(semaphore) => semaphore.backend(),
        }
    }

    /// Checks it and compiles its configuration.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn validate(&self, on: &Resolved) -> Result<ClassConfig, Vec<FieldError>> {
        match self {
            Class::Lock(lock) => lock.validate(on).map(ClassConfig::Lock),
            Class::LeaderElection(election) => {
                election.validate(on).map(ClassConfig::LeaderElection)
            }
            Class::RateLimit(limit) => limit.validate(on).map(ClassConfig::RateLimit),
            Class::Semaphore(semaphore) => semaphore.validate(on).map(ClassConfig::Semaphore),
        }
    }

    fn access(&self) -> &[lock::AccessSpec] {
        match self {
            Class::Lock(lock) => lock.access(),
            Class::LeaderElection(election) => election.access(),
            Class::RateLimit(limit) => limit.access(),
            Class::Semaphore(semaphore) => semaphore.access(),
        }
    }
}

/// A class that is not in the bundle, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub errors: Vec<FieldError>,
}

/// What classes are compiled against.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The backends of the namespace by name; `lease` is always there.
    pub backends: BTreeMap<String, BundleBackend>,
    /// Puts every class on this backend whatever it names: `holdfast dev`.
    pub all_on: Option<String>,
    /// Fence sequences that deleted classes left, by kind and name (`lock/nightly`).
    pub fence_floors: BTreeMap<String, u64>,
    /// Whether sidecars may watch all Leases of the namespace.
    pub share_lease_watch: bool,
}

/// The key of a class in [`Environment::fence_floors`].
pub fn floor_key(kind: Kind, name: &str) -> String {
    format!("{}.{name}", kind.singular())
}

/// Compiles the classes of a namespace. A class that is wrong is left out and reported; the others
/// are not affected. The same input gives the same bundle, byte for byte.
pub fn compile(
    namespace: &str,
    classes: &[Class],
    environment: &Environment,
) -> (Bundle, Vec<Problem>) {
    let mut known = environment.backends.clone();
    known.entry(LEASE_BACKEND.into()).or_insert(BundleBackend {
        share_watch: environment.share_lease_watch,
        ..BundleBackend::of(Substrate::Lease)
    });
    let (mut compiled, mut problems) = (Vec::new(), Vec::new());
    for class in classes {
        match compile_class(class, &known, environment) {
            Ok(class) => compiled.push(class),
            Err(errors) => {
                problems.push(Problem { kind: class.kind(), name: class.name(), errors });
            }
        }
    }
    compiled.sort_by(|a, b| (a.config.kind(), &a.name).cmp(&(b.config.kind(), &b.name)));
    known.retain(|name, _| compiled.iter().any(|class| class.backend == *name));
    let mut bundle = Bundle {
        format: BUNDLE_FORMAT,
        namespace: namespace.into(),
        hash: String::new(),
        classes: compiled,
        backends: known,
    };
    bundle.hash = hash(&bundle);
    (bundle, problems)
}

fn compile_class(
    class: &Class,
    known: &BTreeMap<String, BundleBackend>,
    environment: &Environment,
) -> Result<BundleClass, Vec<FieldError>> {
    let fail = |field: &str, why: String| vec![FieldError::new(field, why)];
    let backend = environment.all_on.as_deref().unwrap_or_else(|| class.backend());
    let Some(found) = known.get(backend) else {
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        let hint = did_you_mean(backend, names.iter().copied());
        let names = names.join(", ");
        let why = format!("there is no Backend \"{backend}\" (there are: {names}){hint}");
        return Err(fail("spec.backend", why));
    };
    supports(class.kind(), found.substrate).map_err(|why| fail("spec.backend", why.into()))?;
    let fence_floor =
        environment.fence_floors.get(&floor_key(class.kind(), &class.name())).copied().unwrap_or(0);
    let config = class.validate(&Resolved { substrate: found.substrate, fence_floor })?;
    let name =
        ClassName::new(class.name()).map_err(|why| fail("metadata.name", why.to_string()))?;
    Ok(BundleClass {
        name,
        backend: backend.into(),
        config,
        access: class.access().iter().map(access_rule).collect(),
    })
}

fn access_rule(spec: &lock::AccessSpec) -> AccessRule {
    AccessRule {
        service_accounts: spec.service_accounts.clone(),
        verbs: spec
            .verbs
            .iter()
            .map(|verb| match verb {
                lock::Verb::Acquire => Verb::Acquire,
                lock::Verb::Read => Verb::Read,
                lock::Verb::ForceRelease => Verb::ForceRelease,
            })
            .collect(),
        key_prefix: spec.key_prefix.clone(),
    }
}

/// SHA-256 of a bundle whose own hash is empty.
fn hash(bundle: &Bundle) -> String {
    let bare = Bundle { hash: String::new(), ..bundle.clone() };
    // A bundle has string keys only, so it always has a JSON form.
    let json = serde_json::to_vec(&bare).unwrap_or_default();
    Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect()
}
