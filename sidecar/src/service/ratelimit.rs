//! What a caller does with rate limits: check, peek, refund, release.

use std::{sync::Arc, time::Duration};

use holdfast_api::bundle::Verb;
use holdfast_core::{
    Address, BackendError, Key, Kind,
    ratelimit::{
        Check, Decision, MAX_LIMITS, Mode, OnBackendFailure, Outcome, PERMIT_NAMES, Verdict,
    },
};
use holdfast_wire::{CheckRequest, Code, PeekQuery, RefundRequest};

use super::{MAX_WAIT, Sidecar, mk_closing, terms::invalid};
use crate::{authz, error::Failure, snapshot::RateLimitClass};

/// A check that was decided.
pub struct Checked {
    /// The class.
    pub class: Arc<RateLimitClass>,
    /// The decision.
    pub decision: Decision,
    /// What to call the permits.
    pub permit: u64,
    /// Whether the store had no part in it.
    pub degraded: bool,
}

impl Sidecar {
    /// Decides, charges, and waits for the slot.
    ///
    /// # Errors
    /// 403, 404, 422; 503 when the store does not answer and the class is closed then.
    pub async fn check(&self, name: &str, request: &CheckRequest) -> Result<Checked, Failure> {
        let class = self.snapshot.load().rate_limit(name)?.clone();
        let at = self.rate_address(&class, request.key.as_deref(), Verb::Acquire)?;
        let check = Check {
            cost: read_cost(request.cost)?,
            mode: Mode::Enforce,
            max_wait_us: read_wait(request.wait_seconds)?,
            permit: if class.has_permits { rand::random_range(0..PERMIT_NAMES) } else { 0 },
        };
        let asked = class.client.check(&at, &class.policy, &check).await;
        let (decision, degraded) = self.decide(&class, asked)?;
        if let Outcome::Allowed { wait_us: 1.. } = decision.outcome
            && !class.config.shadow
        {
            self.wait_for_slot(&class, &at, &check, decision).await?;
        }
        let metrics = &class.metrics;
        match decision.outcome {
            Outcome::Allowed { .. } => metrics.allowed.inc(),
            Outcome::Limited { .. } if class.config.shadow => metrics.shadowed.inc(),
            Outcome::Limited { .. } => metrics.limited.inc(),
            Outcome::TooLarge => metrics.failed.inc(),
        }
        Ok(Checked { class, decision, permit: check.permit, degraded })
    }

    /// What the class wants when its store does not answer.
    fn decide(
        &self,
        class: &RateLimitClass,
        asked: Result<Decision, BackendError>,
    ) -> Result<(Decision, bool), Failure> {
        match (asked, class.config.on_backend_failure) {
            (Ok(decision), _) => Ok((decision, false)),
            (Err(error), OnBackendFailure::Open) if error.is_retryable() => {
                class.metrics.degraded.inc();
                let verdicts = [Verdict::default(); MAX_LIMITS];
                let outcome = Outcome::Allowed { wait_us: 0 };
                Ok((Decision { outcome, count: 0, verdicts }, true))
            }
            (Err(error), OnBackendFailure::Open | OnBackendFailure::Closed) => {
                class.metrics.failed.inc();
                Err(error.into())
            }
        }
    }

