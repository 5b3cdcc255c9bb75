//! The gateway as the chart runs it: its objects on a real API server, the program with the environment
//! and the rights that they give.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use holdfast_api::bundle::{BUNDLE_CONFIG_MAP, BUNDLE_KEY};
use holdfast_peers::{
    rls::{
        RateLimitDescriptor, RateLimitRequest, rate_limit_descriptor::Entry,
        rate_limit_response::Code, rate_limit_service_client::RateLimitServiceClient,
    },
    tonic::transport::Channel,
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{apiserver::ApiServer, client::mk_bundle};

const SIDECAR: &str = env!("CARGO_BIN_EXE_holdfast-sidecar");

const CLASSES: &str = r#"
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: edge}
spec:
  backend: main
  limits: [{name: l, limit: 1, windowSeconds: 3600}]
  access: [{serviceAccounts: [holdfast-gateway]}]
"#;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What the chart says of a gateway on a port.
fn render(port: u16) -> String {
    // Tests run in the folder of their package.
    let root = Path::new("..");
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let helm = run("hack/tools.sh", &["helm"]);
    let set = format!("mode=gateway,gateway.networkPolicy.enabled=true,gateway.port={port}");
    run(helm.trim(), &["template", "g", "charts/holdfast", "-n", "edge", "--set", &set])
}

/// Starts the program with the environment of the Deployment's pod, as its ServiceAccount.
fn start(server: &ApiServer, dir: &Path) -> Killed {
    let args = ["-n", "edge", "get", "deployment", "holdfast-gateway", "-o", "json"];
    let deployment: Value = serde_json::from_str(&server.kubectl(&args, "").unwrap()).unwrap();
    let spec = &deployment["spec"]["template"]["spec"];
    let account = spec["serviceAccountName"].as_str().unwrap();
    let token = server.kubectl(&["-n", "edge", "create", "token", account], "").unwrap();
    let cluster = json!({
        "server": format!("https://127.0.0.1:{}", server.port()),
        "insecure-skip-tls-verify": true
    });
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token.trim()}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(dir.join("kubeconfig"), kubeconfig.to_string()).unwrap();
    let mut command = Command::new(SIDECAR);
    for variable in spec["containers"][0]["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        let value = match variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str)
        {
            Some("metadata.name") => "holdfast-gateway-1",
            Some("metadata.namespace") => "edge",
            Some("spec.serviceAccountName") => account,
            Some(other) => panic!("{name}: {other}"),
            None => variable["value"].as_str().unwrap(),
        };
        command.env(name, value);
    }
    // Ports that a pod has to itself.
    command.env("HOLDFAST_LISTEN", "127.0.0.1:0");
    command.env("HOLDFAST_ADMIN", "127.0.0.1:0");
    command.env("KUBECONFIG", dir.join("kubeconfig"));
    let log = std::fs::File::create(dir.join("log")).unwrap();
    Killed(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap()
}

/// Waits until it listens; whether it does, and has not ended.
async fn listens(gateway: &mut Killed, dir: &Path) -> bool {
    while gateway.0.try_wait().unwrap().is_none() {
        if log_of(dir).contains("serves other projects' APIs") {
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Applies the chart's objects and starts the program on a free port; the port.
async fn start_somewhere(server: &ApiServer, dir: &Path) -> (Killed, u16) {
    // Another process may take the port between our look and the program's bind: try again.
    for _ in 0..5 {
        let port = free_port();
        server.kubectl(&["apply", "-f", "-"], &render(port)).unwrap();
        let mut gateway = start(server, dir);
        let listens = timeout(Duration::from_secs(60), listens(&mut gateway, dir)).await;
        if listens.expect("it neither listens nor ends") {
            return (gateway, port);
        }
    }
    panic!("the gateway does not start: {}", log_of(dir));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_of_the_chart_limits_by_the_namespaces_classes() {
    let server = ApiServer::shared();
    let dir = tempfile::tempdir().unwrap();
    server.kubectl(&["create", "namespace", "edge"], "").unwrap();
    let bundle = serde_json::to_string(&mk_bundle(CLASSES)).unwrap();
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {BUNDLE_KEY: bundle},
        "metadata": {"name": BUNDLE_CONFIG_MAP, "namespace": "edge"},
    });
    server.kubectl(&["create", "-f", "-"], &map.to_string()).unwrap();
    let (gateway, port) = start_somewhere(server, dir.path()).await;
    let at = format!("http://127.0.0.1:{port}");
    let entry = Entry { key: "path".into(), value: "/".into() };
    let descriptor = RateLimitDescriptor { entries: vec![entry], ..Default::default() };
    let request =
        RateLimitRequest { domain: "edge".into(), descriptors: vec![descriptor], hits_addend: 1 };
    let mut codes = Vec::new();
    for _ in 0..600 {
        // Until it has the bundle.
        if let Ok(channel) = Channel::from_shared(at.clone()).unwrap().connect().await {
            let mut client = RateLimitServiceClient::new(channel);
            if let Ok(answer) = client.should_rate_limit(request.clone()).await {
                codes.push(answer.into_inner().overall_code());
            }
        }
        if codes.len() == 2 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(codes, [Code::Ok, Code::OverLimit], "{}", log_of(dir.path()));
    drop(gateway);
}

#[test]
fn only_a_gateway_may_be_called_from_elsewhere() {
    for (args, says) in [
        (&["--compat", "rls=0.0.0.0:8081"][..], "without --gateway"),
        (&["--gateway"][..], "--compat rls="),
        (&["--gateway", "--compat", "rls,dapr-http=0.0.0.0:3500"][..], "loopback"),
        (&["--compat", "darp"][..], "none of dapr"),
    ] {
        let who = ["--namespace", "edge", "--pod", "p"];
        let output = Command::new(SIDECAR).args(who).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{args:?}: {said}");
    }
}
