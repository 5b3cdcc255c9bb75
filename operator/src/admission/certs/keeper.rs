//! Keeps the certificates fresh: in the Secret, in the server, and in what the API server trusts.
//!
//! Every replica does the same and none leads. The Secret is written by compare-and-swap on its
//! resourceVersion, so of two that rotate at once one wins and the other reads. A Secret that was
//! deleted is written again from memory, so that what the API server trusts stays true.

use std::{sync::Arc, time::Duration};

use axum_server::tls_rustls::RustlsConfig;
use futures::{Stream, StreamExt};
use holdfast_core::clock::Backoff;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::watcher,
};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Due, Error, Material, Purpose};
use crate::admission::{Clients, Settings, metrics::Metrics};

/// Everything is looked at again at least this often.
const RESYNC: Duration = Duration::from_secs(60);
/// A certificate with less than this share of its life left is replaced even when the API server is
/// not known to trust its successor.
const LAST_TENTH: i64 = 10;

/// The task that keeps the certificates of one replica.
pub struct Keeper {
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    watched_secrets: Api<Secret>,
    watched_configurations: Api<MutatingWebhookConfiguration>,
    secret: String,
    configuration: String,
    purpose: Purpose,
    metrics: Metrics,
}

/// What one look has found.
struct Round {
    material: Material,
    wait: Duration,
}

