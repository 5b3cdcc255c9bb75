//! The flags of `holdfast-sidecar`; each has an environment variable, for the pod template.

use std::path::PathBuf;

use clap::Parser;
use holdfast_runtime::args::{AdminArgs, LogArgs};

use crate::serve::Listen;

/// Serves the classes of this pod's namespace on localhost.
#[derive(Clone, Debug, Parser)]
#[command(name = "holdfast-sidecar", version)]
pub struct Args {
    /// Where to serve: an address of the loopback interface, or `unix:/path`. May be repeated.
    #[arg(long, env = "HOLDFAST_LISTEN", value_delimiter = ',', default_value = "127.0.0.1:4140")]
    pub listen: Vec<Listen>,
    /// The namespace whose classes are served.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// The pod's name: what others see as the holder.
    #[arg(long, env = "POD_NAME")]
    pub pod: String,
    /// The pod's ServiceAccount, for the classes' access rules.
    #[arg(long, env = "POD_SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// The LeaderElections that this pod stands in from its start on, separated by commas.
    #[arg(long, env = "HOLDFAST_CANDIDATE", default_value = "", hide_default_value = true)]
    pub candidate: String,
    /// Where the Redis credentials of the namespace are mounted.
    #[arg(long, env = "HOLDFAST_REDIS_CREDENTIALS", default_value = "/etc/holdfast/redis")]
    pub redis_credentials: PathBuf,
    /// A directory that outlives a crash of this container: the holds and the last good bundle are
    /// kept there. Nobody else may read it.
    #[arg(long, env = "HOLDFAST_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// The admin server.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
}
