//! The program, and sidecars started with it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub const HOLDFAST: &str = env!("CARGO_BIN_EXE_holdfast");

/// The root of the checkout: tests run in the folder of their package.
pub fn root() -> PathBuf {
    std::env::current_dir().unwrap().join("../..")
}

pub fn holdfast(args: &[&str]) -> Output {
    Command::new(HOLDFAST).args(args).stdin(Stdio::null()).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running `holdfast dev`.
pub struct Dev {
    child: Child,
    pub url: String,
    pub greeting: String,
}

impl Dev {
    pub fn start(files: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(HOLDFAST)
            .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "-f"])
            .arg(files)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut greeting = String::new();
        while let Some(Ok(line)) = lines.next() {
            greeting.push_str(&line);
            greeting.push('\n');
            if line.contains("holdfast run") {
                break;
            }
        }
        let url = greeting.lines().next().and_then(|line| line.rsplit(' ').next()).unwrap_or("");
        assert!(url.starts_with("http://"), "no greeting: {greeting}");
        Dev { url: url.into(), child, greeting }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it from running without ending it, or lets it go on.
    pub fn pause(&self, pause: bool) {
        let signal = if pause { "-STOP" } else { "-CONT" };
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub fn get(&self, path: &str) -> String {
        self.http("GET", path)
    }

    pub fn post(&self, path: &str) -> String {
        self.http("POST", path)
    }

    fn http(&self, method: &str, path: &str) -> String {
        let address = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A file of classes in a directory that lives as long as the value.
pub fn classes(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("classes.yaml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

pub fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

/// Waits until a condition holds; the bound is generous, the poll is short.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never happened: {what}");
}

/// A value of a JSON answer, such as `"fence":"1"`.
pub fn field<'a>(answer: &'a str, name: &str) -> &'a str {
    let start = answer.find(&format!("\"{name}\":\"")).expect(answer) + name.len() + 4;
    answer[start..].split('"').next().unwrap()
}
