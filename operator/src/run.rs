//! Wiring: logs, credentials, election, webhook, controllers, admin server; and their end.
//!
//! The webhook is served by every replica, the controllers run on the one that leads. A vital task
//! that ends takes the process with it: a replica that does half of its work helps nobody.

use std::{future::Future, path::Path, time::Duration};

use anyhow::Context as _;
use holdfast_api::crd::all_crds;
use holdfast_core::Holder;
use holdfast_runtime::{Readiness, admin, log, shutdown};
use kube::{Client, Config};
use prometheus::{Registry, process_collector::ProcessCollector};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    admission,
    args::{Args, Command, RunArgs},
    cleanup, controllers, leader,
    metrics::Metrics,
};

/// What readiness waits for.
const API_SERVER: &str = "the API server";
/// For how long the API server may take to answer a call.
const CALL: Duration = Duration::from_secs(10);
/// For how long tasks may take to end.
const DRAIN: Duration = Duration::from_secs(20);

/// Does what the command line says.
///
/// # Errors
/// The first thing that cannot be done, as a sentence.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if let Command::Crd { out } = &args.command {
        return crds(out.as_deref());
    }
    log::init(&args.log)?;
    // Two of our libraries may each bring a provider of cryptography: this one it is.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::infer().await.context("no credentials for an API server")?;
    match args.command {
        Command::Run(args) => operate(*args, config).await,
        Command::Cleanup(args) => cleanup::run(calls(&config)?, &args).await,
        Command::Crd { out } => crds(out.as_deref()),
    }
}

/// Prints the definitions, or writes each to its file.
fn crds(out: Option<&Path>) -> anyhow::Result<()> {
    for (file, crd) in all_crds() {
        let yaml = serde_saphyr::to_string(&crd).with_context(|| format!("cannot write {file}"))?;
        match out {
            Some(dir) => std::fs::write(dir.join(file), yaml)
                .with_context(|| format!("cannot write {}", dir.join(file).display()))?,
            None => print!("---\n{yaml}"),
        }
    }
    Ok(())
}

/// A client whose calls end: kube's own would retry for minutes, and read for ever.
fn calls(config: &Config) -> anyhow::Result<Client> {
    let mut config = config.clone();
    config.default_retry = false;
    config.connect_timeout = Some(CALL);
    config.read_timeout = Some(CALL);
    config.write_timeout = Some(CALL);
    Client::try_from(config).context("cannot build an API client")
}

/// A client for watches, which must not end for want of news.
fn watches(config: &Config) -> anyhow::Result<Client> {
    let mut config = config.clone();
    config.default_retry = false;
    config.connect_timeout = Some(CALL);
    Client::try_from(config).context("cannot build an API client")
}

async fn operate(args: RunArgs, config: Config) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self()))?;
    let metrics = Metrics::register(&registry)?;
    let readiness = Readiness::waiting_for([API_SERVER]);
    let listener = TcpListener::bind(args.admin)
        .await
        .with_context(|| format!("cannot listen on {}: choose another with --admin", args.admin))?;
    let admin = admin::serve(listener, registry.clone(), readiness.clone(), stop.clone());

    let client = calls(&config)?;
    let settings = leader::Settings {
        namespace: args.pod_namespace.clone(),
        name: args.control.election.clone(),
        identity: Holder::new(&args.pod_name)
            .with_context(|| format!("\"{}\" cannot be the name of a pod", args.pod_name))?,
        duration: Duration::from_secs(args.control.election_seconds),
    };
    let (leads, election) = leader::start(client.clone(), &config, settings, stop.clone())?;

    let mut tasks = JoinSet::new();
    vital(&mut tasks, "the admin server", &stop, admin);
    if args.webhook {
        let metrics = admission::Metrics::register(&registry)?;
        let settings = args.admission.settings(&args.pod_namespace);
        let clients = admission::Clients { calls: client.clone(), watches: watches(&config)? };
        let webhook = admission::run(clients, settings, metrics, leads.clone(), stop.clone());
        vital(&mut tasks, "the webhook", &stop, async { Ok(webhook.await?) });
    }
    let work = controllers::Work {
        client: client.clone(),
        config,
        namespace: args.pod_namespace.clone(),
        instance: args.pod_name.clone(),
        args: args.control.clone(),
        metrics,
    };
    vital(&mut tasks, "the controllers", &stop, controllers::run(work, leads, stop.clone()));
    vital(&mut tasks, "the API server's answer", &stop, reach(client, readiness, stop.clone()));
    // Last: it hands leadership over once the tasks above have let go of it.
    vital(&mut tasks, "the election", &stop, async { Ok(election.await?) });
    finish(tasks, stop).await
}

/// Runs a task whose end, before anybody asked for it, ends the process.
fn vital(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    what: &'static str,
    stop: &CancellationToken,
    task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    let stop = stop.clone();
    tasks.spawn(async move {
        let ended = task.await.with_context(|| format!("{what} failed"));
        if ended.is_ok() && !stop.is_cancelled() {
            anyhow::bail!("{what} ended unasked");
        }
        ended
    });
}

/// Waits for the first failure or for all to end.
async fn finish(
    mut tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    loop {
        let next = match stop.is_cancelled() {
            true => match timeout(DRAIN, tasks.join_next()).await {
                Ok(next) => next,
                Err(_) => anyhow::bail!("some tasks did not end within {DRAIN:?}"),
            },
            false => tasks.join_next().await,
        };
        let Some(ended) = next else { return result };
        if let Err(error) = ended.context("a task panicked").and_then(|ended| ended) {
            tracing::error!(error = format!("{error:#}"), "stopping");
            stop.cancel();
            result = result.and(Err(error));
        }
    }
}

/// Notes when the API server has answered for the first time. Later absences do not matter to
/// readiness: a webhook that answers is better than none.
async fn reach(
    client: Client,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut backoff =
        holdfast_core::clock::Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match client.apiserver_version().await {
            Ok(version) => {
                tracing::info!(version = version.git_version, "reached the API server");
                readiness.set(API_SERVER, true);
                stop.cancelled().await;
                return Ok(());
            }
            Err(error) => tracing::warn!(%error, "the API server does not answer yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}
