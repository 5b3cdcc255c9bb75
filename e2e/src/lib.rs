//! What the cluster tests share: the tools that users have (kubectl, helm, curl in a pod), and
//! namespaces of their own. Nothing of the product's insides.
//!
//! Run by `hack/e2e.sh`, which names the tools and images in the environment; without them the tests
//! fail, they are never skipped.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test that cannot go on has failed"
)]

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Mutex, OnceLock},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

pub mod hold;

/// The namespace of the operator.
pub const SYSTEM: &str = "holdfast-system";

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run hack/e2e.sh"))
}

/// The root of the checkout, in which tests run, or in the folder of this package.
pub fn root() -> PathBuf {
    let here = std::env::current_dir().unwrap();
    let root = here.ancestors().find(|dir| dir.join("hack/e2e.sh").exists());
    root.expect("tests run in a checkout").to_owned()
}

/// The image with curl and redis.
pub fn app_image() -> String {
    env("HOLDFAST_APP_IMAGE")
}

/// A search path on which kubectl and helm are those of the tests.
pub fn tools_path() -> String {
    let tools = ["KUBECTL", "HELM"].map(|tool| {
        let path = PathBuf::from(env(tool));
        path.parent().expect("a file in a folder").display().to_string()
    });
    format!("{}:{}", tools.join(":"), env("PATH"))
}

fn run(program: &str, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env(program))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Runs kubectl; what it prints, or what it complains about.
pub fn try_kubectl(args: &[&str], input: &str) -> Result<String, String> {
    let output = run("KUBECTL", args, input);
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Whether the API server would let an account do something.
pub fn may(account: &str, namespace: &str, verb: &str, what: &str) -> bool {
    let account = format!("--as=system:serviceaccount:{namespace}:{account}");
    let groups = format!("--as-group=system:serviceaccounts:{namespace}");
    let all = "--as-group=system:serviceaccounts";
    let args = ["auth", "can-i", verb, what, "-n", namespace, &account, &groups, all];
    // It says no with an exit code.
    try_kubectl(&args, "").is_ok_and(|answer| answer == "yes")
}

/// Runs kubectl, which must succeed.
pub fn kubectl(args: &[&str]) -> String {
    try_kubectl(args, "").unwrap_or_else(|error| panic!("kubectl {}: {error}", args.join(" ")))
}

/// Applies YAML, which must succeed.
pub fn apply(namespace: &str, yaml: &str) {
    try_kubectl(&["apply", "-n", namespace, "-f", "-"], yaml)
        .unwrap_or_else(|error| panic!("{error}\n{yaml}"));
}

/// An object as JSON.
pub fn get(namespace: &str, what: &str) -> Value {
    let output = kubectl(&["get", "-n", namespace, what, "-o", "json"]);
    serde_json::from_str(&output).expect("JSON")
}

/// Runs helm; what it prints, or what it complains about.
pub fn try_helm(args: &[&str]) -> Result<String, String> {
    let output = run("HELM", args, "");
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Runs helm, which must succeed.
pub fn helm(args: &[&str]) -> String {
    try_helm(args).unwrap_or_else(|error| panic!("helm {}: {error}", args.join(" ")))
}

/// Installs or upgrades the chart with the image under test; more arguments may follow.
pub fn helm_upgrade(more: &[&str]) {
    // Tests wait for these.
    let quick = "operator.letGoSeconds=10,operator.podHoldSeconds=20";
    let quick = ["--create-namespace", "--set", quick];
    upgrade("holdfast", SYSTEM, &[&quick[..], more].concat());
}

/// Installs a gateway in a namespace; more arguments may follow.
pub fn gateway(namespace: &str, more: &[&str]) {
    upgrade("gateway", namespace, &[&["--set", "mode=gateway"][..], more].concat());
}

fn upgrade(release: &str, namespace: &str, more: &[&str]) {
    let image = env("HOLDFAST_IMAGE");
    let (repository, tag) = image.rsplit_once(':').expect("NAME:TAG");
    let chart = root().join("charts/holdfast");
    let chart = chart.to_str().expect("UTF-8");
    let image = format!("image.repository={repository},image.tag={tag}");
    let args = ["upgrade", "--install", release, chart, "-n", namespace, "--set", &image];
    helm(&[&args[..], &["--wait", "--timeout", "120s"], more].concat());
}

/// The product, installed once for a test binary.
pub fn installed() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| helm_upgrade(&[]));
}

