//! Transitions that change something: in which epoch each acts, and what it says of its doubt.

use std::{future::Future, sync::atomic::Ordering::Relaxed};

use holdfast_core::{Address, BackendError, lock::Consistency};

use super::RedisLocks;
use crate::redis::{
    epoch::KnownEpoch, keys::ObjectKeys, reply::Reply, request::Call, scripts::Transition,
};

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
        self.in_epoch(consistency, |epoch, mode| {
            let (mut room, runs) = (itoa::Buffer::new(), epoch.runs_of_scripts());
            let number = room.format(epoch.number);
            let common = [&*self.marker, number, &runs, mode, policy, &self.channel_prefix];
            let call = |keys: [&[&str]; 2]| {
                Call::new(self.client.scripts(), transition, keys, [&common, args])
            };
            if epoch.runs.is_empty() {
                return call([keys, &[]]);
            }
            // In a cluster: what is on its way to another server is not acted on.
            let never = ObjectKeys::new(at).never();
            call([keys, &[never.as_str()]])
        })
    }

    /// Does something in the epoch that is known, which is told how sure it is: strict or best effort.
    pub(in crate::redis) fn in_epoch<T>(
        &self,
        consistency: Consistency,
        act: impl FnOnce(&KnownEpoch, &'static str) -> T,
    ) -> Result<T, BackendError> {
        let known = self.epoch.borrow();
        let Some(name) = &self.voter else {
            let (epoch, mode) = KnownEpoch::to_act_in(known.as_ref(), consistency)?;
            return Ok(act(epoch, mode));
        };
        // In doubt it has no vote, whatever its class says.
        let run = known.as_ref().and_then(|known| known.of(name));
        let (epoch, mode) = KnownEpoch::to_act_in(run.as_ref(), Consistency::Strict)?;
        Ok(act(epoch, mode))
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
