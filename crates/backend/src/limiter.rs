//! How a process uses the rate limits of one store: asks it, or serves from tokens in hand, or
//! decides alone while it is away. The rules are core's: [`lease`], [`outage`], [`share`].
//!
//! Invariants: of one key, one call at a time fetches tokens, so that never more than a batch is in
//! hand; equal checks of one key share calls; a store that is away is asked by one check now and
//! then, not by all.

use std::sync::{Arc, Mutex};

use holdfast_core::{
    Address, BackendError, Clock, Stamp,
    ratelimit::{
        Accuracy, Check, Decision, MAX_LIMITS, Mode, OnBackendFailure, Outcome, OverAdmission,
        Policy, RateLimitBackend, RateLimitConfig, Taken, Verdict, lease::Terms, outage::Outage,
        share,
    },
};

use crate::{hub::lock, memory::MemoryRateLimits};

mod coalesce;
mod leases;

use coalesce::Lines;
use leases::Leases;

/// How a class wants to be served.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What each transition carries.
    pub policy: Arc<Policy>,
    /// How much more than the store counts may pass.
    pub over_admission: Option<OverAdmission>,
    lease: Option<Terms>,
    alone: Alone,
}

/// What happens while the store is away.
#[derive(Clone, Debug)]
enum Alone {
    Closed,
    Open,
    Share(Arc<Policy>),
}

impl Plan {
    /// The plan of a class.
    pub fn new(config: &RateLimitConfig) -> Self {
        let policy = config.policy();
        let alone = match config.on_backend_failure {
            OnBackendFailure::Closed => Alone::Closed,
            OnBackendFailure::Open => Alone::Open,
            OnBackendFailure::Local { share_percent } => {
                Alone::Share(Arc::new(share::of(&policy, share_percent)))
            }
        };
        let lease = match config.accuracy {
            Accuracy::Exact => None,
            Accuracy::Leased { batch, max_staleness_seconds } => {
                let staleness = std::time::Duration::from_secs(max_staleness_seconds.into());
                Some(Terms { batch: batch.max(1), staleness })
            }
        };
        Plan { policy, over_admission: config.over_admission(), lease, alone }
    }
}

/// The rate limits of one store, for one process.
///
/// # Guarantees
/// Those of [`RateLimitBackend`], and of a class that is `Leased` those of [`OverAdmission`]. With
/// `Local` each process admits a share of each limit while the store is away, see [`share`].
///
/// # Errors
/// Those of the store, where the class is closed while it is away.
pub struct Limiter {
    store: Arc<dyn RateLimitBackend>,
    clock: Arc<dyn Clock>,
    local: Arc<MemoryRateLimits>,
    leases: Leases,
    lines: Lines,
    outage: Mutex<Outage>,
    began: Stamp,
}

impl Limiter {
    /// A user of this store.
    pub fn new(store: Arc<dyn RateLimitBackend>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (local, began) = (MemoryRateLimits::new(clock.clone()), clock.now());
        let (leases, lines, outage) = (Leases::default(), Lines::default(), Mutex::default());
        Arc::new(Limiter { store, clock, local, leases, lines, outage, began })
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn RateLimitBackend> {
        &self.store
    }

    /// Whether the store counts as away.
    pub fn is_away(&self) -> bool {
        lock(&self.outage).is_away()
    }

    /// How many tokens are in hand, of all keys.
    pub fn in_hand(&self) -> u64 {
        self.leases.in_hand()
    }

    /// Decides; and whether the store had no part in it.
    pub async fn check(
        self: &Arc<Self>,
        at: &Address,
        plan: &Plan,
        check: &Check,
    ) -> Result<(Decision, bool), BackendError> {
        match (plan.lease, check.mode) {
            (Some(terms), Mode::Enforce) => self.check_leased(at, plan, terms, check).await,
            (Some(_), Mode::Peek) | (None, _) => match self.ask(at, plan, check).await? {
                Some(decision) => Ok((decision, false)),
                None => self.decide_alone(at, plan, check).await,
            },
        }
    }

    /// Asks the store; `None` when the class has another way and the store does not answer.
    async fn ask(
        self: &Arc<Self>,
        at: &Address,
        plan: &Plan,
        check: &Check,
    ) -> Result<Option<Decision>, BackendError> {
        let has_other_way = !matches!(plan.alone, Alone::Closed);
        if has_other_way && !lock(&self.outage).may_ask(self.elapsed()) {
            return Ok(None);
        }
        let asked = self.ask_store(at, &plan.policy, check).await;
        match asked {
            Ok(decision) => {
                self.note(true);
                Ok(Some(decision))
            }
            Err(error) if error.is_retryable() => {
                self.note(false);
                if has_other_way { Ok(None) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    fn note(&self, answered: bool) {
        if answered && lock(&self.outage).is_calm() {
            return;
        }
        let now = self.elapsed();
        let mut outage = lock(&self.outage);
        if outage.note(now, answered) {
            match outage.is_away() {
                true => tracing::warn!("the store of rate limits is away; classes decide alone"),
                false => tracing::info!("the store of rate limits is back"),
            }
        }
    }

    fn elapsed(&self) -> std::time::Duration {
        self.clock.now().since(self.began)
    }

    async fn decide_alone(
        &self,
        at: &Address,
        plan: &Plan,
        check: &Check,
    ) -> Result<(Decision, bool), BackendError> {
        let away = "the store of this rate limit is away";
        match &plan.alone {
            Alone::Closed => Err(BackendError::Unavailable(away.into())),
            Alone::Open => {
                let (verdicts, taken) = ([Verdict::default(); MAX_LIMITS], Taken::default());
                let outcome = Outcome::Allowed { wait_us: 0 };
                Ok((Decision { outcome, count: 0, verdicts, taken }, true))
            }
            // It fits into the limit, only not into our share: that is no fault of the request.
            Alone::Share(share)
                if check.cost > share.capacity() && check.cost <= plan.policy.capacity() =>
            {
                let why = format!(
                    "{away}, and a cost of {} is above this pod's share, {}: try again later",
                    check.cost,
                    share.capacity()
                );
                Err(BackendError::Unavailable(why))
            }
            Alone::Share(share) => Ok((self.local.check(at, share, check).await?, true)),
        }
    }

    /// Gives back what a check charged, where it was charged.
    pub async fn refund(&self, at: &Address, plan: &Plan, cost: u64) -> Result<(), BackendError> {
        match &plan.alone {
            Alone::Share(share) if self.is_away() => self.local.refund(at, share, cost).await,
            Alone::Open if self.is_away() => Ok(()),
            Alone::Share(_) | Alone::Open | Alone::Closed => {
                self.store.refund(at, &plan.policy, cost).await
            }
        }
    }

    /// Gives back a permit, wherever it was taken.
    pub async fn release(
        &self,
        at: &Address,
        plan: &Plan,
        permit: u64,
    ) -> Result<bool, BackendError> {
        if let Alone::Share(share) = &plan.alone
            && self.local.release(at, share, permit).await?
        {
            return Ok(true);
        }
        self.store.release(at, &plan.policy, permit).await
    }
}

#[cfg(test)]
mod tests;
