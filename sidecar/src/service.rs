//! What the API does: checks a request against its class, authorises it, runs the transition, and
//! hands the hold to [`Holds`]. Knows no HTTP; the rules of locks are core's.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use arc_swap::ArcSwap;
use holdfast_api::bundle::Verb;
use holdfast_core::{Address, Clock, HoldId, Holder, Key, Kind, SessionId, lock::HolderView};
use holdfast_wire::{Code, LockState};
use tokio_util::sync::CancellationToken;

use crate::{
    authz,
    elections::Elections,
    error::Failure,
    holds::{Found, Holds, View, ended::End},
    metrics::Metrics,
    snapshot::{LockClass, Snapshot},
};

mod acquiring;
mod answers;
mod catalogue;
mod election;
mod fence;
mod holding;
mod ratelimit;
mod semaphore;
mod terms;
mod waiting;

pub use acquiring::Wanted;
use answers::{mk_closing, mk_ended, mk_state, mk_unknown, usable};
pub use answers::{mk_holder, mk_permit_holder};
pub use holding::Releasing;
pub use ratelimit::Checked;
use terms::invalid;

/// Requests of this pod that may wait at once, for all classes.
pub const MAX_WAITING: usize = 10_000;
/// Requests of this pod that may wait at once for one class.
pub const MAX_WAITING_PER_CLASS: i64 = 1_000;
/// The longest that a request may wait.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// Who this sidecar speaks for.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The namespace of the classes.
    pub namespace: Arc<str>,
    /// The pod, as others see it.
    pub holder: Holder,
    /// One incarnation of this process, or the one it resumes.
    pub session: SessionId,
    /// The pod's ServiceAccount.
    pub service_account: String,
    /// Whether there are containers to bind holds to.
    pub in_pod: bool,
}

/// Everything that requests share.
pub struct Sidecar {
    /// Who this sidecar speaks for.
    pub identity: Identity,
    /// What the newest good bundle says.
    pub snapshot: ArcSwap<Snapshot>,
    /// The live holds.
    pub holds: Arc<Holds>,
    /// The elections that this pod stands in.
    pub elections: Elections,
    /// The families.
    pub metrics: Metrics,
    /// Cancelled when no more holds are to be granted.
    pub closing: CancellationToken,
    /// Cancelled when the server ends: event streams do too.
    pub stopped: CancellationToken,
    clock: Arc<dyn Clock>,
    waiting: AtomicUsize,
}

impl Sidecar {
    /// A sidecar with an empty bundle.
    pub fn new(
        identity: Identity,
        holds: Arc<Holds>,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Sidecar {
            identity,
            snapshot: ArcSwap::default(),
            holds,
            elections: Elections::default(),
            metrics,
            closing: CancellationToken::new(),
            stopped: CancellationToken::new(),
            clock,
            waiting: AtomicUsize::new(0),
        })
    }

    /// Takes a key from whoever has it.
    ///
    /// # Errors
    /// 403 unless the class's access rules permit it by name.
    pub async fn force_release(
        &self,
        name: &str,
        key: Option<&str>,
    ) -> Result<(Key, Option<HolderView>), Failure> {
        let class = self.snapshot.load().lock(name)?.clone();
        let at = self.address(&class, key, Verb::ForceRelease)?;
        let taken = class.client.backend().force_release(&at, &class.config).await?;
        if let Some(from) = &taken {
            tracing::info!(%at, holder = %from.holder, "taken by force");
        }
        Ok((at.key, taken))
    }

    /// The state of a key.
    ///
    /// # Errors
    /// 403, 404, or those of the store.
    pub async fn query(&self, name: &str, key: Option<&str>) -> Result<LockState, Failure> {
        let class = self.snapshot.load().lock(name)?.clone();
        let at = self.address(&class, key, Verb::Read)?;
        let view = class.client.backend().query(&at, &class.config).await?;
        Ok(mk_state(&at.key, view))
    }

    /// What is known of a hold, or 410.
    ///
    /// # Errors
    /// 410 with how it ended.
    pub fn live(&self, found: Found) -> Result<View, Failure> {
        match found {
            Found::Live(view) => usable(view),
            Found::Ended(end) => Err(mk_ended(end)),
            Found::Unknown => Err(mk_unknown()),
        }
    }

    /// The live hold of a class, if that is what was found.
    fn held(
        &self,
        kind: Kind,
        name: &str,
        hold: Option<&str>,
        found: Option<Found>,
    ) -> Result<View, Failure> {
        match found {
            Some(Found::Live(view)) if view.is_of(kind, name) => Ok(view),
            found => Err(self.not_held(kind, name, hold, found)),
        }
    }

    /// Why a hold that a caller names is none of this class.
    fn not_held(
        &self,
        kind: Kind,
        name: &str,
        hold: Option<&str>,
        found: Option<Found>,
    ) -> Failure {
        let why = match found {
            Some(Found::Ended(end)) => mk_ended(end),
            Some(Found::Live(_)) => mk_unknown(),
            // Its text is checked only when there is none.
            Some(Found::Unknown) | None => match read_hold(hold) {
                Ok(_) => mk_unknown(),
                Err(failure) => return failure,
            },
        };
        // A wrong name explains more than an unknown hold.
        let snapshot = self.snapshot.load();
        let class = match kind {
            Kind::Semaphore => snapshot.semaphore(name).map(drop),
            Kind::Lock | Kind::LeaderElection | Kind::RateLimit => snapshot.lock(name).map(drop),
        };
        class.err().unwrap_or(why)
    }

    fn was_released(&self, hold: Option<&str>) -> bool {
        matches!(hold.map(|text| self.holds.look_up(text)), Some(Found::Ended(End::Released)))
    }

    fn lost(&self, hold: &HoldId) -> Failure {
        match self.holds.find(hold) {
            Found::Ended(end) => mk_ended(end),
            Found::Live(_) | Found::Unknown => mk_unknown(),
        }
    }

    fn address(
        &self,
        class: &LockClass,
        key: Option<&str>,
        verb: Verb,
    ) -> Result<Address, Failure> {
        let key = match key {
            None => class.default_key.clone(),
            Some(text) => Key::new(text)
                .map_err(|why| Failure::new(Code::InvalidField, format!("key: {why}")))?,
        };
        if !class.config.keys.contains(&key) {
            return Err(class.no_such_key(&key));
        }
        if !authz::permits(&class.access, &self.identity.service_account, verb, &key) {
            let why = format!(
                "the access rules of {} \"{}\" do not let ServiceAccount \"{}\" do this; \
                 see spec.access",
                class.kind, class.name, self.identity.service_account
            );
            return Err(Failure::new(Code::Forbidden, why));
        }
        Ok(self.address_of(class, key))
    }

    fn address_of(&self, class: &LockClass, key: Key) -> Address {
        let namespace = self.identity.namespace.clone();
        Address { kind: class.kind, namespace, class: class.name.clone(), key }
    }
}

fn read_hold(hold: Option<&str>) -> Result<HoldId, Failure> {
    let Some(text) = hold else {
        return Err(invalid("holdId", "is required: the one that acquire answered"));
    };
    HoldId::new(text).map_err(|why| Failure::new(Code::InvalidField, format!("holdId: {why}")))
}
