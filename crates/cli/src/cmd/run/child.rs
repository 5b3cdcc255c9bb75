//! The command under the lock: started so that it cannot outlive us, and ended as a whole.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command as StdCommand, ExitCode, ExitStatus},
};

use anyhow::{Context, bail};
use rustix::process::set_parent_process_death_signal;
use rustix::process::{Pid, Signal, getppid, kill_process, kill_process_group};
use tokio::process::Command;

/// The program that `run` starts, and its arguments.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Who must still be the parent.
    #[arg(long)]
    parent: i32,
    /// The command.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command, after asking the kernel to end it when its parent dies: the command must not
/// go on when nobody watches over the hold.
pub fn exec(args: &ExecArgs) -> anyhow::Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl")?;
    // It may have died before that.
    if getppid().map(Pid::as_raw_pid) != Some(args.parent) {
        bail!("the process that started this one has died");
    }
    let (program, rest) = args.command.split_first().context("no command")?;
    let error = StdCommand::new(program).args(rest).exec();
    eprintln!("holdfast: cannot run {}: {error}", program.display());
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }))
}

/// A running command.
pub struct Child {
    process: tokio::process::Child,
    pid: Option<Pid>,
    /// Whether it leads a process group of its own.
    group: bool,
}

/// How it ended.
pub struct Ended(ExitStatus);

impl Ended {
    /// Its exit code, as a shell would tell it.
    pub fn code(&self) -> ExitCode {
        let code = self.0.code().unwrap_or_else(|| 128 + self.0.signal().unwrap_or(0));
        ExitCode::from(u8::try_from(code).unwrap_or(1))
    }
}

impl Child {
    /// Starts a command with more environment.
    ///
    /// # Errors
    /// When there are no resources for it. A command that does not exist ends with 127.
    pub fn spawn(command: &[OsString], environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot find this program")?;
        // At a terminal the command stays in our group, so that it can read and gets Ctrl-C.
        let group = !io::stdin().is_terminal();
        let mut starter = Command::new(own);
        starter.arg("exec-with-parent").arg("--parent").arg(std::process::id().to_string());
        starter.arg("--").args(command).envs(environment.iter().copied());
        if group {
            starter.process_group(0);
        }
        let process = starter.spawn().context("cannot start the command")?;
        let pid = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Child { process, pid, group })
    }

    /// Waits until it has ended.
    pub async fn wait(&mut self) -> anyhow::Result<Ended> {
        Ok(Ended(self.process.wait().await.context("cannot wait for the command")?))
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it, and all of its group.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        let Some(pid) = self.pid else { return };
        let sent = match self.group {
            true => kill_process_group(pid, signal),
            false => kill_process(pid, signal),
        };
        // It may have ended by itself.
        if let Err(error) = sent {
            tracing::debug!(%error, "cannot signal the command");
        }
    }
}
