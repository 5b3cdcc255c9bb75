//! `holdfast-sidecar`.

use clap::Parser;
use holdfast_runtime::log;
use holdfast_sidecar::{args::Args, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    log::init(&args.log)?;
    run::run(args).await
}
