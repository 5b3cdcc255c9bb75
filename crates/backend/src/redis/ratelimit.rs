//! Rate limits in Redis: encodes a transition's arguments, runs it, decodes its reply. The rules are
//! in `lua/`.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, Guarantee, Substrate,
    ratelimit::{
        Check, Decision, MAX_LIMITS, Mode, Outcome, Policy, RateLimitBackend, Taken, Verdict,
    },
};

use super::{
    client::Client,
    config::RedisConfig,
    keys::ObjectKeys,
    reply::{Reply, unexpected},
    scripts::Transition,
};

/// Rate limits of one namespace in one Redis.
///
/// # Guarantees
/// Those of [`RateLimitBackend`]. Each key is one record, which ends by itself with what it says.
pub struct RedisRateLimits {
    client: Arc<Client>,
    namespace: Arc<str>,
}

impl RedisRateLimits {
    /// Rate limits of `namespace`. Connects when first used.
    ///
    /// # Errors
    /// When the configuration cannot be used at all.
    pub fn connect(config: RedisConfig, namespace: &str) -> Result<Arc<Self>, BackendError> {
        Self::with_client(Arc::new(Client::new(config)), namespace)
    }

    /// As [`RedisRateLimits::connect`], on a client that others use as well.
    ///
    /// # Errors
    /// When its configuration cannot be used at all.
    pub fn with_client(client: Arc<Client>, namespace: &str) -> Result<Arc<Self>, BackendError> {
        client.config().open()?;
        Ok(Arc::new(RedisRateLimits { client, namespace: namespace.into() }))
    }

    fn name(&self, at: &Address) -> Result<String, BackendError> {
        if *at.namespace != *self.namespace {
            let what = format!("{at} is not in namespace \"{}\"", self.namespace);
            return Err(BackendError::NotFound(what));
        }
        Ok(ObjectKeys::new(at).rate())
    }

    fn step<'a>(
        &'a self,
        transition: Transition,
        at: &Address,
        args: &[&str],
    ) -> impl Future<Output = Result<Reply, BackendError>> + Send + use<'a> {
        let call = self.name(at).map(|name| self.client.call(transition, &[&name], args));
        async move { call?.await.map(Reply::new) }
    }
}

#[async_trait]
impl RateLimitBackend for RedisRateLimits {
    fn substrate(&self) -> Substrate {
        Substrate::Redis
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::BestEffort
    }

    async fn check(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        check: &Check,
    ) -> Result<Decision, BackendError> {
        let mode = match check.mode {
            Mode::Enforce => "e",
            Mode::Peek => "p",
        };
        let takes_what_there_is = check.least < check.cost;
        let step = {
            let (cost, wait) = (check.cost.to_string(), check.max_wait_us.to_string());
            let (permit, least) = (check.permit.to_string(), check.least.to_string());
            let args = [policy.token.as_str(), &cost, mode, &wait, &permit, &least];
            let args = if takes_what_there_is { &args[..] } else { &args[..5] };
            self.step(Transition::RatelimitCheck, at, args)
        };
        let mut reply = step.await?;
        let (code, us) = (reply.signed()?, reply.number()?);
        let taken = match takes_what_there_is {
            true => Taken { amount: reply.number()?, at_us: reply.number()? },
            false => Taken::default(),
        };
        let outcome = match code {
            1 => Outcome::Allowed { wait_us: us },
            0 => Outcome::Limited { retry_us: us },
            -1 => Outcome::TooLarge,
            other => return Err(unexpected(other)),
        };
        let (mut verdicts, mut count) = ([Verdict::default(); MAX_LIMITS], 0);
        for verdict in &mut verdicts {
            if reply.is_empty() {
                break;
            }
            *verdict = Verdict {
                remaining: reply.number()?,
                reset_us: reply.number()?,
                wait_us: reply.number()?,
            };
            count += 1;
        }
        Ok(Decision { outcome, count, verdicts, taken })
    }

    async fn refund(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        cost: u64,
    ) -> Result<(), BackendError> {
        let cost = cost.to_string();
        self.step(Transition::RatelimitRefund, at, &[&policy.token, &cost]).await.map(drop)
    }

    async fn put_back(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        taken: Taken,
    ) -> Result<(), BackendError> {
        let (amount, when) = (taken.amount.to_string(), taken.at_us.to_string());
        let args = [policy.token.as_str(), &amount, &when];
        self.step(Transition::RatelimitPutBack, at, &args).await.map(drop)
    }

    async fn release(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        permit: u64,
    ) -> Result<bool, BackendError> {
        let permit = permit.to_string();
        let args = [policy.token.as_str(), &permit];
        Ok(self.step(Transition::RatelimitRelease, at, &args).await?.number()? == 1)
    }

    async fn reset(&self, at: &Address) -> Result<(), BackendError> {
        let name = self.name(at)?;
        // A tenant may not delete, but end what its transitions could end as well.
        let mut command = redis::cmd("PEXPIRE");
        self.client.run_on::<i64>(&name, command.arg(&name).arg(0)).await.map(drop)
    }
}
