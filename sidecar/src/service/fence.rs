//! The fence guard: whether a fence is still the newest of its key.
//!
//! The mark that it is compared with is the store's own: the newest fence that was *granted*. So there
//! is no second state that could be lost, expire or fall behind, and a stale holder is refused as
//! soon as the next one has been granted, before that one has done anything. A hold that was passed on
//! within a pod is known to its new holder a moment before the store knows (docs/design/0009): until
//! then its fence is not let through, so that two never are.

use std::{sync::Arc, time::Duration};

use holdfast_api::bundle::Verb;
use holdfast_core::Fence;
use holdfast_wire::{Code, FenceCheckRequest, FenceCheckResponse, FenceOf};
use tokio::time::sleep;

use super::{Sidecar, terms::invalid};
use crate::{error::Failure, snapshot::LockClass};

/// When it is looked again for a fence that was passed on, in milliseconds after the look before.
const AGAIN_AFTER: [u64; 3] = [2, 10, 50];

impl Sidecar {
    /// Compares a fence with the newest one.
    ///
    /// # Errors
    /// 412 when it is older; 403, 404, 422; 503 when the store does not answer or may have lost
    /// fences, which a resource must take for a refusal.
    pub async fn check_fence(
        &self,
        name: &str,
        request: &FenceCheckRequest,
    ) -> Result<FenceCheckResponse, Failure> {
        let class = self.guarding(name, request.of)?;
        let at = self.address(&class, request.key.as_deref(), Verb::Read)?;
        let fence = request.fence.as_deref().ok_or_else(|| invalid("fence", "is missing"))?;
        let fence: Fence =
            fence.parse().map_err(|why| invalid("fence", &format!("cannot be read: {why}")))?;
        let backend = class.client.backend();
        let mut pauses = AGAIN_AFTER.into_iter();
        let newest = loop {
            let newest = backend.newest_fence(&at, &class.config).await?;
            if backend.fence_of_heir(&at, newest) != Some(fence) {
                break newest;
            }
            let Some(pause) = pauses.next() else {
                let why = format!(
                    "fence {fence} of {} \"{}\" was passed on within a pod, and the store has not \
                     heard of it yet: {newest} is its newest; try again",
                    class.kind, class.name
                );
                return Err(Failure::new(Code::BackendUnavailable, why));
            };
            sleep(Duration::from_millis(pause)).await;
        };
        if fence < newest {
            let why = format!(
                "fence {fence} of {} \"{}\" is stale: {newest} is the newest; whoever sent it must \
                 stop, and acquire again",
                class.kind, class.name
            );
            return Err(Failure::new(Code::Fenced, why));
        }
        Ok(FenceCheckResponse {
            key: at.key.to_string(),
            fence: fence.to_string(),
            newest: newest.to_string(),
        })
    }

    /// The class whose fences guard a resource.
    fn guarding(&self, name: &str, of: Option<FenceOf>) -> Result<Arc<LockClass>, Failure> {
        let snapshot = self.snapshot.load();
        let term = || snapshot.election(name).map(|election| election.term.clone());
        match of {
            Some(FenceOf::Lock) => snapshot.lock(name).cloned(),
            Some(FenceOf::Election) => term(),
            None => match (snapshot.lock(name), term()) {
                (Ok(_), Ok(_)) => {
                    let why =
                        format!("is missing: there are a Lock and a LeaderElection \"{name}\"");
                    Err(invalid("of", &why))
                }
                (_, Ok(term)) => Ok(term),
                (lock, Err(_)) => lock.cloned(),
            },
        }
    }
}
