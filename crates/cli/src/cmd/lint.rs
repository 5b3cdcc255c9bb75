//! `holdfast lint`: what `kubectl apply` and the operator would say, without either.

use std::{path::PathBuf, process::ExitCode};

use crate::files::Declared;

/// What to check.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file, a directory of YAML files, or `-` for standard input. May be repeated.
    #[arg(short, long = "filename", required = true)]
    files: Vec<PathBuf>,
}

/// Checks; exit code 1 when something is wrong.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (declared, mut report) = Declared::read(&args.files)?;
    let (_, complaints) = declared.compile("default", None);
    report.complaints.extend(complaints);
    if report.complaints.is_empty() {
        println!("{} objects in {} files: no errors", report.objects, report.files);
        return Ok(ExitCode::SUCCESS);
    }
    for complaint in &report.complaints {
        println!("{complaint}");
    }
    eprintln!("{} errors", report.complaints.len());
    Ok(ExitCode::FAILURE)
}
