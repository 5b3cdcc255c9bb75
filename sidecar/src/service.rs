//! What the API does: checks a request against its class, authorises it, runs the transition, and
//! hands the hold to [`Holds`]. Knows no HTTP; the rules of locks are core's.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use arc_swap::ArcSwap;
use holdfast_api::bundle::Verb;
use holdfast_backend::waiter::{Acquisition, HeldLock};
use holdfast_core::{
    Address, Clock, HoldId, Holder, Key, Kind, SessionId, Stamp, Substrate,
    lock::{Acquire, HolderView},
};
use holdfast_wire::{AcquireRequest, Bind, Code, LockState};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    authz,
    elections::Elections,
    error::Failure,
    holds::{Found, Holds, MAX_HOLDS, NewHold, View, ended::End},
    liveness::Bound,
    metrics::Metrics,
    snapshot::{LockClass, Snapshot},
};

mod answers;
mod catalogue;
mod election;
mod fence;
mod holding;
mod ratelimit;
mod semaphore;
mod terms;
mod waiting;

use answers::{
    mk_closing, mk_ended, mk_locked, mk_queue_full, mk_state, mk_too_heavy, mk_too_many, mk_unknown,
};
pub use answers::{mk_holder, mk_permit_holder};
pub use ratelimit::Checked;
use terms::{Terms, invalid};

