//! Flags that every binary has.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};

/// How to log.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// What to log, in tracing's filter syntax.
    #[arg(long, env = "HOLDFAST_LOG", default_value = "info", global = true)]
    pub log: String,
    /// How to write it.
    #[arg(long, env = "HOLDFAST_LOG_FORMAT", value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// Where the admin server listens.
#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    /// The address of `/livez`, `/readyz` and `/metrics`.
    #[arg(long, env = "HOLDFAST_ADMIN", default_value = "127.0.0.1:4141")]
    pub admin: SocketAddr,
}
