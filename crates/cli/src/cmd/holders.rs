//! `holdfast holders`: who holds what, and who waits.

use std::process::ExitCode;

use holdfast_wire::{LockState, Status};

use crate::{
    http::{SidecarArgs, encode},
    output::table,
};

/// Of what.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    sidecar: SidecarArgs,
    /// Only this lock.
    lock: Option<String>,
    /// Only this key of it.
    #[arg(long, requires = "lock")]
    key: Option<String>,
}

/// Prints a table.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let sidecar = args.sidecar.sidecar()?;
    let mut rows = Vec::new();
    match (&args.lock, &args.key) {
        (Some(lock), Some(key)) => {
            let path = format!("/v1/locks/{}?key={}", encode(lock), encode(key));
            rows.push(row(lock, &sidecar.get::<LockState>(&path).await?));
        }
        (lock, _) => {
            let status: Status = sidecar.get("/v1/status").await?;
            let wanted = |name: &str| lock.as_deref().is_none_or(|lock| lock == name);
            rows.extend(
                status.locks.iter().filter(|r| wanted(&r.name)).map(|r| row(&r.name, &r.state)),
            );
        }
    }
    print!("{}", table(&["LOCK", "KEY", "HOLDER", "FENCE", "LEFT", "WAITING"], rows));
    Ok(ExitCode::SUCCESS)
}

fn row(name: &str, state: &LockState) -> Vec<String> {
    let (holder, fence, left) = match &state.holder {
        Some(holder) => {
            let left = format!("{}s", holder.ttl_ms.div_ceil(1_000));
            (holder.pod.clone(), holder.fence.clone(), left)
        }
        None => ("-".into(), state.last_fence.clone().unwrap_or("-".into()), "-".into()),
    };
    vec![name.into(), state.key.clone(), holder, fence, left, state.waiters.to_string()]
}