/// Waits until a condition holds.
pub fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        sleep(Duration::from_millis(100));
    }
    begun.elapsed()
}

/// A namespace that lives as long as the value.
pub struct Namespace {
    /// Its name.
    pub name: String,
    backends: Mutex<Vec<String>>,
}

impl Namespace {
    /// A new one, with the product installed.
    pub fn new(name: &str) -> Self {
        installed();
        let name = format!("{name}-{}", std::process::id());
        kubectl(&["create", "namespace", &name]);
        Namespace { name, backends: Mutex::default() }
    }

    /// Applies YAML in it.
    pub fn apply(&self, yaml: &str) {
        apply(&self.name, yaml);
    }

    /// Declares a lock and waits until it can be used.
    pub fn lock(&self, name: &str, spec: &str) {
        self.apply(&format!(
            "{{apiVersion: holdfast.dev/v1alpha1, kind: Lock, metadata: {{name: {name}}}, spec: {spec}}}"
        ));
        let lock = format!("lock/{name}");
        kubectl(&["wait", "-n", &self.name, "--for=condition=Ready", &lock, "--timeout=60s"]);
    }

    /// Declares a Redis as a Backend, deleted with the namespace, and waits until it can be used.
    /// Returns its name, which no other test uses.
    pub fn backend(&self, name: &str, address: &str) -> String {
        let name = format!("{name}-{}", std::process::id());
        self.apply(&format!(
            "{{apiVersion: holdfast.dev/v1alpha1, kind: Backend, metadata: {{name: {name}}}, \
             spec: {{redis: {{mode: Standalone, addresses: ['{address}']}}}}}}"
        ));
        let backend = format!("backend/{name}");
        kubectl(&["wait", "--for=condition=Ready", &backend, "--timeout=90s"]);
        self.backends.lock().expect("no panic").push(name.clone());
        name
    }

    /// Whether a pod with a sidecar would be admitted now.
    pub fn try_pod(&self, name: &str) -> Result<String, String> {
        let args = ["create", "--dry-run=server", "-n", &self.name, "-f", "-"];
        try_kubectl(&args, &mk_pod(name))
    }

    /// Starts pods with a sidecar and waits until they are ready.
    pub fn pods(&self, names: &[&str]) -> Vec<Pod> {
        for name in names {
            self.apply(&mk_pod(name));
        }
        self.until_ready(names)
    }

    fn until_ready(&self, names: &[&str]) -> Vec<Pod> {
        for name in names {
            let pod = format!("pod/{name}");
            kubectl(&["wait", "-n", &self.name, "--for=condition=Ready", &pod, "--timeout=90s"]);
        }
        let pod = |name: &&str| Pod { namespace: self.name.clone(), name: (*name).to_owned() };
        names.iter().map(pod).collect()
    }

    /// Starts a pod whose app does not heed SIGTERM, and waits until it is ready.
    pub fn deaf_pod(&self, name: &str) -> Pod {
        self.apply(&mk_pod(name).replace("trap exit TERM", "trap : TERM"));
        let pod = format!("pod/{name}");
        kubectl(&["wait", "-n", &self.name, "--for=condition=Ready", &pod, "--timeout=90s"]);
        Pod { namespace: self.name.clone(), name: name.to_owned() }
    }

    /// Starts pods that stand in an election from their start on, and waits until they are ready.
    pub fn candidates(&self, names: &[&str], election: &str) -> Vec<Pod> {
        for name in names {
            self.apply(&mk_annotated_pod(name, "holdfast.dev/candidate", election));
        }
        self.until_ready(names)
    }

    /// Starts a pod with an annotation, and waits until it is ready.
    pub fn annotated_pod(&self, name: &str, annotation: &str, value: &str) -> Pod {
        self.apply(&mk_annotated_pod(name, annotation, value));
        self.until_ready(&[name]).remove(0)
    }

    /// A column of `kubectl get lock`.
    pub fn column(&self, lock: &str, header: &str) -> String {
        let table = kubectl(&["get", "lock", lock, "-n", &self.name]);
        let (head, row) = table.split_once('\n').expect("a header and a row");
        let start = head.find(header).unwrap_or_else(|| panic!("no {header} in {head}"));
        row.get(start..).and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned()
    }
}

