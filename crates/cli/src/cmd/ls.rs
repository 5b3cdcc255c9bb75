//! `holdfast ls`: the classes that a sidecar serves.

use std::process::ExitCode;

use holdfast_wire::Catalogue;

use crate::{http::SidecarArgs, output::table};

/// Whose.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    sidecar: SidecarArgs,
}

/// Prints a table.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let all: Catalogue = args.sidecar.sidecar()?.get("/v1").await?;
    let rows =
        all.classes.into_iter().map(|c| vec![c.kind, c.name, c.backend, c.guarantee, c.path]);
    print!("{}", table(&["KIND", "NAME", "BACKEND", "GUARANTEE", "PATH"], rows.collect()));
    Ok(ExitCode::SUCCESS)
}
