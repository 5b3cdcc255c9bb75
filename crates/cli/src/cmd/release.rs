//! `holdfast release`: of a hold by its name, or by force.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use holdfast_wire::{ForceReleaseResponse, ReleaseResponse};

use crate::http::{SidecarArgs, encode};

/// What to release.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    sidecar: SidecarArgs,
    /// The lock.
    lock: String,
    /// The hold, as acquire answered it.
    #[arg(long, conflicts_with = "force")]
    hold: Option<String>,
    /// Take it from whoever has it: the next fence is higher, the holder is told `lost`.
    #[arg(long)]
    force: bool,
    /// With --force: the key, when the lock has more than one.
    #[arg(long, requires = "force")]
    key: Option<String>,
}

const WITHIN: Duration = Duration::from_secs(15);

/// Releases.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (sidecar, lock) = (args.sidecar.sidecar()?, encode(&args.lock));
    if let Some(hold) = &args.hold {
        let path = format!("/v1/locks/{lock}/release?holdId={}", encode(hold));
        sidecar.post::<ReleaseResponse>(&path, WITHIN).await?;
        println!("released");
    } else if args.force {
        let query = args.key.map(|key| format!("?key={}", encode(&key))).unwrap_or_default();
        let path = format!("/v1/locks/{lock}/force-release{query}");
        let taken: ForceReleaseResponse = sidecar.post(&path, WITHIN).await?;
        match taken.taken_from {
            Some(from) => println!("taken from {} (fence {})", from.pod, from.fence),
            None => println!("nobody held it"),
        }
    } else {
        bail!("say what to release: --hold HOLD_ID, or --force to take it from its holder");
    }
    Ok(ExitCode::SUCCESS)
}
