//! What a caller does with a hold it has: renew and release.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    BackendError, HoldId, Kind, Stamp,
    clock::Backoff,
    lock::{Release, Renewal},
};
use tokio::time::{Instant, sleep};

use super::{
    Sidecar,
    answers::{mk_ended, usable},
};
use crate::{
    error::Failure,
    holds::{Found, View, ended::End},
};

impl Sidecar {
    /// Renews a hold at its caller's wish.
    ///
    /// # Errors
    /// 410 with how the hold ended; 503 when the store does not answer.
    pub async fn renew(&self, kind: Kind, name: &str, hold: Option<&str>) -> Result<View, Failure> {
        let found = hold.map(|text| self.holds.look_up(text));
        let view = usable(self.held(kind, name, hold, found)?)?;
        let sent = self.clock.now();
        let (class, config) = (&view.class, &view.class.config);
        let renewal = class.client.renew(&view.at, config, &view.hold, view.asks).await;
        // It may have been let go meanwhile.
        if let Found::Live(view) = self.holds.find(&view.hold) {
            usable(view)?;
        }
        match renewal {
            Ok(Renewal::Renewed { ttl }) => {
                class.metrics.renewed.inc();
                let view = self.holds.renewed(&view.hold, sent, view.asks, ttl);
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
        match self.let_go(kind, name, hold)? {
            Some(mut releasing) => releasing.finish().await,
            None => Ok(()),
        }
    }

    /// Takes down that an app is done with a hold, which is to be released then. `None` when it was
    /// released before.
    ///
    /// # Errors
    /// 410 when it had ended otherwise before.
    pub fn let_go(
        self: &Arc<Self>,
        kind: Kind,
        name: &str,
        hold: Option<&str>,
    ) -> Result<Option<Releasing<'_>>, Failure> {
        let found = hold.map(|text| self.holds.let_go(text, kind, name));
        match self.held(kind, name, hold, found) {
            Ok(view) => {
                let now = view.seen;
                Ok(Some(Releasing { sidecar: self, view, now, is_done: false }))
            }
            Err(_) if self.was_released(hold) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// As [`Sidecar::let_go`], of a hold that was live when it was looked at.
    pub(crate) fn let_go_of(self: &Arc<Self>, view: View) -> Releasing<'_> {
        self.holds.releasing(&view.hold);
        Releasing { sidecar: self, view, now: self.clock.now(), is_done: false }
    }

    /// Whether it was held until now; `Err(None)` when it was not. `now` has just been read.
    async fn release_in_store(&self, view: &View, now: Stamp) -> Result<(), Option<BackendError>> {
        if self.closing.is_cancelled() {
            // Who still waits when this process stops is sent away: it goes to another.
            view.heir.close();
        }
        match view.class.client.release(&view.done(), now).await {
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
        while let Err(Some(error)) = self.release_in_store(&view, self.clock.now()).await {
            if Instant::now() >= give_up || !error.is_retryable() {
                tracing::warn!(at = %view.at, %error, "a release did not reach the store");
                view.class.client.give_up(&view.done(), self.clock.now());
                return;
            }
            sleep(backoff.next_delay()).await;
        }
    }
}

/// A hold that its app is done with. The release goes on in the background when this is dropped
/// before the store has answered.
pub struct Releasing<'a> {
    sidecar: &'a Arc<Sidecar>,
    view: View,
    /// When the app said so.
    now: Stamp,
    is_done: bool,
}

impl Releasing<'_> {
    /// Its name.
    pub fn hold(&self) -> &HoldId {
        &self.view.hold
    }

    /// Releases it.
    ///
    /// # Errors
    /// As [`Sidecar::release`].
    pub async fn finish(&mut self) -> Result<(), Failure> {
        let released = self.sidecar.release_in_store(&self.view, self.now).await;
        self.is_done = !matches!(released, Err(Some(_)));
        match released {
            Ok(()) => Ok(()),
            Err(Some(error)) => Err(error.into()),
            // By another release of it.
            Err(None) if self.sidecar.was_released(Some(self.hold().as_str())) => Ok(()),
            Err(None) => Err(self.sidecar.lost(&self.view.hold)),
        }
    }
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        if !self.is_done
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(self.sidecar.clone().release_at_length(self.view.clone()));
        }
    }
}
