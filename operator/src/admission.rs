//! The mutating webhook that puts a sidecar into pods, and holds pods at a scheduling gate: decisions,
//! server, certificates, Events.
//!
//! - [`inject`] and [`hold`] decide, purely. [`server`] answers the API server with it, on every replica.
//! - [`certs`] makes the certificates and keeps them fresh: no cert-manager, no restart, no gap.
//! - [`skipped`] tells every pod that asked and got no sidecar why, by an Event (leader only).
//!
//! The webhook is selected by label or annotation, so the API server calls it for no other pod; apps
//! that run never need it. [`run`] is the one entry.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use args::WebhookArgs;
pub use inject::InjectSettings;
pub use metrics::Metrics;

pub mod args;
pub mod certs;
pub mod hold;
pub mod inject;
pub mod metrics;
pub mod server;
pub mod skipped;

/// What the operator's flags say about admission.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen for the API server.
    pub listen: SocketAddr,
    /// The namespace of the operator.
    pub namespace: String,
    /// The names that the API server calls the webhook by: `SERVICE.NAMESPACE.svc`, or an address.
    pub names: Vec<String>,
    /// The Secret in which the replicas share the certificates.
    pub secret: String,
    /// The MutatingWebhookConfiguration whose `caBundle` is ours.
    pub configuration: String,
    /// For how long a serving certificate is valid; it is replaced after two thirds of it.
    pub certificate_life: Duration,
    /// What is injected.
    pub inject: InjectSettings,
}

/// Why admission ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port cannot be listened on.
    #[error("could not listen on \"{0}\" for the API server")]
    Listen(SocketAddr, #[source] io::Error),
    /// The server stopped by itself.
    #[error("the webhook's server failed")]
    Serve(#[source] io::Error),
    /// The certificates could not be made.
    #[error(transparent)]
    Certificates(#[from] certs::Error),
}

/// How the API server is reached.
pub struct Clients {
    /// For calls: they end in time.
    pub calls: Client,
    /// For watches: they do not end for want of news.
    pub watches: Client,
}

/// Serves the webhook, keeps its certificates fresh and explains skipped pods, until `stop`.
///
/// `leader` gates only the Events: the webhook is served on every replica.
///
/// # Errors
/// When it cannot listen, or cannot make certificates. A store that is away is waited for.
pub async fn run(
    clients: Clients,
    settings: Settings,
    metrics: Metrics,
    leader: watch::Receiver<bool>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let listen = settings.listen;
    let listener = std::net::TcpListener::bind(listen).map_err(|e| Error::Listen(listen, e))?;
    let inject = Arc::new(settings.inject.clone());
    let keeper = certs::Keeper::new(&clients, &settings, metrics.clone());
    // Nothing is answered before there is a certificate that the API server can trust.
    let Some(tls) = keeper.first(&stop).await? else { return Ok(()) };
    let events = skipped::explain(clients, inject.clone(), leader, stop.clone());
    let serve = server::serve(listener, tls.clone(), inject, metrics, stop.clone());
    let keep = keeper.keep(tls, stop);
    let (served, kept, ()) = tokio::join!(serve, keep, events);
    served.map_err(Error::Serve)?;
    Ok(kept?)
}
