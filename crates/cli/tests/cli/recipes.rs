//! The recipes of docs/recipes, block by block as they are written there, on the real stores.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::support::{Dev, root};

/// The block after a marker.
fn block(recipe: &str, marker: &str) -> String {
    let text = std::fs::read_to_string(root().join("docs/recipes").join(recipe)).unwrap();
    let (_, rest) = text.split_once(&format!("<!-- {marker}")).expect("the marker");
    let (_, rest) = rest.split_once("```").expect("a block");
    let (_, rest) = rest.split_once('\n').unwrap();
    rest.split_once("```").expect("its end").0.to_owned()
}

/// A PostgreSQL in a directory of its own, on a Unix socket there.
struct Postgres {
    bin: PathBuf,
    dir: tempfile::TempDir,
    server: Child,
}

impl Postgres {
    fn start() -> Self {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("the package postgresql");
        let bin = versions.flatten().map(|entry| entry.path().join("bin")).max().unwrap();
        let dir = tempfile::Builder::new().prefix("holdfast-postgres").tempdir().unwrap();
        let data = dir.path().join("data");
        if is_root() {
            let owner = Command::new("chown").arg("postgres").arg(dir.path()).status().unwrap();
            assert!(owner.success());
        }
        let mut made = run_as(&bin.join("initdb"));
        made.args(["-A", "trust", "-U", "postgres", "-D"]).arg(&data);
        let made = made.output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let server = run_as(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let postgres = Postgres { bin, dir, server };
        for _ in 0..300 {
            if postgres.psql("SELECT 1", &[]).status.success() {
                return postgres;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("PostgreSQL does not start: {:?}", postgres.psql("SELECT 1", &[]));
    }

    fn psql(&self, sql: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]);
        command.arg(self.dir.path());
        for (name, value) in variables {
            command.arg("-v").arg(format!("{name}={value}"));
        }
        pipe(command, sql)
    }

    /// What a statement returned.
    fn ask(&self, sql: &str, variables: &[(&str, &str)]) -> String {
        let output = self.psql(sql, variables);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The child may be what changed the user: the server's own number is in its file.
        let file = self.dir.path().join("data/postmaster.pid");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if let Some(pid) = text.lines().next() {
            drop(Command::new("kill").args(["-9", pid]).status());
        }
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout == b"0\n"
}

/// PostgreSQL refuses to run as root.
fn run_as(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program).current_dir("/");
    command
}

fn pipe(mut command: Command, input: &str) -> Output {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that has ended already says why in its output.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    child.wait_with_output().unwrap()
}

#[test]
fn a_stale_holder_neither_reads_nor_writes_a_row() {
    let postgres = Postgres::start();
    postgres.ask(&block("sql.md", "setup"), &[]);
    let (read, write) = (block("sql.md", "read"), block("sql.md", "write"));
    let newest = "9223372036854775807";
    assert_eq!(postgres.ask(&read, &[("fence", "41")]), "empty");
    assert_eq!(postgres.ask(&write, &[("fence", "41"), ("body", "it's one")]), "it's one");
    assert_eq!(postgres.ask(&read, &[("fence", newest)]), "it's one");
    assert_eq!(postgres.ask(&write, &[("fence", "42"), ("body", "stale")]), "", "refused");
    assert_eq!(postgres.ask(&read, &[("fence", "42")]), "", "on reads, too");
    assert_eq!(postgres.ask(&write, &[("fence", newest), ("body", "two")]), "two");
}

#[test]
fn a_stale_holder_neither_reads_nor_writes_a_key() {
    let redis = crate::server::RedisServer::start(&[]);
    let script = block("redis.md", "script");
    let (_, port) =
        redis.address().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
    let call = |args: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port, "EVAL", &script, "2", "{report}:value", "{report}:fence"]);
        let output = command.args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(call(&["999", "one"]), "one");
    // As numbers of Lua these two would be equal.
    assert_eq!(call(&["9223372036854775807"]), "one");
    let refused = call(&["9223372036854775806", "stale"]);
    assert!(refused.contains("FENCED 9223372036854775807"), "{refused}");
    assert!(call(&["1000"]).contains("FENCED"), "on reads, too");
    assert_eq!(call(&["9223372036854775807", "two"]), "two");
}

#[test]
fn the_guard_tells_who_is_stale() {
    let dev = Dev::start(&root().join("examples"), &[]);
    let guard = block("http.md", "guard").replace("http://127.0.0.1:4140", &dev.url);
    let ask = |fence: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &guard]).env("FENCE", fence).output().unwrap()
    };
    let grant = |then: &str| {
        let url = format!("{}/v1/locks/nightly-report/{then}", dev.url);
        let output = Command::new("curl").args(["-s", "-X", "POST", &url]).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["fence"].as_str().unwrap_or_default().to_owned()
    };
    let first = grant("acquire");
    assert!(ask(&first).status.success());
    grant("force-release");
    let second = grant("acquire");
    assert!(!ask(&first).status.success(), "stale");
    let answer = ask(&second);
    assert!(answer.status.success());
    assert!(String::from_utf8_lossy(&answer.stdout).contains(&format!("\"newest\":\"{second}\"")));
}
