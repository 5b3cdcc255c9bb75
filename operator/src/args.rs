//! The operator's flags; each has an environment variable, for the chart.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use holdfast_core::ClassName;
use holdfast_runtime::args::LogArgs;

use crate::{admission::WebhookArgs, cleanup::CleanupArgs};

/// Reconciles Holdfast's classes and backends, and injects sidecars.
#[derive(Clone, Debug, Parser)]
#[command(name = "holdfast-operator", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Runs the operator until it is told to stop.
    Run(Box<RunArgs>),
    /// Prints the custom resource definitions, or writes them to files.
    Crd {
        /// The directory to write one file per definition to.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Takes down what needs the operator, before an uninstall.
    Cleanup(CleanupArgs),
}

/// How to run.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// The name of this pod.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// The namespace of this pod.
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: String,
    /// The address of `/livez`, `/readyz` and `/metrics`.
    #[arg(long, env = "HOLDFAST_ADMIN", default_value = "0.0.0.0:8080")]
    pub admin: SocketAddr,
    /// Whether to inject sidecars: serve the webhook and keep its certificates.
    #[arg(long, env = "HOLDFAST_WEBHOOK", default_value_t = true, action = clap::ArgAction::Set)]
    pub webhook: bool,
    /// The webhook.
    #[command(flatten)]
    pub admission: WebhookArgs,
    /// The election and the controllers.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// How the leader works.
#[derive(Clone, Debug, clap::Args)]
pub struct ControlArgs {
    /// The name of the election among the replicas.
    #[arg(long, env = "HOLDFAST_ELECTION", default_value = "holdfast-operator",
          value_parser = parse_class)]
    pub election: ClassName,
    /// For how many seconds a replica leads without a renewal.
    #[arg(long, env = "HOLDFAST_ELECTION_SECONDS", default_value_t = 15,
          value_parser = clap::value_parser!(u64).range(1..=300))]
    pub election_seconds: u64,
    /// How often each Redis is looked at, in milliseconds.
    #[arg(long, env = "HOLDFAST_PROBE_MS", default_value_t = 2_000,
          value_parser = clap::value_parser!(u64).range(100..=60_000))]
    pub probe_ms: u64,
    /// After how many hours the Redis passwords of namespaces change; 0 for never. The old ones are good
    /// for an hour more.
    #[arg(long, env = "HOLDFAST_ROTATE_PASSWORDS_HOURS", default_value_t = 720,
          value_parser = parse_rotation)]
    pub rotate_passwords_hours: u64,
    /// For how many seconds the deletion of a class waits for a Redis that is away.
    #[arg(long, env = "HOLDFAST_LET_GO_SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub let_go_seconds: u64,
    /// For how many seconds at least the hold of a pod lasts while no operator renews it.
    #[arg(long, env = "HOLDFAST_POD_HOLD_SECONDS", default_value_t = 300,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub pod_hold_seconds: u64,
}

impl ControlArgs {
    /// How often each Redis is looked at.
    pub fn probe_every(&self) -> Duration {
        Duration::from_millis(self.probe_ms)
    }

    /// How often the Redis passwords of namespaces change; zero for never.
    pub fn rotate_every(&self) -> Duration {
        Duration::from_secs(self.rotate_passwords_hours * 3_600)
    }

    /// For how long a deletion waits for a store that is away.
    pub fn let_go_after(&self) -> Duration {
        Duration::from_secs(self.let_go_seconds)
    }
}

/// The old passwords are good for an hour: a rotation must be over before the next begins.
fn parse_rotation(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(hours) if hours == 0 || (2..=87_600).contains(&hours) => Ok(hours),
        _ => Err("must be 0 (never) or 2 to 87600 hours".into()),
    }
}

fn parse_class(text: &str) -> Result<ClassName, String> {
    ClassName::new(text).map_err(|error| error.to_string())
}