    /// Waits until the slot that was reserved. A caller that goes away gives it back.
    async fn wait_for_slot(
        &self,
        class: &Arc<RateLimitClass>,
        at: &Address,
        check: &Check,
        decision: Decision,
    ) -> Result<(), Failure> {
        let Outcome::Allowed { wait_us } = decision.outcome else { return Ok(()) };
        let slot = Slot { class, at, check, taken: false };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_micros(wait_us)) => {
                slot.take();
                Ok(())
            }
            () = self.closing.cancelled() => Err(mk_closing()),
        }
    }

    /// What a check would say.
    ///
    /// # Errors
    /// As [`Sidecar::check`].
    pub async fn peek(&self, name: &str, query: &PeekQuery) -> Result<Checked, Failure> {
        let class = self.snapshot.load().rate_limit(name)?.clone();
        let at = self.rate_address(&class, query.key.as_deref(), Verb::Read)?;
        let cost = read_cost(query.cost)?;
        let check = Check { cost, mode: Mode::Peek, max_wait_us: 0, permit: 0 };
        let decision = class.client.check(&at, &class.policy, &check).await?;
        Ok(Checked { class, decision, permit: 0, degraded: false })
    }

    /// Gives back what a check charged.
    ///
    /// # Errors
    /// As [`Sidecar::check`].
    pub async fn refund(&self, name: &str, request: &RefundRequest) -> Result<u64, Failure> {
        let class = self.snapshot.load().rate_limit(name)?.clone();
        let at = self.rate_address(&class, request.key.as_deref(), Verb::Acquire)?;
        let cost = read_cost(request.cost)?;
        let most = class.policy.capacity();
        if cost > most {
            return Err(invalid("cost", &format!("must be at most {most}, as in a check")));
        }
        class.client.refund(&at, &class.policy, cost).await?;
        Ok(cost)
    }

    /// Gives back a permit; whether it was still held.
    ///
    /// # Errors
    /// As [`Sidecar::check`].
    pub async fn release_permit(
        &self,
        name: &str,
        key: Option<&str>,
        permit: Option<&str>,
    ) -> Result<bool, Failure> {
        let class = self.snapshot.load().rate_limit(name)?.clone();
        let at = self.rate_address(&class, key, Verb::Acquire)?;
        let permit = permit.and_then(|text| text.parse().ok()).filter(|name| *name < PERMIT_NAMES);
        let permit =
            permit.ok_or_else(|| invalid("permit", "is required: as check answered it"))?;
        Ok(class.client.release(&at, &class.policy, permit).await?)
    }

    fn rate_address(
        &self,
        class: &RateLimitClass,
        key: Option<&str>,
        verb: Verb,
    ) -> Result<Address, Failure> {
        let key = match key {
            None => Key::default_key(),
            Some(text) => Key::new(text)
                .map_err(|why| Failure::new(Code::InvalidField, format!("key: {why}")))?,
        };
        let account = &self.identity.service_account;
        if !authz::permits(&class.access, account, verb, &key) {
            let why = format!(
                "the access rules of RateLimit \"{}\" do not let ServiceAccount \"{account}\" do \
                 this; see spec.access",
                class.name
            );
            return Err(Failure::new(Code::Forbidden, why));
        }
        let namespace = self.identity.namespace.clone();
        Ok(Address { kind: Kind::RateLimit, namespace, class: class.name.clone(), key })
    }
}

/// A reserved slot: given back when it is dropped before its time.
struct Slot<'a> {
    class: &'a Arc<RateLimitClass>,
    at: &'a Address,
    check: &'a Check,
    taken: bool,
}

impl Slot<'_> {
    fn take(mut self) {
        self.taken = true;
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.taken
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (class, at, check) = (self.class.clone(), self.at.clone(), *self.check);
            runtime.spawn(async move {
                let refunded = class.client.refund(&at, &class.policy, check.cost).await;
                if let Err(error) = refunded {
                    tracing::debug!(%at, %error, "a slot could not be given back");
                }
                if class.has_permits {
                    drop(class.client.release(&at, &class.policy, check.permit).await);
                }
            });
        }
    }
}

fn read_cost(cost: Option<u64>) -> Result<u64, Failure> {
    match cost.unwrap_or(1) {
        0 => Err(invalid("cost", "must be at least 1; GET shows the limits without a charge")),
        cost => Ok(cost.min(PERMIT_NAMES)),
    }
}

fn read_wait(seconds: Option<f64>) -> Result<u64, Failure> {
    match Duration::try_from_secs_f64(seconds.unwrap_or(0.0)) {
        Ok(wait) if wait <= MAX_WAIT => Ok(wait.as_micros() as u64),
        _ => Err(invalid("waitSeconds", "must be from 0 to 60")),
    }
}
