//! `holdfast-bench`: Holdfast beside its floors, interleaved in one run.
//!
//! Absolute rates of a shared machine mean little; ratios of one run, CPU time per request and calls
//! on the wire mean something. The floors are part of the bench: F0 is a bare hyper server with a
//! constant answer, F1 one that runs the lock's own script once per request over one multiplexed
//! connection, F2 that script called with no HTTP at all. Servers are processes of their own, pinned
//! to one core; the load and Redis have the other.
//!
//! Figures that miss their target are printed as such; nothing here fails a build.

mod checks;
mod failover;
mod figures;
mod floors;
mod handover;
mod idle;
mod keys;
mod load;
mod pod;
mod process;
mod rls;
mod script;
mod steady;
mod throughput;
mod transport;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use figures::Figure;
use floors::Runs;
use script::By;

/// Measures Holdfast against its floors.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The directory with the release binaries.
    #[arg(long, default_value = ".")]
    bin: PathBuf,
    /// Fewer and shorter rounds: shows that it runs, not how fast.
    #[arg(long)]
    quick: bool,
    /// Only these measurements.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Put the table into this file, between its markers.
    #[arg(long)]
    write: Option<PathBuf>,
    #[command(subcommand)]
    floor: Option<Floor>,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Part {
    Size,
    Idle,
    Pod,
    Throughput,
    Rls,
    Checks,
    Steady,
    Socket,
    Syscalls,
    Keys,
    Failover,
    Handover,
    Crowd,
    Holds,
}

#[derive(Debug, Subcommand)]
enum Floor {
    /// Serves a constant. For the bench itself.
    #[command(hide = true)]
    F0 { port: u16 },
    /// Runs one script per request. For the bench itself.
    #[command(hide = true)]
    F1 {
        port: u16,
        redis: String,
        /// The Function of a rate limit's check instead of the lock's script.
        #[arg(long)]
        check: bool,
        /// The lock's Function instead of its script.
        #[arg(long)]
        function: bool,
    },
    /// Serves a constant over gRPC. For the bench itself.
    #[command(hide = true)]
    F0Grpc { port: u16 },
}

/// What every measurement needs.
pub struct Bench {
    bin: PathBuf,
    quick: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.floor {
        Some(Floor::F0 { port }) => return floors::constant(port).await,
        Some(Floor::F1 { port, redis, check, function }) => {
            let runs = match (check, function) {
                (true, _) => Runs::Checks,
                (false, true) => Runs::Cycles(By::Function),
                (false, false) => Runs::Cycles(By::Script),
            };
            return floors::scripted(port, &redis, runs).await;
        }
        Some(Floor::F0Grpc { port }) => return rls::constant(port).await,
        None => {}
    }
    let bench = Bench { bin: args.bin, quick: args.quick };
    let mut figures: Vec<Figure> = Vec::new();
    for part in Part::value_variants() {
        if !args.only.is_empty() && !args.only.contains(part) {
            continue;
        }
        figures.extend(match part {
            Part::Size => idle::binaries(&bench)?,
            Part::Idle => idle::idle(&bench).await?,
            Part::Pod => pod::measure(&bench).await?,
            Part::Throughput => throughput::measure(&bench).await?,
            Part::Rls => rls::measure(&bench).await?,
            Part::Checks => checks::measure(&bench).await?,
            Part::Steady => steady::measure(&bench).await?,
            Part::Socket => transport::sockets(&bench).await?,
            Part::Syscalls => transport::syscalls(&bench).await?,
            Part::Keys => keys::measure(&bench).await?,
            Part::Failover => failover::measure(&bench).await?,
            Part::Handover => handover::measure(&bench).await?,
            Part::Crowd => handover::crowd(&bench).await?,
            Part::Holds => idle::many_holds(&bench).await?,
        });
    }
    let table = figures::table(&figures);
    println!("{table}");
    if let Some(path) = args.write {
        figures::write(&path, &table)?;
    }
    Ok(())
}