/// Requests of this pod that may wait at once, for all classes.
pub const MAX_WAITING: usize = 10_000;
/// Requests of this pod that may wait at once for one class.
pub const MAX_WAITING_PER_CLASS: i64 = 1_000;
/// The longest that a request may wait.
pub const MAX_WAIT: Duration = Duration::from_secs(60);
/// How often one request may have been given up and sent again before a new one is wanted.
const MAX_TRIES: u32 = 16;

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

    /// Acquires.
    ///
    /// # Errors
    /// Everything that can be wrong with a request or a store, see [`Code`].
    pub async fn acquire(&self, name: &str, request: &AcquireRequest) -> Result<View, Failure> {
        if self.closing.is_cancelled() {
            return Err(mk_closing());
        }
        let class = self.snapshot.load().lock(name)?.clone();
        let at = self.address(&class, request.key.as_deref(), Verb::Acquire)?;
        let terms = Terms::read(request, &class, self.identity.in_pod)?;
        let _waiting = self.wait_slot(&class.metrics.waiting, terms.wait)?;
        self.acquire_on(&class, &at, &terms).await
    }

    async fn acquire_on(
        &self,
        class: &Arc<LockClass>,
        at: &Address,
        terms: &Terms,
    ) -> Result<View, Failure> {
        if self.holds.count() >= MAX_HOLDS {
            return Err(mk_too_many(format!("this pod has {MAX_HOLDS} holds; release some")));
        }
        // Who does not wait needs no clock but the one its grant is counted by.
        let began = (!terms.wait.is_zero()).then(Instant::now);
        let outcome = tokio::select! {
            biased;
            outcome = self.acquire_once(class, at, terms, began) => outcome,
            () = self.closing.cancelled() => Err(mk_closing()),
        };
        let metrics = &class.metrics;
        match &outcome {
            Ok(_) => metrics.acquired.inc(),
            Err(failure) if failure.0.code == Code::Locked => metrics.locked.inc(),
            Err(_) => metrics.failed.inc(),
        }
        outcome
    }

    async fn acquire_once(
        &self,
        class: &Arc<LockClass>,
        at: &Address,
        terms: &Terms,
        began: Option<Instant>,
    ) -> Result<View, Failure> {
        for attempt in 0..MAX_TRIES {
            let hold = match &terms.request_id {
                None => HoldId::random(),
                Some(id) => HoldId::derive(&self.session_of_try(attempt), at, id),
            };
            // A request without a name of its own is never a retry.
            let earlier = match &terms.request_id {
                None => Found::Unknown,
                Some(_) => self.holds.find(&hold),
            };
            match earlier {
                // A retry: the same grant.
                Found::Live(view) => return Ok(view),
                Found::Ended(End::GivenUp) => continue,
                Found::Ended(end) => return Err(mk_ended(end)),
                Found::Unknown => {}
            }
            let request = Acquire {
                config: class.config.clone(),
                hold: hold.clone(),
                session: self.identity.session.clone(),
                holder: self.identity.holder.clone(),
                ttl: terms.ttl,
                max_hold: terms.max_hold,
                enqueue: !terms.wait.is_zero(),
                permits: terms.permits,
            };
            let waited = || began.map_or(Duration::ZERO, |began| began.elapsed());
            let wait = match attempt {
                0 => terms.wait,
                _ => terms.wait.saturating_sub(waited()),
            };
            // Who renews by hand gets the whole time to live to begin with.
            let claim = terms.bind.is_none();
            match class.client.acquire(at, request, wait, claim).await? {
                Acquisition::Held(held) => {
                    // A store in this process answers in no time: one reading does for both.
                    let now = match (class.client.backend().substrate(), began) {
                        (Substrate::Memory, None) => held.deadline.since(),
                        _ => self.clock.now(),
                    };
                    let waited = match began {
                        Some(began) => began.elapsed(),
                        None => now.since(held.deadline.since()),
                    };
                    class.metrics.wait.observe(waited.as_secs_f64());
                    return self.admit(class, at, terms, held, now);
                }
                Acquisition::Locked { retry_after, waiters } => {
                    return Err(mk_locked(at, retry_after, waiters));
                }
                Acquisition::QueueFull { waiters } => {
                    return Err(mk_queue_full(at, class.config.ttl_ms, waiters));
                }
                Acquisition::TooMany { most } => return Err(mk_too_heavy(at, most)),
                // An earlier try of this request was given up by its caller.
                Acquisition::Cancelled => self.holds.given_up(&hold),
            }
        }
        let why = "this requestId was given up too often; send a new one";
        Err(Failure::new(Code::HoldLost, why))
    }

    /// Tries that were given up are refused by the store, so each next try of a request has a hold
    /// of its own; only the session that its name is derived from differs.
    fn session_of_try(&self, attempt: u32) -> SessionId {
        match attempt {
            0 => self.identity.session.clone(),
            n => SessionId::new(format!("{}-{n}", self.identity.session))
                .unwrap_or_else(|_| self.identity.session.clone()),
        }
    }

    fn admit(
        &self,
        class: &Arc<LockClass>,
        at: &Address,
        terms: &Terms,
        held: HeldLock,
        now: Stamp,
    ) -> Result<View, Failure> {
        let bound = terms.bind.map(|bind| match bind {
            Bind::Process => Bound::Process,
            Bind::Stream => Bound::Stream { open: 0, grace: terms.ttl, last: now },
            Bind::Heartbeat => Bound::Heartbeat { every: terms.heartbeat, last: now },
            Bind::Container if terms.of_pod => Bound::Pod { counts_on: Arc::default() },
            Bind::Container => {
                Bound::Container { granted_s: now.real_ns / 1_000_000_000, counts_on: None }
            }
        });
        let new = NewHold {
            class: class.clone(),
            at: at.clone(),
            held,
            ttl: terms.ttl,
            max_hold: terms.max_hold,
            permits: terms.permits,
            bound,
        };
        self.holds.insert(new, now).map_err(mk_ended)
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
            Found::Live(view) => Ok(view),
            Found::Ended(end) => Err(mk_ended(end)),
            Found::Unknown => Err(mk_unknown()),
        }
    }

    /// The live hold of a class that is named so.
    fn held(&self, kind: Kind, name: &str, hold: Option<&str>) -> Result<View, Failure> {
        match hold.map(|text| self.holds.look_up(text)) {
            Some(Found::Live(view)) if view.class.name.as_str() == name && view.at.kind == kind => {
                Ok(view)
            }
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
