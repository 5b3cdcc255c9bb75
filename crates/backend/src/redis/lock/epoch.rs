//! Transitions that change something: in which epoch each acts, and what it says of its doubt.

use std::{future::Future, sync::atomic::Ordering::Relaxed};

use holdfast_core::{Address, BackendError, lock::Consistency};

use super::RedisLocks;
use crate::redis::{client::Call, epoch::KnownEpoch, reply::Reply, scripts::Transition};

impl RedisLocks {
    /// As [`RedisLocks::step`], for whatever has sessions, queues and fences of this kind.
    pub(in crate::redis) fn run<'a>(
        &'a self,
        (transition, consistency): (Transition, Consistency),
        at: &'a Address,
        policy: &str,
        keys: &[&str],
        args: &[&str],
    ) -> impl Future<Output = Result<Reply, BackendError>> + Send + use<'a> {
        let call = self.write_down((transition, consistency), at, policy, keys, args);
        async move {
            let reply = match (&self.acked, transition) {
                // Boxed, so that the others do not carry its state about.
                (Some(acked), Transition::LockAcquire | Transition::SemaphoreAcquire) => {
                    Box::pin(acked.perform(call?)).await
                }
                _ => self.client.perform(call?).await,
            };
            let mut reply = Reply::new(reply.inspect_err(|error| {
                if *error == BackendError::Epoch {
                    tracing::debug!(%at, "the store's epoch is not the one known");
                }
            })?);
            self.note_doubt(reply.number()? > 0, at);
            Ok(reply)
        }
    }

    fn write_down(
        &self,
        (transition, consistency): (Transition, Consistency),
        at: &Address,
        policy: &str,
        keys: &[&str],
        args: &[&str],
    ) -> Result<Call, BackendError> {
        if *at.namespace != *self.namespace {
            let what = format!("{at} is not in namespace \"{}\"", self.namespace);
            return Err(BackendError::NotFound(what));
        }
        let known = self.epoch.borrow();
        let (epoch, mode) = acts_in(known.as_ref(), consistency)?;
        let number = epoch.number.to_string();
        let mut all = Vec::with_capacity(6 + args.len());
        all.extend([&*self.marker, &number, &epoch.replid, mode, policy, &self.channel_prefix]);
        all.extend(args);
        Ok(Call::new(self.client.scripts(), transition, keys, &all))
    }

    /// Says once when a doubt begins and once when it ends.
    fn note_doubt(&self, doubt: bool, at: &Address) {
        if self.in_doubt.swap(doubt, Relaxed) != doubt {
            if doubt {
                tracing::warn!(%at,
                    "the store may have lost holds; a best-effort class goes on granting");
            } else {
                tracing::info!("the store's epoch is sure again");
            }
        }
    }
}

/// The epoch to act in, and how sure to be of it.
pub(super) fn acts_in(
    known: Option<&KnownEpoch>,
    consistency: Consistency,
) -> Result<(&KnownEpoch, &'static str), BackendError> {
    match (consistency, known) {
        // Without a number there is no fence, however little is asked.
        (_, None) => Err(BackendError::Epoch),
        (Consistency::Strict, Some(epoch)) if !epoch.open => Err(BackendError::Epoch),
        (Consistency::Strict, Some(epoch)) => Ok((epoch, "s")),
        (Consistency::BestEffort, Some(epoch)) => Ok((epoch, "b")),
    }
}