/// Why a look did not come to its end: the next one may.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("could not read or write the certificates' Secret")]
    Secret(#[source] kube::Error),
    #[error("could not tell the API server what to trust")]
    Configuration(#[source] kube::Error),
    #[error("another replica was faster")]
    Raced,
    #[error(transparent)]
    Certificates(#[from] Error),
}

impl Keeper {
    /// A keeper for the webhook of these settings.
    pub fn new(clients: &Clients, settings: &Settings, metrics: Metrics) -> Self {
        let secrets = |client: &Client| Api::namespaced(client.clone(), &settings.namespace);
        Keeper {
            secrets: secrets(&clients.calls),
            configurations: Api::all(clients.calls.clone()),
            watched_secrets: secrets(&clients.watches),
            watched_configurations: Api::all(clients.watches.clone()),
            secret: settings.secret.clone(),
            configuration: settings.configuration.clone(),
            purpose: Purpose { names: settings.names.clone(), life: settings.certificate_life },
            metrics,
        }
    }

    /// Waits for the first certificate; `None` when `stop` came first.
    ///
    /// # Errors
    /// When no certificate can be made for these names, ever.
    pub async fn first(&self, stop: &CancellationToken) -> Result<Option<RustlsConfig>, Error> {
        let mut backoff = mk_backoff();
        loop {
            let round = tokio::select! {
                round = self.round(None) => round,
                () = stop.cancelled() => return Ok(None),
            };
            match round {
                Ok(round) => {
                    let config = Arc::new(round.material.server_config()?);
                    return Ok(Some(RustlsConfig::from_config(config)));
                }
                Err(Trouble::Certificates(error @ Error::Make { .. })) => return Err(error),
                Err(trouble) => report(&trouble),
            }
            tokio::select! {
                () = sleep(backoff.next_delay()) => {}
                () = stop.cancelled() => return Ok(None),
            }
        }
    }

    /// Keeps them fresh until `stop`.
    ///
    /// # Errors
    /// When no certificate can be made for these names, ever.
    pub async fn keep(&self, tls: RustlsConfig, stop: CancellationToken) -> Result<(), Error> {
        let mut changes = std::pin::pin!(self.changes());
        let mut serving: Option<Material> = None;
        let mut backoff = mk_backoff();
        loop {
            let round = tokio::select! {
                round = self.round(serving.as_ref()) => round,
                () = stop.cancelled() => return Ok(()),
            };
            let wait = match round {
                Ok(Round { material, wait }) => {
                    if serving.as_ref() != Some(&material) {
                        tls.reload_from_config(Arc::new(material.server_config()?));
                        serving = Some(material);
                    }
                    backoff.reset();
                    wait
                }
                Err(Trouble::Certificates(error @ Error::Make { .. })) => return Err(error),
                Err(trouble) => {
                    report(&trouble);
                    backoff.next_delay()
                }
            };
            if let Some(serving) = &serving {
                let left = serving.not_after() - jiff::Timestamp::now().as_second();
                self.metrics.certificate_left_days.set(left as f64 / 86_400.0);
            }
            tokio::select! {
                _ = timeout(wait.min(RESYNC), changes.next()) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// One look at everything: brings the Secret up to date, then what the API server trusts.
    async fn round(&self, serving: Option<&Material>) -> Result<Round, Trouble> {
        let now = jiff::Timestamp::now().as_second();
        let secret = self.secrets.get_opt(&self.secret).await.map_err(Trouble::Secret)?;
        let stored = match secret.as_ref().and_then(|secret| secret.data.as_ref()) {
            Some(data) => match Material::from_data(data) {
                Ok(material) => Some(material),
                Err(error) => {
                    tracing::warn!(%error, secret = self.secret, "certificates are made anew");
                    None
                }
            },
            None => None,
        };
        let Some(stored) = stored else {
            let material = match serving {
                Some(serving) => serving.clone(),
                None => Material::first(&self.purpose, now)?,
            };
            self.write(secret, &material).await?;
            self.trust(&material).await?;
            return Ok(Round { material, wait: Duration::ZERO });
        };
        // Before the rotation: the successor must be trusted before it is served.
        let trusted = self.trust(&stored).await;
        let material = match stored.due(&self.purpose, now) {
            Due::In(wait) => {
                trusted?;
                return Ok(Round { material: stored, wait });
            }
            Due::Now => {
                let left = stored.not_after() - now;
                let life = i64::try_from(self.purpose.life.as_secs()).unwrap_or(i64::MAX);
                if trusted.is_err() && left > life / LAST_TENTH {
                    trusted?;
                }
                stored.rotated(&self.purpose, now)?
            }
        };
        self.write(secret, &material).await?;
        self.metrics.rotations.inc();
        tracing::info!(secret = self.secret, "replaced the webhook's certificates");
        // The successor of the successor is published now, a whole period before it is needed.
        self.trust(&material).await?;
        Ok(Round { material, wait: Duration::ZERO })
    }

    /// Writes the Secret, provided that it is still as it was read.
    async fn write(&self, current: Option<Secret>, material: &Material) -> Result<(), Trouble> {
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let data = Some(material.to_data());
        let result = match current {
            Some(mut secret) => {
                secret.data = data;
                self.secrets.replace(&self.secret, &params, &secret).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.secret.clone()),
                    labels: Some(
                        [("app.kubernetes.io/managed-by".to_owned(), "holdfast".to_owned())].into(),
                    ),
                    ..ObjectMeta::default()
                };
                let secret = Secret { metadata, data, ..Secret::default() };
                self.secrets.create(&params, &secret).await
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                Err(Trouble::Raced)
            }
            Err(error) => Err(Trouble::Secret(error)),
        }
    }

    /// Makes the API server trust the bundle. No configuration means that nobody calls.
    async fn trust(&self, material: &Material) -> Result<(), Trouble> {
        let name = &self.configuration;
        let found = self.configurations.get_opt(name).await.map_err(Trouble::Configuration)?;
        let Some(found) = found else { return Ok(()) };
        let webhooks = found.webhooks.unwrap_or_default();
        let bundle = ByteString(material.bundle.clone().into_bytes());
        let stale =
            |index: &usize| webhooks[*index].client_config.ca_bundle.as_ref() != Some(&bundle);
        let stale: Vec<_> = (0..webhooks.len()).filter(stale).collect();
        if stale.is_empty() {
            return Ok(());
        }
        // Someone may reorder the list in between: then this fails and is done again.
        let version = found.metadata.resource_version;
        let mut ops = vec![json!({
            "op": "test", "path": "/metadata/resourceVersion", "value": version,
        })];
        ops.extend(stale.iter().map(|index| {
            let path = format!("/webhooks/{index}/clientConfig/caBundle");
            json!({ "op": "add", "path": path, "value": bundle })
        }));
        let patch: json_patch::Patch = serde_json::from_value(json!(ops))
            .map_err(|error| Trouble::Configuration(kube::Error::SerdeError(error)))?;
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match self.configurations.patch(name, &params, &Patch::Json::<()>(patch)).await {
            Ok(_) => {
                tracing::info!(configuration = name, "the API server trusts the new bundle");
                Ok(())
            }
            // The test operation failed, or the object was deleted: it changed since it was read.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {
                Err(Trouble::Raced)
            }
            Err(error) => Err(Trouble::Configuration(error)),
        }
    }

    /// Something happens whenever the Secret or the configuration changes.
    fn changes(&self) -> impl Stream<Item = ()> + '_ {
        let named =
            |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let secret =
            watcher(self.watched_secrets.clone(), named(&self.secret)).map(|event| event.map(drop));
        let configuration =
            watcher(self.watched_configurations.clone(), named(&self.configuration))
                .map(|event| event.map(drop));
        // The watchers retry by themselves as they are polled; a pause keeps them from spinning.
        futures::stream::select(secret, configuration).then(|event| async {
            if let Err(error) = event {
                tracing::debug!(%error, "a watch of the certificates was interrupted");
                sleep(Duration::from_secs(1)).await;
            }
        })
    }
}

/// The field manager of what is written here.
const MANAGER: &str = "holdfast-webhook";

fn mk_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

fn report(trouble: &Trouble) {
    let source = std::error::Error::source(trouble).map(ToString::to_string);
    match trouble {
        Trouble::Raced => tracing::debug!("another replica wrote the certificates first"),
        _ => tracing::warn!(error = %trouble, source, "the certificates are looked at again soon"),
    }
}
