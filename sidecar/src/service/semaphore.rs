//! Permits: acquired as a lock is, in holds of different weight.

use holdfast_api::bundle::Verb;
use holdfast_core::{
    Fence, Key,
    lock::{HolderView, Which},
};
use holdfast_wire::{Code, PermitsRequest, SemaphoreState};

use super::{
    Sidecar, Wanted,
    answers::{mk_closing, mk_semaphore_state},
    terms::{Terms, invalid},
};
use crate::{error::Failure, holds::View};

impl Sidecar {
    /// Acquires permits.
    ///
    /// # Errors
    /// Everything that can be wrong with a request or a store, see [`Code`].
    pub async fn acquire_permits(
        &self,
        name: &str,
        request: PermitsRequest,
    ) -> Result<View, Failure> {
        if self.closing.is_cancelled() {
            return Err(mk_closing());
        }
        let class = self.snapshot.load().semaphore(name)?.clone();
        let permits = match request.permits {
            Some(0) => return Err(invalid("permits", "must be at least 1")),
            permits => permits.unwrap_or(1),
        };
        let request = request.into_lock();
        let at = self.address(&class, request.key.as_deref(), Verb::Acquire)?;
        let terms = Terms { permits, ..Terms::read(&request, &class, self.identity.in_pod)? };
        let place = self.wait_slot(&class.metrics.waiting, terms.wait)?;
        self.acquire_wanted(Wanted { class, at, terms, _place: place }).await
    }

    /// The state of a key.
    ///
    /// # Errors
    /// 403, 404, or those of the store.
    pub async fn permits(&self, name: &str, key: Option<&str>) -> Result<SemaphoreState, Failure> {
        let class = self.snapshot.load().semaphore(name)?.clone();
        let at = self.address(&class, key, Verb::Read)?;
        let view = class.client.backend().query(&at, &class.config).await?;
        Ok(mk_semaphore_state(&at.key, class.config.permits, view))
    }

    /// Takes the hold with a fence, or every hold of a key.
    ///
    /// # Errors
    /// 403 unless the class's access rules permit it by name.
    pub async fn force_permits(
        &self,
        name: &str,
        key: Option<&str>,
        fence: Option<&str>,
    ) -> Result<(Key, Vec<HolderView>), Failure> {
        let class = self.snapshot.load().semaphore(name)?.clone();
        let at = self.address(&class, key, Verb::ForceRelease)?;
        let one = fence.map(str::parse::<Fence>).transpose();
        let one = one.map_err(|why| Failure::new(Code::InvalidField, format!("fence: {why}")))?;
        let which = one.map_or(Which::All, Which::One);
        let backend = class.client.backend();
        let taken = backend.force_release_holds(&at, &class.config, which).await?;
        for from in &taken {
            tracing::info!(%at, holder = %from.holder, fence = %from.fence, "taken by force");
        }
        Ok((at.key, taken))
    }
}
