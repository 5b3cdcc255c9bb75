//! What becomes of a request to acquire, until its hold is among [`Holds`](crate::holds::Holds).

use std::{sync::Arc, time::Duration};

use holdfast_api::bundle::Verb;
use holdfast_backend::waiter::{Acquisition, Heir, HeldLock};
use holdfast_core::{Address, HoldId, SessionId, Stamp, Substrate, lock::Acquire};
use holdfast_wire::{AcquireRequest, Bind, Code};
use tokio::time::Instant;

use super::{
    Sidecar,
    answers::{mk_closing, mk_ended, mk_locked, mk_queue_full, mk_too_heavy, mk_too_many, usable},
    terms::Terms,
    waiting::WaitSlot,
};
use crate::{
    error::Failure,
    holds::{Found, MAX_HOLDS, NewHold, View, ended::End},
    liveness::Bound,
    snapshot::LockClass,
};

/// How often one request may have been given up and sent again before a new one is wanted.
const MAX_TRIES: u32 = 16;

/// A request to acquire, checked.
pub struct Wanted<'a> {
    pub(super) class: Arc<LockClass>,
    pub(super) at: Address,
    pub(super) terms: Terms,
    /// Its place among those who may wait.
    pub(super) _place: Option<WaitSlot<'a>>,
}

/// What became of a request that was granted.
enum Granted {
    /// It is the retry of one that was granted before.
    Before(View),
    /// It was granted, by this reading of the clocks.
    Now(HeldLock, Stamp),
}

impl Sidecar {
    /// Acquires.
    ///
    /// # Errors
    /// Everything that can be wrong with a request or a store, see [`Code`].
    pub async fn acquire(&self, name: &str, request: &AcquireRequest) -> Result<View, Failure> {
        self.acquire_wanted(self.want(name, request.key.as_deref(), request)?).await
    }

    /// Checks a request to acquire: all that is done of it without waiting for anything. `key` is the
    /// request's, which need not have been copied into it.
    ///
    /// # Errors
    /// Everything that can be wrong with a request, see [`Code`].
    pub fn want(
        &self,
        name: &str,
        key: Option<&str>,
        request: &AcquireRequest,
    ) -> Result<Wanted<'_>, Failure> {
        if self.closing.is_cancelled() {
            return Err(mk_closing());
        }
        let class = self.snapshot.load().lock(name)?.clone();
        let at = self.address(&class, key, Verb::Acquire)?;
        let terms = Terms::read(request, &class, self.identity.in_pod)?;
        let place = self.wait_slot(&class.metrics.waiting, terms.wait)?;
        Ok(Wanted { class, at, terms, _place: place })
    }

    /// Acquires what was checked.
    ///
    /// # Errors
    /// Everything that can be wrong with a store, see [`Code`].
    pub async fn acquire_wanted(&self, wanted: Wanted<'_>) -> Result<View, Failure> {
        if self.holds.count() >= MAX_HOLDS {
            return Err(mk_too_many(format!("this pod has {MAX_HOLDS} holds; release some")));
        }
        // Who does not wait needs no clock but the one its grant is counted by.
        let began = (!wanted.terms.wait.is_zero()).then(Instant::now);
        let outcome = tokio::select! {
            biased;
            outcome = self.acquire_once(&wanted, began) => outcome,
            () = self.closing.cancelled() => Err(mk_closing()),
        };
        let (class, terms) = (&wanted.class, &wanted.terms);
        let outcome = match outcome {
            Ok(Granted::Before(view)) => Ok(view),
            Ok(Granted::Now(held, now)) => self.admit(class.clone(), wanted.at, terms, held, now),
            Err(failure) => Err(failure),
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
        wanted: &Wanted<'_>,
        began: Option<Instant>,
    ) -> Result<Granted, Failure> {
        let Wanted { class, at, terms, .. } = wanted;
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
                Found::Live(view) => return usable(view).map(Granted::Before),
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
                    return Ok(Granted::Now(held, now));
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
        class: Arc<LockClass>,
        at: Address,
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
            class,
            at,
            held,
            ttl: terms.ttl,
            max_hold: terms.max_hold,
            permits: terms.permits,
            bound,
            is_retry: terms.request_id.is_some(),
            heir: Heir::new(),
        };
        // The same request, sent twice, may have been let go already.
        let view = self.holds.insert(new, now).map_err(mk_ended)?;
        // The class may have been changed while it was waited for.
        let snapshot = self.snapshot.load();
        if let Some(class) = snapshot.class_of(&view.at)
            && !Arc::ptr_eq(class, &view.class)
        {
            self.holds.keep_one_to(&view.hold, class);
        }
        usable(view)
    }
}
