//! A real redis-server, or a real Valkey, on a free port, in a directory of its own; both end with the
//! value.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

/// A running redis-server.
pub struct RedisServer {
    port: u16,
    dir: TempDir,
    args: Vec<String>,
    program: PathBuf,
    /// The server, and who ends it if the test binary has ended: it may be paused then.
    child: Option<(Child, Child)>,
}

impl RedisServer {
    /// Starts one with more arguments, such as `["--appendonly", "yes"]`. A `--cluster-port`
    /// becomes a free one, whatever is asked for.
    pub fn start(args: &[&str]) -> Self {
        Self::run_program("redis-server".into(), args)
    }

    /// As [`RedisServer::start`], the newest Valkey.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn valkey(args: &[&str]) -> Self {
        let here = std::env::current_dir().unwrap();
        let tools =
            here.ancestors().map(|dir| dir.join("hack/tools.sh")).find(|path| path.exists());
        let output = Command::new(tools.expect("a checkout")).arg("valkey").output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "hack/tools.sh valkey failed: {errors}");
        Self::run_program(String::from_utf8(output.stdout).unwrap().trim().into(), args)
    }

    fn run_program(program: PathBuf, args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-redis").tempdir().unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut server = RedisServer { port: 0, dir, args, program, child: None };
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Another process may take the port between our look and the server's bind: try again.
        for _ in 0..5 {
            server.port = free();
            // A cluster's bus has its own: the usual one, 10000 above the other, may be none.
            let bus = server.args.iter().position(|arg| arg == "--cluster-port");
            if let Some(bus) = bus {
                server.args[bus + 1] = free().to_string();
            }
            if server.run() {
                return server;
            }
        }
        panic!("{} does not start in {}", server.program.display(), server.dir.path().display());
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills it like a crash does (signal 9).
    pub fn kill(&mut self) {
        if let Some((mut child, mut keeper)) = self.child.take() {
            // First of all: the number may be another's once the server is waited for.
            keeper.kill().unwrap();
            keeper.wait().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Crashes it and starts it again on the same port, with what its directory kept.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.run(), "redis-server does not start again");
    }

    /// Stops it from running without ending it, or lets it go on.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn pause(&self, pause: bool) {
        let pid = self.child.as_ref().unwrap().0.id().to_string();
        let signal = if pause { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Runs a command, given in one line, and reads what comes back.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn command(&self, line: &str) {
        self.talk(line);
    }

    /// Runs a command, given in one line, and returns what comes back, as it is on the wire.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn ask(&self, line: &str) -> String {
        self.talk(line)
    }

    /// The names that match a pattern.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        let reply = self.talk(&format!("KEYS {pattern}"));
        reply.lines().filter(|line| line.starts_with("hf:")).map(str::to_owned).collect()
    }

    /// The connections that there are but for the one that asks, as `CLIENT LIST` has them.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn clients(&self) -> Vec<String> {
        let reply = self.talk("CLIENT LIST");
        let lines = reply.lines().filter(|line| line.starts_with("id="));
        lines.filter(|line| !line.contains("cmd=client")).map(str::to_owned).collect()
    }

    /// Runs a command, given in one line; what comes back.
    pub fn talk(&self, line: &str) -> String {
        let reply = self.try_ask(line);
        assert!(!reply.starts_with('-'), "{line}: {reply}");
        reply
    }

    /// As [`RedisServer::talk`], of a command that may be refused.
    pub fn try_ask(&self, line: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(format!("{line}\r\nQUIT\r\n").as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    /// Which process answers on the port: a server of another test may have been faster.
    fn process_id(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.write_all(b"INFO server\r\nQUIT\r\n").ok()?;
        let mut info = String::new();
        stream.read_to_string(&mut info).ok()?;
        info.lines().find_map(|line| line.strip_prefix("process_id:")).map(str::to_owned)
    }

    /// Whether it came up.
    fn run(&mut self) -> bool {
        let mut command = Command::new(&self.program);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(&self.args).arg("--dir").arg(self.dir.path());
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut child = spawned.unwrap_or_else(|error| {
            panic!("redis-server cannot be run ({error}): install the package redis-server")
        });
        // Long, for a machine that is busy: one that cannot have its port has ended.
        for _ in 0..3_000 {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if self.process_id().is_some_and(|id| id == child.id().to_string()) {
                let end = format!("trap '' INT; cat >/dev/null; kill -9 {}", child.id());
                let mut keeper = Command::new("sh");
                let keeper = keeper.args(["-c", &end]).stdin(Stdio::piped()).spawn().unwrap();
                self.child = Some((child, keeper));
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
