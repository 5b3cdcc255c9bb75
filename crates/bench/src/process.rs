//! Server processes: started on a core, measured through /proc, ended with the value.

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

/// The kernel's ticks per second in /proc/PID/stat, on every Linux of today.
const TICKS: f64 = 100.0;

/// The core of what is measured.
pub const FIRST: &str = "0";
/// The core of the load and of Redis.
pub const SECOND: &str = "1";
/// Both: the scheduler decides.
pub const ANY: &str = "0,1";

/// Puts all threads of this process on some cores.
pub fn run_on(cores: &str) -> anyhow::Result<()> {
    let own = std::process::id().to_string();
    let done = Command::new("taskset").args(["-a", "-c", "-p", cores, &own]).output();
    let done = done.context("taskset cannot be run")?;
    anyhow::ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// A running server.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub port: u16,
    /// From its start to its first accepted connection.
    pub ready: Duration,
}

/// A port that is free now.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Server {
    /// Starts a program on some cores; `args` gets the port it must listen on.
    pub async fn start(
        cores: &str,
        program: &Path,
        args: impl FnOnce(u16) -> Vec<String>,
    ) -> anyhow::Result<Self> {
        let port = free_port()?;
        let begun = Instant::now();
        let mut child = Command::new("taskset")
            .args(["-c", cores])
            .arg(program)
            .args(args(port))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("taskset cannot be run")?;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("{} ended with {status}", program.display());
            }
            if begun.elapsed() > Duration::from_secs(10) {
                bail!("{} does not listen", program.display());
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(Server { child, port, ready: begun.elapsed() })
    }

    /// `redis-server` without persistence.
    pub async fn redis(cores: &str) -> anyhow::Result<Self> {
        let words = |port: u16| {
            let text = format!(
                "--port {port} --bind 127.0.0.1 --appendonly no --maxmemory-policy noeviction"
            );
            text.split(' ').map(str::to_owned).chain(["--save".into(), String::new()]).collect()
        };
        Self::start(cores, Path::new("redis-server"), words).await
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// CPU seconds so far.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        cpu_of(self.child.id())
    }

    /// Resident memory, MiB.
    pub fn rss(&self) -> anyhow::Result<f64> {
        rss_of(self.child.id())
    }
}

/// CPU seconds of a process so far.
pub fn cpu_of(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok());
    let used = ticks(11).zip(ticks(12)).context("/proc/PID/stat")?;
    Ok((used.0 + used.1) / TICKS)
}

/// Resident memory of a process, MiB.
pub fn rss_of(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
    Ok(kib / 1_024.0)
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
