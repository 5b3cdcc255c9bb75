//! What a caller does with rate limits: check, peek, refund, release.

use std::{sync::Arc, time::Duration};

use holdfast_api::bundle::Verb;
use holdfast_core::{
    Address, Key, Kind,
    ratelimit::{Check, Decision, Mode, Outcome, PERMIT_NAMES},
};
use holdfast_wire::{CheckRequest, Code, PeekQuery, RefundRequest};

use tokio::time::Instant;

use super::{MAX_WAIT, Sidecar, mk_closing, terms::invalid};
use crate::{authz, error::Failure, snapshot::RateLimitClass};

/// How often a check that waits for a permit looks again, at first and at last.
const POLL_FIRST: Duration = Duration::from_millis(25);
const POLL_LAST: Duration = Duration::from_millis(500);
/// Those who wait for the same window come back within so much after it begins.
const SPREAD_MS: u64 = 10;

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
    /// How long it waited.
    pub waited: Duration,
    /// Whether it could not wait, because too many did.
    pub crowded: bool,
}

impl Sidecar {
    /// Decides, charges, and waits for the slot.
    ///
    /// # Errors
    /// 403, 404, 422; 503 when the store does not answer and the class is closed then.
    pub async fn check(&self, name: &str, request: &CheckRequest) -> Result<Checked, Failure> {
        let class = self.snapshot.load().rate_limit(name)?.clone();
        self.check_class(class, request).await
    }

    /// The same of a class that was looked up.
    ///
    /// # Errors
    /// As [`Sidecar::check`].
    pub async fn check_class(
        &self,
        class: Arc<RateLimitClass>,
        request: &CheckRequest,
    ) -> Result<Checked, Failure> {
        let at = self.rate_address(&class, request.key.as_deref(), Verb::Acquire)?;
        let cost = read_cost(request.cost)?;
        let check = Check {
            cost,
            least: cost,
            mode: Mode::Enforce,
            max_wait_us: 0,
            permit: if class.has_permits { rand::random_range(0..PERMIT_NAMES) } else { 0 },
        };
        let wait = match class.config.shadow {
            // Nobody is ever refused: nothing to wait for.
            true => Duration::ZERO,
            false => Duration::from_micros(read_wait(request.wait_seconds)?),
        };
        let checked = if wait.is_zero() {
            let (decision, degraded) = self.check_once(&class, &at, &check).await?;
            let waited = Duration::ZERO;
            Checked { class, decision, permit: check.permit, degraded, waited, crowded: false }
        } else {
            Box::pin(self.check_patiently(class, &at, check, wait)).await?
        };
        let Checked { class, decision, .. } = &checked;
        let metrics = &class.metrics;
        match decision.outcome {
            Outcome::Allowed { .. } => metrics.allowed.inc(),
            Outcome::Limited { .. } if class.config.shadow => metrics.shadowed.inc(),
            Outcome::Limited { .. } => metrics.limited.inc(),
            Outcome::TooLarge => metrics.failed.inc(),
        }
        Ok(checked)
    }

    async fn check_once(
        &self,
        class: &RateLimitClass,
        at: &Address,
        check: &Check,
    ) -> Result<(Decision, bool), Failure> {
        let asked = class.client.check(at, &class.plan, check).await;
        let (decision, degraded) = asked.inspect_err(|_| class.metrics.failed.inc())?;
        if degraded {
            class.metrics.degraded.inc();
        }
        Ok((decision, degraded))
    }

    /// Shapes. A token bucket names a slot, which is then ours. The other algorithms have none to
    /// give: the check is asked again when the store said that it could pass.
    async fn check_patiently(
        &self,
        class: Arc<RateLimitClass>,
        at: &Address,
        mut check: Check,
        wait: Duration,
    ) -> Result<Checked, Failure> {
        let began = Instant::now();
        let place = self.wait_slot(&class.metrics.waiting, wait).ok().flatten();
        let patience = if place.is_some() { wait } else { Duration::ZERO };
        let (mut poll, mut slot) = (POLL_FIRST, Duration::ZERO);
        let (decision, degraded) = loop {
            let left = patience.saturating_sub(began.elapsed());
            check.max_wait_us = left.as_micros() as u64;
            let (decision, degraded) = self.check_once(&class, at, &check).await?;
            match decision.outcome {
                Outcome::Allowed { wait_us: 0 } | Outcome::TooLarge => break (decision, degraded),
                Outcome::Allowed { wait_us } => {
                    slot = Duration::from_micros(wait_us);
                    self.wait_for_slot(&class, at, &check, slot).await?;
                    break (decision, degraded);
                }
                Outcome::Limited { retry_us } => {
                    let retry = Duration::from_micros(retry_us);
                    let pause = match class.has_permits {
                        // A permit may be released before it ends, and nobody tells us.
                        true => retry.min(poll),
                        false => retry + Duration::from_millis(rand::random_range(0..SPREAD_MS)),
                    };
                    if pause > left || left.is_zero() {
                        break (decision, degraded);
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.closing.cancelled() => return Err(mk_closing()),
                    }
                    poll = (2 * poll).min(POLL_LAST);
                }
            }
        };
        let waited = match check.max_wait_us {
            0 => Duration::ZERO,
            _ => slot.max(began.elapsed()),
        };
        let crowded = place.is_none();
        Ok(Checked { class, decision, permit: check.permit, degraded, waited, crowded })
    }

    /// Waits until the slot that was reserved. A caller that goes away gives it back.
    async fn wait_for_slot(
        &self,
        class: &Arc<RateLimitClass>,
        at: &Address,
        check: &Check,
        wait: Duration,
    ) -> Result<(), Failure> {
        let slot = Slot { class, at, check, taken: false };
        tokio::select! {
            () = tokio::time::sleep(wait) => {
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
        let check = Check { cost, mode: Mode::Peek, max_wait_us: 0, permit: 0, least: cost };
        let (decision, degraded) = class.client.check(&at, &class.plan, &check).await?;
        let waited = Duration::ZERO;
        Ok(Checked { class, decision, permit: 0, degraded, waited, crowded: false })
    }

    /// Gives back what a check charged.
    ///
    /// # Errors
    /// As [`Sidecar::check`].
    pub async fn refund(&self, name: &str, request: &RefundRequest) -> Result<u64, Failure> {
        let class = self.snapshot.load().rate_limit(name)?.clone();
        let at = self.rate_address(&class, request.key.as_deref(), Verb::Acquire)?;
        let cost = read_cost(request.cost)?;
        let most = class.plan.policy.capacity();
        if cost > most {
            return Err(invalid("cost", &format!("must be at most {most}, as in a check")));
        }
        class.client.refund(&at, &class.plan, cost).await?;
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
        Ok(class.client.release(&at, &class.plan, permit).await?)
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
                let refunded = class.client.refund(&at, &class.plan, check.cost).await;
                if let Err(error) = refunded {
                    tracing::debug!(%at, %error, "a slot could not be given back");
                }
                if class.has_permits {
                    drop(class.client.release(&at, &class.plan, check.permit).await);
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
