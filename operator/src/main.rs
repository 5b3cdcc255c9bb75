//! The operator's process: parse, then run.

use clap::Parser;
use holdfast_operator::{args::Args, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    run::run(Args::parse()).await
}
