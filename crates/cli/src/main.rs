//! `holdfast`: locks from the command line, and the whole product on one machine.

mod cmd;
mod files;
mod http;
mod output;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use holdfast_runtime::{args::LogArgs, log};

/// Coordination as a Kubernetes API, from the command line.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve classes from YAML files on localhost: no cluster needed.
    Dev(cmd::dev::Args),
    /// Run a command while holding a lock.
    Run(cmd::run::Args),
    /// Check YAML files without a cluster.
    Lint(cmd::lint::Args),
    /// List the classes that a sidecar serves.
    Ls(cmd::ls::Args),
    /// Show who holds what, and who waits.
    Holders(cmd::holders::Args),
    /// Release a hold, or take a lock from its holder.
    Release(cmd::release::Args),
    /// Explain a problem code.
    Explain(cmd::explain::Args),
    /// How `run` starts its command: not for people.
    #[command(hide = true, name = "exec-with-parent")]
    ExecWithParent(cmd::run::child::ExecArgs),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = log::init(&cli.log) {
        return output::fail(&error);
    }
    let ended = match cli.command {
        Command::Dev(args) => cmd::dev::run(args).await,
        Command::Run(args) => cmd::run::run(args).await,
        Command::Lint(args) => cmd::lint::run(&args),
        Command::Ls(args) => cmd::ls::run(args).await,
        Command::Holders(args) => cmd::holders::run(args).await,
        Command::Release(args) => cmd::release::run(args).await,
        Command::Explain(args) => cmd::explain::run(&args),
        Command::ExecWithParent(args) => cmd::run::child::exec(&args),
    };
    ended.unwrap_or_else(|error| output::fail(&error))
}
