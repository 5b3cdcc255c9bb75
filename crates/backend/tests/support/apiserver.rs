//! A real etcd and kube-apiserver on free loopback ports, in a directory of their own.
//!
//! They are children of a shell that waits for its standard input to close: however the test binary
//! ends, the servers and the directory go with it. The binary with both servers is named by
//! `HOLDFAST_CLUSTER_BOX`, or made and printed by `hack/tools.sh cluster-box`. A missing piece is a
//! failure, never a skip.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// A running control plane: no controllers, no nodes.
pub struct ApiServer {
    dir: PathBuf,
    port: u16,
    /// Ends the servers when it is dropped (its standard input closes).
    keeper: Child,
}

const KEEPER: &str = r#"
cd "$DIR" || exit 1
trap '' INT
"$BOX" etcd --data-dir etcd --listen-client-urls "http://127.0.0.1:$ETCD" \
    --advertise-client-urls "http://127.0.0.1:$ETCD" --listen-peer-urls "http://127.0.0.1:$PEER" \
    --initial-advertise-peer-urls "http://127.0.0.1:$PEER" \
    --initial-cluster "default=http://127.0.0.1:$PEER" --unsafe-no-fsync >etcd.log 2>&1 &
etcd=$!
serve() {
"$BOX" apiserver --etcd-servers="http://127.0.0.1:$ETCD" --bind-address=127.0.0.1 \
    --advertise-address=192.0.2.1 --endpoint-reconciler-type=none --secure-port="$PORT" \
    --cert-dir=certs --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file=sa.pub --service-account-signing-key-file=sa.key \
    --token-auth-file=tokens.csv --authorization-mode=RBAC \
    --audit-policy-file=audit.yaml --audit-log-path=audit.log \
    --service-cluster-ip-range=10.96.0.0/16 >>apiserver.log 2>&1 &
echo "$!" >apiserver.pid
wait "$!"
}
echo "$etcd" >etcd.pid
while [ -e etcd.pid ]; do serve; done 2>/dev/null &
cat >/dev/null
rm etcd.pid
kill -CONT "$etcd"; kill -9 "$(cat apiserver.pid)" "$etcd"; wait
cd / && rm -rf "$DIR"
"#;

const AUDIT: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: Metadata
  resources: [{group: coordination.k8s.io, resources: [leases]}]
- level: None
"#;

