//! Requests that nobody waits for any more, cancelled in the store until it answers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use holdfast_core::{
    Address, BackendError, HoldId,
    clock::Backoff,
    lock::{LockBackend, LockConfig},
};
use tokio::time::{Instant, sleep, timeout};

use super::retry_cap;
use crate::hub::lock;

/// For how long a caller is kept waiting while an unknown outcome is settled.
const IN_CALL: Duration = Duration::from_secs(5);
/// And one that would not wait, as long as a call may take.
const ONE_CALL: Duration = Duration::from_secs(1);
/// After so many times to live nothing of a request can be left in a store.
const FOR_TTLS: u32 = 3;

/// How it ended: with the store's answer, or without.
pub(super) type Outcome = Shared<BoxFuture<'static, Result<(), BackendError>>>;

/// What is being settled.
pub(super) struct Settling {
    backend: Arc<dyn LockBackend>,
    of: Mutex<HashMap<HoldId, Begun>>,
}

struct Begun {
    outcome: Outcome,
    /// Why it is not settled yet.
    error: Option<BackendError>,
}

impl Settling {
    pub(super) fn new(backend: Arc<dyn LockBackend>) -> Arc<Self> {
        Arc::new(Settling { backend, of: Mutex::default() })
    }

    /// Cancels a request in the background, until the store answers or nothing of it can be left there.
    /// `None` where there is no runtime any more.
    pub(super) fn begin(
        self: &Arc<Self>,
        at: &Address,
        config: &Arc<LockConfig>,
        hold: &HoldId,
    ) -> Option<Outcome> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let mut of = lock(&self.of);
        if let Some(begun) = of.get(hold) {
            return Some(begun.outcome.clone());
        }
        let (this, at, config, hold) = (self.clone(), at.clone(), config.clone(), hold.clone());
        let name = hold.clone();
        let outcome = async move {
            let outcome = this.cancel(&at, &config, &hold).await;
            lock(&this.of).remove(&hold);
            outcome
        };
        let outcome = outcome.boxed().shared();
        of.insert(name, Begun { outcome: outcome.clone(), error: None });
        runtime.spawn(outcome.clone());
        Some(outcome)
    }

    /// Waits until an earlier try of a request is settled, if it is being so: what the store grants
    /// before that would be taken from its holder, who would not hear of it. For `wait`, but not less
    /// than a call may take, and not for long.
    ///
    /// # Errors
    /// Why it is not settled, when that is over.
    pub(super) async fn before(&self, hold: &HoldId, wait: Duration) -> Result<(), BackendError> {
        let begun = lock(&self.of).get(hold).map(|begun| begun.outcome.clone());
        let Some(begun) = begun else { return Ok(()) };
        if timeout(wait.clamp(ONE_CALL, IN_CALL), begun).await.is_ok() {
            return Ok(());
        }
        let error = lock(&self.of).get(hold).and_then(|begun| begun.error.clone());
        Err(match error {
            // Of the earlier try: of this one nothing was sent.
            Some(BackendError::Unknown(_)) | None => {
                let what = "an earlier try of this request is still being withdrawn; try again";
                BackendError::Unavailable(what.into())
            }
            Some(error) => error,
        })
    }

    /// Waits for the outcome; what takes longer goes on in the background.
    pub(super) async fn in_call(outcome: Outcome) -> Result<(), BackendError> {
        let late = || BackendError::Unknown("the store has not answered yet".into());
        timeout(IN_CALL, outcome).await.unwrap_or_else(|_| Err(late()))
    }

    async fn cancel(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError> {
        let ttl = Duration::from_millis(config.ttl_ms);
        let give_up = Instant::now() + ttl.max(Duration::from_secs(1)) * FOR_TTLS;
        let mut backoff = Backoff::new(Duration::from_millis(20), retry_cap(ttl));
        loop {
            match self.backend.cancel(at, config, hold).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= give_up => {
                    tracing::warn!(%at, %error, "a cancelled request could not be settled");
                    return Err(BackendError::Unknown(error.to_string()));
                }
                Err(error) => {
                    if let Some(begun) = lock(&self.of).get_mut(hold) {
                        begun.error = Some(error);
                    }
                    sleep(backoff.next_delay()).await;
                }
            }
        }
    }
}
