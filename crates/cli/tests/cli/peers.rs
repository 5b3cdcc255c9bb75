//! The pages about other projects' clients, command by command, with the real ones: Envoy, and Dapr's
//! SDKs. `hack/tools.sh` has them.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    slice,
};

use crate::{
    ports::{free_port, listen},
    support::{HOLDFAST, root},
};

/// The block after a marker.
fn block(page: &str, marker: &str, language: &str) -> String {
    let text = std::fs::read_to_string(root().join("docs/compat").join(page)).unwrap();
    let (_, rest) = text.split_once(&format!("<!-- {marker}:")).expect("the marker");
    let (_, rest) = rest.split_once(&format!("```{language}\n")).expect("a block");
    rest.split_once("```").expect("its end").0.to_owned()
}

/// A tool of `hack/tools.sh`.
fn tool(name: &str) -> String {
    let output = Command::new(root().join("hack/tools.sh")).arg(name).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// What a page starts, on free ports instead of those that it names.
struct Stage {
    ports: Vec<(u16, u16)>,
    dir: tempfile::TempDir,
    children: Vec<Child>,
}

impl Stage {
    /// Starts the commands of a page, and waits until they listen: on other ports, if another
    /// process was faster to take one of the first.
    fn start(page: &str, written: &[u16]) -> Self {
        let mut logs = String::new();
        for _ in 0..5 {
            let ports: Vec<u16> = written.iter().map(|_| free_port()).collect();
            let mut stage = Stage {
                ports: written.iter().copied().zip(ports.iter().copied()).collect(),
                dir: tempfile::tempdir().unwrap(),
                children: Vec::new(),
            };
            for command in block(page, "start", "sh").lines() {
                stage.run(command);
            }
            if listen(&mut stage.children, &ports) {
                return stage;
            }
            logs = stage.logs();
        }
        panic!("{page} cannot be started: {logs}");
    }

    fn port(&self, written: u16) -> u16 {
        self.ports.iter().find(|(known, _)| *known == written).unwrap().1
    }

    /// The text with the ports that were taken.
    fn moved(&self, text: &str) -> String {
        moved(&self.ports, text)
    }

    fn run(&mut self, command: &str) {
        let here = match command.split_whitespace().next().unwrap() {
            // Two that the page leaves at their usual ports, and one more that no two tests may share.
            "holdfast" => {
                let flags = command.strip_prefix("holdfast").unwrap();
                let (listen, admin) = (self.port(4140), self.port(4141));
                let moved = match flags.split_once("--compat ").map(|(_, words)| words) {
                    Some("rls") => format!("rls={}", self.port(8081)),
                    Some("dapr") => {
                        let (http, grpc) = (self.port(3500), self.port(50001));
                        format!("dapr-http={http},dapr-grpc={grpc}")
                    }
                    other => panic!("{other:?}"),
                };
                let (flags, _) = flags.split_once("--compat").unwrap();
                format!(
                    "{HOLDFAST}{flags} --compat {moved} --listen 127.0.0.1:{listen} \
                     --admin 127.0.0.1:{admin}"
                )
            }
            "envoy" => {
                let file = command.rsplit(' ').next().unwrap();
                let config = std::fs::read_to_string(root().join(file)).unwrap();
                let moved = self.dir.path().join("envoy.yaml");
                std::fs::write(&moved, self.moved(&config)).unwrap();
                format!(
                    "{} -c {} --use-dynamic-base-id --concurrency 1 --log-level error",
                    tool("envoy"),
                    moved.display()
                )
            }
            _ => self.moved(command),
        };
        let log = |name: &str| {
            let path = self.dir.path().join(format!("{}.{name}", self.children.len()));
            Stdio::from(std::fs::File::create(path).unwrap())
        };
        let child = Command::new("sh")
            .args(["-c", &format!("exec {here}")])
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(log("out"))
            .stderr(log("err"))
            .spawn();
        self.children.push(child.unwrap());
    }

    /// What a command prints.
    fn output(&self, program: &str, args: &[&str]) -> String {
        let output = Command::new(program)
            .args(args)
            .current_dir(root())
            .env("DAPR_HTTP_PORT", self.ports[0].1.to_string())
            .env("DAPR_GRPC_PORT", self.ports[1].1.to_string())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{args:?}: {output:?} {}", self.logs());
        text(&output.stdout)
    }

    /// Runs the commands of a page to be tried, and compares what they print.
    fn try_all(&self, page: &str) -> usize {
        let commands = block(page, "try", "sh");
        for line in commands.lines() {
            let (command, wanted) = line.split_once("# -> ").expect("what comes back");
            let printed = self.output("sh", &["-ec", &self.moved(command)]);
            assert!(printed.contains(wanted.trim()), "{command}: {printed} {}", self.logs());
        }
        commands.lines().count()
    }

    fn logs(&self) -> String {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        (0..self.children.len())
            .map(|i| read(&self.dir.path().join(format!("{i}.err"))))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// In two passes: a free port may have the digits of one that is written.
fn moved(ports: &[(u16, u16)], text: &str) -> String {
    let mark = |i: usize| format!("\u{1}{}\u{1}", char::from(b'a' + i as u8));
    let mut text = text.to_owned();
    for (i, (written, _)) in ports.iter().enumerate() {
        text = text.replace(&written.to_string(), &mark(i));
    }
    for (i, (_, port)) in ports.iter().enumerate() {
        text = text.replace(&mark(i), &port.to_string());
    }
    text
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

#[test]
fn a_real_envoy_lets_pass_and_refuses_by_our_limits() {
    let stage = Stage::start("envoy.md", &[10000, 8000, 8081, 4140, 4141]);
    assert_eq!(stage.try_all("envoy.md"), 6);
}

#[test]
fn an_envoy_that_asks_for_an_unknown_domain_is_told_so() {
    let mut stage = Stage::start("envoy.md", &[10000, 8000, 8081, 4140, 4141]);
    let config = std::fs::read_to_string(root().join("examples/envoy/envoy.yaml")).unwrap();
    let config = config.replace("domain: shop", "domain: shpo");
    let path = stage.dir.path().join("typo.yaml");
    let try_on = |port: u16| {
        let mut ports = stage.ports.clone();
        ports[0].1 = port;
        std::fs::write(&path, moved(&ports, &config)).unwrap();
        let mut envoy = Command::new(tool("envoy"))
            .args(["-c", path.to_str().unwrap(), "--use-dynamic-base-id", "--concurrency", "1"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let listens = listen(slice::from_mut(&mut envoy), &[port]);
        stage.children.push(envoy);
        listens.then_some(port)
    };
    let port = std::iter::repeat_with(free_port).take(5).find_map(try_on).expect("another Envoy");
    // Its configuration says that no answer is a refusal: nothing is unlimited by a typo.
    let url = format!("http://127.0.0.1:{port}/");
    let status = stage.output("curl", &["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]);
    assert_eq!(status, "500");
}

#[test]
fn daprs_clients_lock_and_unlock() {
    let stage = Stage::start("dapr.md", &[3500, 50001, 4140, 4141]);
    assert_eq!(stage.try_all("dapr.md"), 4);
    let python = stage.output(&tool("dapr-python"), &["-c", &block("dapr.md", "python", "python")]);
    let lines: Vec<&str> = python.lines().collect();
    assert_eq!(lines, ["True fence", "False", "lock_belongs_to_others", "lock_does_not_exist"]);
    let js = stage.output(&tool("dapr-js"), &["-e", &block("dapr.md", "js", "js")]);
    let lines: Vec<&str> = js.lines().filter(|line| !line.contains(" INFO ")).collect();
    assert_eq!(lines, ["true", "false", "0"]);
}
