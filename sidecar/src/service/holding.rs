//! What a caller does with a hold it has: renew and release.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    BackendError, Kind,
    clock::Backoff,
    lock::{Release, Renewal},
};
use tokio::time::{Instant, sleep};

use super::{Sidecar, answers::mk_ended};
use crate::{
    error::Failure,
    holds::{View, ended::End},
};

impl Sidecar {
    /// Renews a hold at its caller's wish.
    ///
    /// # Errors
    /// 410 with how the hold ended; 503 when the store does not answer.
    pub async fn renew(&self, kind: Kind, name: &str, hold: Option<&str>) -> Result<View, Failure> {
        let view = self.held(kind, name, hold)?;
        let sent = self.clock.now();
        let (class, config) = (&view.class, &view.class.config);
        let renewal = class.client.backend().renew(&view.at, config, &view.hold, view.asked).await;
        match renewal {
            Ok(Renewal::Renewed { ttl }) => {
                class.metrics.renewed.inc();
                let view = self.holds.renewed(&view.hold, sent, ttl);
                view.ok_or_else(|| mk_ended(End::Expired))
            }
            Ok(Renewal::Lost) => {
                self.holds.end(&view.hold, End::Expired);
                Err(self.lost(&view.hold))
            }
            Err(error) => {
                class.metrics.renewal_failed.inc();
                Err(error.into())
            }
        }
    }

    /// Releases a hold. A second release is no error.
    ///
    /// # Errors
    /// 410 when it had ended otherwise before; 503 when the store does not answer. Then the release
    /// goes on in the background: the app has said that it is done.
    pub async fn release(
        self: &Arc<Self>,
        kind: Kind,
        name: &str,
        hold: Option<&str>,
    ) -> Result<(), Failure> {
        let view = match self.held(kind, name, hold) {
            Ok(view) => view,
            Err(_) if self.was_released(hold) => return Ok(()),
            Err(failure) => return Err(failure),
        };
        self.release_view(&view).await
    }

    /// Releases a hold that was live a moment ago.
    pub(crate) async fn release_view(self: &Arc<Self>, view: &View) -> Result<(), Failure> {
        self.holds.releasing(&view.hold);
        let unfinished = Unfinished { sidecar: self, view: Some(view) };
        let released = self.release_in_store(view).await;
        match released {
            Ok(()) => {
                unfinished.done();
                Ok(())
            }
            Err(Some(error)) => Err(error.into()),
            Err(None) => {
                unfinished.done();
                Err(self.lost(&view.hold))
            }
        }
    }

    /// Whether it was held until now; `Err(None)` when it was not.
    async fn release_in_store(&self, view: &View) -> Result<(), Option<BackendError>> {
        let class = &view.class;
        match class.client.backend().release(&view.at, &class.config, &view.hold).await {
            Ok(Release::Released) => {
                self.holds.released(view);
                Ok(())
            }
            Ok(Release::NotHeld) => {
                self.holds.end(&view.hold, End::Expired);
                Err(None)
            }
            Err(error) => Err(Some(error)),
        }
    }

    /// Releases until the store has answered or the hold has run out.
    pub async fn release_at_length(self: Arc<Self>, view: View) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let give_up = Instant::now() + view.left + Duration::from_secs(1);
        while let Err(Some(error)) = self.release_in_store(&view).await {
            if Instant::now() >= give_up || !error.is_retryable() {
                tracing::warn!(at = %view.at, %error, "a release did not reach the store");
                return;
            }
            sleep(backoff.next_delay()).await;
        }
    }
}

/// A release whose answer is not there yet: goes on in the background when it is dropped.
struct Unfinished<'a> {
    sidecar: &'a Arc<Sidecar>,
    view: Option<&'a View>,
}

impl Unfinished<'_> {
    fn done(mut self) {
        self.view = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(view) = self.view
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(self.sidecar.clone().release_at_length(view.clone()));
        }
    }
}
