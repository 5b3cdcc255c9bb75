//! What a sidecar costs that does nothing beside a pod, with a real API server.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::time::sleep;

use crate::{
    Bench,
    figures::{Figure, Target},
    process::{cpu_of, rss_of},
};

/// A cluster of this measurement's own, down with the value.
struct Cluster {
    root: PathBuf,
    dir: tempfile::TempDir,
    programs: Vec<(Child, u32)>,
}

impl Cluster {
    fn up() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let cluster = Cluster { root, dir: tempfile::tempdir()?, programs: Vec::new() };
        cluster.run(&["up"])?;
        Ok(cluster)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.root.join("e2e/cluster/cluster.sh"));
        command.args(words).current_dir(&self.root);
        command.env("HOLDFAST_CLUSTER_DIR", self.dir.path().join("cluster"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> anyhow::Result<()> {
        let status = self.command(words).status().context("cluster.sh cannot be run")?;
        ensure!(status.success(), "cluster.sh {words:?} ended with {status}");
        Ok(())
    }

    /// Starts a program inside, and finds its process.
    async fn start(&mut self, name: &str, program: &Path, args: &[&str]) -> anyhow::Result<u32> {
        let (path, program) = (program.display().to_string(), program.canonicalize()?);
        let before: Vec<u32> = processes_of(&program).collect();
        let mut command = self.command(&[&["exec", path.as_str()], args].concat());
        command.envs([("POD_NAME", name), ("POD_NAMESPACE", "default")]);
        let mut script = command.env("HOLDFAST_SIDECAR_IMAGE", "none").spawn()?;
        for _ in 0..500 {
            sleep(Duration::from_millis(20)).await;
            if let Some(pid) = processes_of(&program).find(|pid| !before.contains(pid)) {
                self.programs.push((script, pid));
                return Ok(pid);
            }
        }
        script.kill()?;
        script.wait()?;
        anyhow::bail!("{path} does not run")
    }
}

/// The processes that run a program.
fn processes_of(program: &Path) -> impl Iterator<Item = u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(move |pid: &u32| {
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|running| running == program)
    })
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The script's shell does not hand signals on to what it runs.
        for (script, pid) in &mut self.programs {
            drop(Command::new("kill").arg("-KILL").arg(pid.to_string()).status());
            drop(script.wait());
        }
        drop(self.run(&["down"]));
    }
}

/// Memory and CPU at rest.
pub async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut cluster = Cluster::up()?;
    cluster.run(&["exec", "kubectl", "apply", "-f", "crds/"])?;
    let established = ["wait", "--for=condition=Established", "crd", "--all"];
    cluster.run(&[&["exec", "kubectl"][..], &established].concat())?;
    let operator = ["run", "--webhook", "false", "--admin", "127.0.0.1:5145"];
    cluster.start("operator", &bench.bin.join("holdfast-operator"), &operator).await?;
    cluster.run(&["exec", "kubectl", "apply", "-f", "examples/locks.yaml"])?;
    let ready = ["wait", "--for=condition=Ready", "lock", "--all", "--timeout=60s"];
    cluster.run(&[&["exec", "kubectl"][..], &ready].concat())?;
    let listen = ["--listen", "127.0.0.1:5142", "--admin", "127.0.0.1:5143"];
    let pid = cluster.start("pod", &bench.bin.join("holdfast-sidecar"), &listen).await?;
    sleep(Duration::from_secs(5)).await;
    let (before, watched) = (cpu_of(pid)?, if bench.quick { 5.0 } else { 20.0 });
    sleep(Duration::from_secs_f64(watched)).await;
    let busy = (cpu_of(pid)? - before) / watched * 100.0;
    Ok(vec![
        Figure::new("idle, beside a pod: memory", rss_of(pid)?, " MiB", Target::AtMost(10.0)),
        Figure::new("idle, beside a pod: CPU", busy, " %", Target::AtMost(0.1)),
    ])
}
