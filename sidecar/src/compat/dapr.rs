//! Dapr's lock API on Lock classes: the store is the class, the resource is the key.
//!
//! A lock is a hold of this pod, and the owner is who took it here: remembered in this process only.
//! It ends at its expiry: at once if the class's time to live reaches so far, else by renewals that
//! stop there. Nobody waits and nobody re-enters: what is held is not locked again, by the same owner
//! neither.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_core::{ClassName, HoldId, Key, Kind};
use holdfast_wire::{AcquireRequest, Bind, Code, Renew};

use crate::{
    error::Failure,
    holds::{Found, View},
    service::Sidecar,
};

pub mod grpc;
pub mod http;

/// Where a grant's fence is, in a header or in gRPC metadata.
pub const FENCE: &str = "holdfast-fence";
/// The longest name of an owner.
const MAX_OWNER: usize = 512;
/// Owners are kept in mind until so many have gathered; then those without a hold are forgotten.
const SWEEP_AT: usize = 1_024;

/// Who took what, in this process.
pub struct Dapr {
    sidecar: Arc<Sidecar>,
    owners: Mutex<Owners>,
}

struct Owners {
    all: HashMap<(ClassName, Key), Owned>,
    sweep_at: usize,
}

#[derive(Clone)]
struct Owned {
    owner: String,
    hold: HoldId,
}

/// What came of an unlock; the numbers are Dapr's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// It was held by this owner until now.
    Success = 0,
    /// Nobody holds it, or it ran out.
    NotThere = 1,
    /// Another owner, or another pod, holds it.
    OfOthers = 2,
    /// The store did not answer. The release goes on in the background.
    Failed = 3,
}

/// Why a request was not carried out, with the words that Dapr has for it.
#[derive(Debug)]
pub enum Refusal {
    /// The request is wrong.
    Malformed(String),
    /// There is no such class.
    NoStore(String),
    /// The lock could not be asked for.
    TryLock(Failure),
    /// The state of the lock could not be asked for.
    Unlock(Failure),
}

impl Dapr {
    /// Nobody owns anything.
    pub fn new(sidecar: Arc<Sidecar>) -> Arc<Self> {
        let owners = Owners { all: HashMap::new(), sweep_at: SWEEP_AT };
        Arc::new(Dapr { sidecar, owners: Mutex::new(owners) })
    }

    /// Whether there is a bundle to serve.
    pub fn is_ready(&self) -> bool {
        !self.sidecar.snapshot.load().hash.is_empty()
    }

    /// The names of the Lock classes.
    pub fn stores(&self) -> Vec<String> {
        let mut names: Vec<String> = self.sidecar.snapshot.load().locks.keys().cloned().collect();
        names.sort();
        names
    }

    /// Takes a lock for so many seconds; `None` when it is held.
    ///
    /// # Errors
    /// What is wrong with the request, or with the store.
    pub async fn try_lock(
        &self,
        store: &str,
        resource: &str,
        owner: &str,
        expiry_seconds: i64,
    ) -> Result<Option<View>, Refusal> {
        check_names(store, resource, owner)?;
        let request = self.read_terms(store, resource, expiry_seconds)?;
        match self.sidecar.acquire(store, &request).await {
            Ok(view) => {
                self.own(owner, &view);
                Ok(Some(view))
            }
            Err(failure) if failure.0.code == Code::Locked => Ok(None),
            Err(failure) => Err(refuse(failure, Refusal::TryLock)),
        }
    }

    fn read_terms(
        &self,
        store: &str,
        resource: &str,
        expiry_seconds: i64,
    ) -> Result<AcquireRequest, Refusal> {
        let seconds = u64::try_from(expiry_seconds).unwrap_or(0);
        if seconds == 0 {
            return Err(Refusal::Malformed(format!(
                "expiryInSeconds must be at least 1; got {expiry_seconds}"
            )));
        }
        let snapshot = self.sidecar.snapshot.load();
        let config = &snapshot.lock(store).map_err(|why| refuse(why, Refusal::TryLock))?.config;
        let expiry_ms = seconds.saturating_mul(1_000);
        if config.max_hold_ms > 0 && expiry_ms > config.max_hold_ms {
            return Err(Refusal::Malformed(format!(
                "expiryInSeconds is at most {} here: that is maxHoldSeconds of Lock \"{store}\"",
                config.max_hold_ms / 1_000
            )));
        }
        let request = AcquireRequest { key: Some(resource.to_owned()), ..Default::default() };
        let seconds = Some(seconds as f64);
        Ok(if expiry_ms <= config.ttl_ms {
            AcquireRequest { ttl_seconds: seconds, renew: Some(Renew::Manual), ..request }
        } else {
            // An app that ended does not give it back early: Dapr's locks last until their expiry.
            AcquireRequest { max_hold_seconds: seconds, bind: Some(Bind::Process), ..request }
        })
    }

