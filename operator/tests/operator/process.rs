//! The operator as a process: how it is started, stopped, killed and looked into.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    slice,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    fixture::{SOON, SYSTEM},
    ports::{free_port, listen},
};

pub const OPERATOR: &str = env!("CARGO_BIN_EXE_holdfast-operator");

/// A running operator; it ends with the value.
pub struct Operator {
    child: Child,
    keeper: Child,
    log: PathBuf,
    admin: SocketAddr,
}

impl Operator {
    /// Starts one with more arguments; it listens when this returns. Unless they say otherwise it
    /// leads for as long without a renewal as it does for users: no stall costs it its term.
    pub fn start(kubeconfig: &Path, log: PathBuf, name: &str, args: &[&str]) -> Self {
        // Another process may take the port between our look and the operator's bind: try again.
        for _ in 0..5 {
            let mut operator = Self::spawn(kubeconfig, log.clone(), name, args);
            if listen(slice::from_mut(&mut operator.child), &[operator.admin.port()]) {
                return operator;
            }
        }
        panic!("{name} does not start: see {}", log.display());
    }

    fn spawn(kubeconfig: &Path, log: PathBuf, name: &str, args: &[&str]) -> Self {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(OPERATOR)
            .env("KUBECONFIG", kubeconfig)
            .envs([("POD_NAME", name), ("POD_NAMESPACE", SYSTEM), ("HOLDFAST_SIDECAR_IMAGE", "x")])
            .args(["run", "--webhook", "false", "--admin", &admin.to_string()])
            .args(["--probe-ms", "200", "--let-go-seconds", "4"])
            .args(args)
            .stdin(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        // However the tests end, it goes with them: its standard input closes then.
        let end = format!("cat >/dev/null; kill -9 {}", child.id());
        let keeper = Command::new("sh").args(["-c", &end]).stdin(Stdio::piped()).spawn().unwrap();
        Operator { child, keeper, log, admin }
    }

    /// As a crash: no word to anybody.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As the kubelet stops it; whether it ended well.
    pub async fn stop(&mut self) -> bool {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let until = Instant::now() + SOON;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// The lines of its metrics that start so.
    pub fn metrics(&self, prefix: &str) -> Vec<String> {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.0 200"), "{text}");
        text.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // First of all: the number may be another's once the child is waited for.
        drop(self.keeper.kill());
        drop(self.keeper.wait());
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("{}:\n{}", self.log.display(), tail.join("\n"));
        }
    }
}