impl ApiServer {
    /// The one of this test binary.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn shared() -> &'static ApiServer {
        static SHARED: OnceLock<ApiServer> = OnceLock::new();
        SHARED.get_or_init(ApiServer::start)
    }

    /// Starts one and waits until it is ready.
    pub fn start() -> Self {
        // Another process may take a port between our look and the servers' bind: try again.
        let server = (0..5).find_map(|_| Self::try_start());
        server.expect("an API server whose ports are its own")
    }

    fn try_start() -> Option<Self> {
        let cluster_box = cluster_box();
        let dir = tempfile::Builder::new().prefix("holdfast-apiserver").tempdir().unwrap().keep();
        let openssl = |args: &str| {
            let mut command = Command::new("openssl");
            command.args(args.split(' ')).current_dir(&dir).stderr(Stdio::null());
            assert!(command.status().unwrap().success(), "openssl {args} failed");
        };
        openssl("genrsa -out sa.key 2048");
        openssl("rsa -in sa.key -pubout -out sa.pub");
        std::fs::write(dir.join("audit.yaml"), AUDIT).unwrap();
        let [admin, sidecar] = ["admin", "sidecar"].map(|user| token(&dir, user));
        let tokens = format!("{admin},admin,admin,system:masters\n{sidecar},sidecar,sidecar\n");
        std::fs::write(dir.join("tokens.csv"), tokens).unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, etcd, peer) = (free(), free(), free());
        let number = |listener: TcpListener| listener.local_addr().unwrap().port().to_string();
        let port = number(port);
        let keeper = Command::new("sh")
            .args(["-c", KEEPER])
            .envs([("BOX", cluster_box.as_path()), ("DIR", dir.as_path())])
            .envs([("PORT", port.clone()), ("ETCD", number(etcd)), ("PEER", number(peer))])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let server = ApiServer { dir, port: port.parse().unwrap(), keeper };
        std::fs::write(server.kubeconfig(), server.kubeconfig_for("admin", server.port)).unwrap();
        server.wait("the API server to be ready", || server.lost_a_port() || server.is_ready());
        if server.lost_a_port() {
            return None;
        }
        server.wait("the default namespace", || {
            server.kubectl(&["get", "namespace", "default"], "").is_ok()
        });
        Some(server)
    }

    /// Whether another process has taken one of its ports.
    fn lost_a_port(&self) -> bool {
        let log = |name| std::fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let all = ["etcd.log", "apiserver.log"].map(log);
        all.iter().any(|log| log.contains("address already in use"))
    }

    /// Applies the chart's admission policy as it is, and waits until it is in force.
    pub fn with_policy(&self) {
        let path = root().join("charts/holdfast/templates/lease-policy.yaml");
        self.kubectl(&["apply", "-f", path.to_str().unwrap()], "").unwrap();
        let held = "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: probe, \
             labels: {holdfast.dev/managed: 'true'}}, spec: {holderIdentity: x}}";
        self.wait("the admission policy to be in force", || {
            match self.kubectl(&["create", "-f", "-"], held) {
                Ok(_) => {
                    self.kubectl(&["delete", "lease", "probe"], "").unwrap();
                    false
                }
                Err(refusal) => refusal.contains("created unheld"),
            }
        });
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// How to connect as a user (`admin` or `sidecar`), perhaps through another port.
    pub async fn config(&self, user: &str, port: u16) -> Config {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig_for(user, port)).unwrap();
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()
    }

    /// Runs kubectl as administrator; what it says if it fails.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String, String> {
        use std::io::Write;
        let mut child = Command::new(cluster_box())
            .arg("kubectl")
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(args)
            .env("HOME", &self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// The requests on a Lease so far, as `verb code` (a watch counts when it ends).
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn requests(&self, name: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.join("audit.log")).unwrap_or_default();
        let field = |event: &serde_json::Value, path: &str| {
            event.pointer(path).map(|v| v.to_string().trim_matches('"').to_owned())
        };
        log.lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|event| field(event, "/objectRef/name").as_deref() == Some(name))
            .map(|event| {
                let code = field(&event, "/responseStatus/code").unwrap_or_default();
                format!("{} {code}", field(&event, "/verb").unwrap_or_default())
            })
            .collect()
    }

    /// The sum of a metric's lines that have all of these labels.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.kubectl(&["get", "--raw", "/metrics"], "").unwrap();
        let ours = text.lines().filter(|line| line.starts_with(name));
        ours.filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>() as u64
    }

    /// The watches of a resource that are open.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn watches(&self, resource: &str) -> u64 {
        let resource = format!("resource=\"{resource}\"");
        self.metric("apiserver_longrunning_requests", &[&resource, "verb=\"WATCH\""])
    }

    /// Stops etcd from running without ending it, or lets it go on.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn pause_etcd(&self, pause: bool) {
        let pid = std::fs::read_to_string(self.dir.join("etcd.pid")).unwrap();
        let signal = if pause { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, pid.trim()]).status().unwrap().success());
    }

    /// Kills the API server; another one is ready when this returns.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn restart(&self) {
        let pid = || std::fs::read_to_string(self.dir.join("apiserver.pid")).unwrap_or_default();
        let old = pid();
        assert!(Command::new("kill").args(["-9", old.trim()]).status().unwrap().success());
        self.wait("another API server", || pid() != old);
        self.wait("the API server to be ready", || self.is_ready());
    }

    fn is_ready(&self) -> bool {
        self.kubectl(&["get", "--raw", "/readyz"], "").is_ok()
    }

    fn kubeconfig_for(&self, user: &str, port: u16) -> String {
        // The server signs its own certificate; it is on loopback and lives for one test.
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', \
             insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: {}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n",
            token(&self.dir, user)
        )
    }

    fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..600 {
            if condition() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = std::fs::read_to_string(self.dir.join("apiserver.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(10).collect();
        panic!("waited in vain for {what}:\n{}", tail.join("\n"));
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

/// What a user is known by, to this server alone: another one, on a port that was to be ours, must
/// not be taken for it. Short, since a relay tells requests apart by their length.
fn token(dir: &Path, user: &str) -> String {
    let name = dir.file_name().unwrap().to_string_lossy();
    format!("{user}-{}", &name[name.len() - 5..])
}

/// The repository: suites of several crates share this file.
fn root() -> PathBuf {
    let here = std::env::current_dir().unwrap();
    let root = here.ancestors().find(|dir| dir.join("hack/tools.sh").exists());
    root.expect("tests run in a folder of a checkout").to_owned()
}

/// The binary that is etcd, kube-apiserver and kubectl.
pub fn cluster_box() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("HOLDFAST_CLUSTER_BOX") {
                return path.into();
            }
            let tools = root().join("hack/tools.sh");
            let output = Command::new(&tools).arg("cluster-box").output();
            let output = output.unwrap_or_else(|error| panic!("{}: {error}", tools.display()));
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "hack/tools.sh cluster-box failed: {errors}");
            let text = String::from_utf8_lossy(&output.stdout);
            PathBuf::from(text.lines().last().unwrap_or_default().trim())
        })
        .clone()
}