    /// Gives a lock back.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub async fn unlock(
        &self,
        store: &str,
        resource: &str,
        owner: &str,
    ) -> Result<Unlocked, Refusal> {
        check_names(store, resource, owner)?;
        let class = self.sidecar.snapshot.load().lock(store).cloned();
        let class = class.map_err(|why| refuse(why, Refusal::Unlock))?;
        let key = Key::new(resource).map_err(|why| malformed("resourceId", &why.to_string()))?;
        let at = (class.name.clone(), key);
        let owned = self.owners().all.get(&at).cloned();
        let is_live =
            |owned: &Owned| matches!(self.sidecar.holds.find(&owned.hold), Found::Live(_));
        match owned {
            Some(owned) if owned.owner == owner && is_live(&owned) => {
                let released =
                    self.sidecar.release(Kind::Lock, store, Some(owned.hold.as_str())).await;
                let unlocked = match released {
                    Ok(()) => Unlocked::Success,
                    Err(failure) if failure.0.code == Code::HoldLost => Unlocked::NotThere,
                    Err(failure) => {
                        tracing::debug!(
                            why = failure.0.detail,
                            "an unlock did not reach the store"
                        );
                        return Ok(Unlocked::Failed);
                    }
                };
                self.disown(&at, &owned.hold);
                Ok(unlocked)
            }
            // It ran out, or was taken by force; whoever has it now is not this owner.
            Some(owned) if owned.owner == owner => {
                self.disown(&at, &owned.hold);
                Ok(Unlocked::NotThere)
            }
            Some(owned) if is_live(&owned) => Ok(Unlocked::OfOthers),
            Some(_) | None => match self.sidecar.query(store, Some(resource)).await {
                Ok(state) if state.held => Ok(Unlocked::OfOthers),
                Ok(_) => Ok(Unlocked::NotThere),
                Err(failure) if failure.0.status >= 500 => Ok(Unlocked::Failed),
                Err(failure) => Err(refuse(failure, Refusal::Unlock)),
            },
        }
    }

    fn own(&self, owner: &str, view: &View) {
        let mut owners = self.owners();
        if owners.all.len() >= owners.sweep_at {
            let holds = &self.sidecar.holds;
            owners.all.retain(|_, owned| matches!(holds.find(&owned.hold), Found::Live(_)));
            // Holds are bounded, so this is.
            owners.sweep_at = (owners.all.len() * 2).max(SWEEP_AT);
        }
        let at = (view.at.class.clone(), view.at.key.clone());
        owners.all.insert(at, Owned { owner: owner.to_owned(), hold: view.hold.clone() });
    }

    fn disown(&self, at: &(ClassName, Key), hold: &HoldId) {
        let mut owners = self.owners();
        if owners.all.get(at).is_some_and(|owned| owned.hold == *hold) {
            owners.all.remove(at);
        }
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_names(store: &str, resource: &str, owner: &str) -> Result<(), Refusal> {
    for (field, text) in [("storeName", store), ("resourceId", resource), ("lockOwner", owner)] {
        if text.is_empty() {
            return Err(malformed(field, "is empty"));
        }
    }
    if owner.len() > MAX_OWNER {
        return Err(malformed("lockOwner", &format!("has at most {MAX_OWNER} bytes")));
    }
    Ok(())
}

fn malformed(field: &str, why: &str) -> Refusal {
    Refusal::Malformed(format!("{field}: {why}"))
}

/// Sorts a failure by what Dapr has words for.
fn refuse(failure: Failure, otherwise: fn(Failure) -> Refusal) -> Refusal {
    match failure.0.code {
        Code::ClassNotFound => Refusal::NoStore(failure.0.detail),
        Code::KeyNotAllowed | Code::InvalidField => Refusal::Malformed(failure.0.detail),
        _ => otherwise(failure),
    }
}
