//! The bundle: one object, watched by name, and its last good text kept for when nobody can be asked.
//!
//! One GET, then one watch from there: an idle pod costs the API server one watch and no request. A
//! bundle that cannot be read, or is of a newer format, is counted and skipped; what was good stays
//! in use. So it does while the API server is away, and after a restart of this container.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use futures::TryStreamExt;
use holdfast_api::bundle::{BUNDLE_CONFIG_MAP, BUNDLE_FORMAT, BUNDLE_KEY, Bundle};
use holdfast_core::clock::Backoff;
use holdfast_runtime::Readiness;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{WatchEvent, WatchParams},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    service::Sidecar,
    snapshot::{Connect, Snapshot},
};

/// What readiness calls it.
pub const BUNDLE: &str = "the bundle of this namespace";
/// How long the API server keeps a watch open.
const WATCH_SECONDS: u32 = 290;
/// A watch that is not there by then is asked for again.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Takes bundles into use.
pub struct Bundles {
    sidecar: Arc<Sidecar>,
    connect: Arc<dyn Connect>,
    readiness: Readiness,
    /// Where the last good one is kept.
    kept: Option<PathBuf>,
}

impl Bundles {
    /// For a sidecar; `kept` is where the last good bundle is kept.
    pub fn new(
        sidecar: Arc<Sidecar>,
        connect: Arc<dyn Connect>,
        readiness: Readiness,
        kept: Option<PathBuf>,
    ) -> Self {
        readiness.set(BUNDLE, false);
        Bundles { sidecar, connect, readiness, kept }
    }

    /// Takes a bundle into use.
    pub fn apply(&self, bundle: &Bundle) {
        let hash = &self.sidecar.snapshot.load().hash;
        if *hash != bundle.hash {
            let snapshot = Snapshot::new(bundle, &*self.connect, &self.sidecar.metrics);
            tracing::info!(hash = bundle.hash, classes = bundle.classes.len(), "a new bundle");
            self.sidecar.snapshot.store(Arc::new(snapshot));
            let snapshot = self.sidecar.snapshot.load();
            self.sidecar.elections.look_again(&snapshot);
            self.sidecar.holds.keep_to(&snapshot);
            self.sidecar.metrics.bundles.inc();
        }
        self.readiness.set(BUNDLE, true);
    }

    /// Takes the text of a bundle into use, if it can be read.
    pub fn take(&self, text: &str) {
        match parse(text) {
            Ok(bundle) => {
                self.apply(&bundle);
                self.keep(text);
            }
            Err(error) => {
                self.sidecar.metrics.bad_bundles.inc();
                tracing::warn!(error = format!("{error:#}"), "the last good bundle stays in use");
            }
        }
    }

    /// Takes the bundle that was kept by an earlier run of this container.
    pub fn recall(&self) {
        let Some(path) = &self.kept else { return };
        if let Ok(text) = std::fs::read_to_string(path) {
            self.take(&text);
        }
    }

    fn keep(&self, text: &str) {
        let Some(path) = &self.kept else { return };
        let new = path.with_extension("new");
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path));
        if let Err(error) = written {
            tracing::warn!(%error, "cannot keep the bundle for a restart of this container");
        }
    }

    /// Watches until the token is cancelled.
    pub async fn watch(self, client: Client, stop: CancellationToken) {
        let namespace = self.sidecar.identity.namespace.to_string();
        let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        loop {
            let followed = tokio::select! {
                followed = self.follow(&api, &mut backoff) => followed,
                () = stop.cancelled() => return,
            };
            let error = followed.err().unwrap_or_else(|| anyhow::anyhow!("the watch ended"));
            tracing::debug!(error = format!("{error:#}"), "the bundle is not being watched");
            tokio::select! {
                () = sleep(backoff.next_delay()) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Reads the bundle and follows it; an end of the watch by its time limit is no error.
    async fn follow(&self, api: &Api<ConfigMap>, backoff: &mut Backoff) -> anyhow::Result<()> {
        let read = timeout(ANSWER_WITHIN, api.get_opt(BUNDLE_CONFIG_MAP)).await;
        let mut version = match read.context("no answer")?.context("cannot read the bundle")? {
            Some(map) => self.seen(&map),
            None => {
                // Nothing is declared in this namespace; an empty version watches from now on.
                self.readiness.set(BUNDLE, true);
                String::new()
            }
        };
        backoff.reset();
        loop {
            let params = WatchParams {
                bookmarks: true,
                ..WatchParams::default()
                    .fields(&format!("metadata.name={BUNDLE_CONFIG_MAP}"))
                    .timeout(WATCH_SECONDS)
            };
            let stream = timeout(ANSWER_WITHIN, api.watch(&params, &version)).await;
            let mut events = Box::pin(stream.context("no answer")?.context("cannot watch")?);
            while let Some(event) = events.try_next().await.context("the watch broke")? {
                match event {
                    WatchEvent::Added(map) | WatchEvent::Modified(map) => version = self.seen(&map),
                    WatchEvent::Bookmark(mark) => version = mark.metadata.resource_version,
                    // Deleted by hand, or with the operator: the last good one stays in use.
                    WatchEvent::Deleted(_) => tracing::warn!("the bundle was deleted"),
                    WatchEvent::Error(status) => anyhow::bail!("{}", status.message),
                }
            }
        }
    }

    fn seen(&self, map: &ConfigMap) -> String {
        match map.data.as_ref().and_then(|data| data.get(BUNDLE_KEY)) {
            Some(text) => self.take(text),
            None => self.sidecar.metrics.bad_bundles.inc(),
        }
        map.metadata.resource_version.clone().unwrap_or_default()
    }
}

fn parse(text: &str) -> anyhow::Result<Bundle> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let Version { format } = serde_json::from_str(text).context("the bundle is not readable")?;
    ensure!(
        format == BUNDLE_FORMAT,
        "the bundle has format {format}; this sidecar reads {BUNDLE_FORMAT}"
    );
    serde_json::from_str(text).context("the bundle is not readable")
}