fn mk_pod(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: '{name}', labels: \
         {{holdfast.dev/inject: 'true'}}}}, spec: {{terminationGracePeriodSeconds: 10, \
         containers: [{{name: app, image: '{}', imagePullPolicy: IfNotPresent, command: \
         [/bin/sh, -c, 'trap exit TERM; while :; do sleep 0.2; done']}}]}}}}",
        app_image()
    )
}

fn mk_annotated_pod(name: &str, annotation: &str, value: &str) -> String {
    let annotations = format!("annotations: {{{annotation}: '{value}'}}, labels:");
    mk_pod(name).replacen("labels:", &annotations, 1)
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{}",
                text(
                    &run("KUBECTL", &["get", "all,lock,lease,event", "-n", &self.name], "").stdout
                )
            );
        }
        drop(try_kubectl(&["delete", "namespace", &self.name, "--wait=false"], ""));
        for backend in
            self.backends.lock().into_iter().flat_map(|mut all| std::mem::take(&mut *all))
        {
            drop(try_kubectl(&["delete", "backend", &backend, "--wait=false"], ""));
        }
    }
}

/// A pod with a sidecar.
#[derive(Clone)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Pod {
    /// Runs a command in the app's container; what it prints.
    pub fn exec(&self, command: &[&str]) -> Result<String, String> {
        self.run("app", command)
    }

    /// Runs a command in one of its containers; what it prints.
    pub fn run(&self, container: &str, command: &[&str]) -> Result<String, String> {
        let args = ["exec", "-n", &self.namespace, &self.name, "-c", container, "--"];
        try_kubectl(&[&args[..], command].concat(), "")
    }

    /// Calls the sidecar with plain curl; the JSON that it answers.
    pub fn curl(&self, args: &[&str]) -> Value {
        let output = self.exec(&[&["curl", "-s", "--max-time", "70"][..], args].concat());
        let output = output.unwrap_or_else(|error| panic!("curl in {}: {error}", self.name));
        serde_json::from_str(&output).unwrap_or_else(|_| panic!("not JSON: {output}"))
    }

    /// `POST /v1/locks/PATH`.
    pub fn post(&self, path: &str) -> Value {
        self.curl(&["-X", "POST", &format!("http://127.0.0.1:4140/v1/locks/{path}")])
    }

    /// `GET PATH`.
    pub fn get(&self, path: &str) -> Value {
        self.curl(&[&format!("http://127.0.0.1:4140{path}")])
    }

    /// Acquires a lock, which must succeed.
    pub fn acquire(&self, lock: &str, query: &str) -> Value {
        let hold = self.post(&format!("{lock}/acquire?{query}"));
        assert!(hold["holdId"].is_string(), "{} did not get {lock}: {hold}", self.name);
        hold
    }

    /// Releases a hold.
    pub fn release(&self, lock: &str, hold: &Value) -> Value {
        let id = hold["holdId"].as_str().expect("a holdId");
        self.post(&format!("{lock}/release?holdId={id}"))
    }
}

/// A fence as a number.
pub fn fence(hold: &Value) -> u64 {
    hold["fence"].as_str().and_then(|text| text.parse().ok()).expect("a fence")
}

/// A Redis in the cluster, and where it is. Lives in the namespace.
pub fn redis(namespace: &str, name: &str) -> String {
    apply(
        namespace,
        &format!(
            "{{apiVersion: v1, kind: List, items: [{{apiVersion: v1, kind: Pod, metadata: \
             {{name: {name}, labels: {{app: {name}}}}}, spec: {{containers: [{{name: redis, \
             image: '{}', imagePullPolicy: IfNotPresent, command: [redis-server, --bind, 0.0.0.0, \
             --protected-mode, 'no', --dir, /tmp, --appendonly, 'yes', --save, '', \
             --maxmemory-policy, noeviction], readinessProbe: {{periodSeconds: 1, exec: {{command: \
             [redis-cli, ping]}}}}}}]}}}}, {{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
             spec: {{selector: {{app: {name}}}, ports: [{{port: 6379}}]}}}}]}}",
            app_image()
        ),
    );
    let pod = format!("pod/{name}");
    kubectl(&["wait", "-n", namespace, "--for=condition=Ready", &pod, "--timeout=60s"]);
    let service = get(namespace, &format!("service/{name}"));
    // Without cluster DNS, by address.
    format!("{}:6379", service["spec"]["clusterIP"].as_str().expect("an address"))
}
