//! Who may do what: pods under the strictest Pod Security, accounts without access, and tenants of one
//! Redis.

use std::time::Duration;

use holdfast_e2e::{
    Namespace, Pod, SYSTEM, app_image, eventually, get, kubectl, may, redis, try_kubectl,
};
use serde_json::{Value, json};

/// A pod that asks for a sidecar and is as confined as Pod Security `restricted` asks.
fn mk_confined(name: &str, account: &str) -> String {
    let security = json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 65532,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"holdfast.dev/inject": "true"}},
        "spec": {"serviceAccountName": account, "terminationGracePeriodSeconds": 5, "containers": [{
            "name": "app", "image": app_image(), "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 0.2; done"],
            "securityContext": security,
        }]},
    })
    .to_string()
}

fn start(namespace: &Namespace, name: &str, account: &str) -> Pod {
    namespace.apply(&mk_confined(name, account));
    let pod = format!("pod/{name}");
    kubectl(&["wait", "-n", &namespace.name, "--for=condition=Ready", &pod, "--timeout=90s"]);
    Pod { namespace: namespace.name.clone(), name: name.to_owned() }
}

fn dry_run(namespace: &str, yaml: &str) -> Result<String, String> {
    try_kubectl(&["create", "--dry-run=server", "-n", namespace, "-f", "-"], yaml)
}

#[test]
fn everything_runs_where_pod_security_is_restricted() {
    let namespace = Namespace::new("restricted");
    let label = "pod-security.kubernetes.io/enforce=restricted";
    kubectl(&["label", "namespace", &namespace.name, label]);
    // The control: it is in force.
    let plain = "{apiVersion: v1, kind: Pod, metadata: {name: plain}, spec: {containers: \
                 [{name: app, image: x}]}}";
    let refusal = dry_run(&namespace.name, plain).expect_err("restricted");
    assert!(refusal.contains("violates PodSecurity"), "{refusal}");

    namespace.lock("orders", "{ttlSeconds: 5}");
    let pod = start(&namespace, "a", "default");
    pod.acquire("orders", "waitSeconds=10");

    let deployment = get(SYSTEM, "deployment/holdfast-operator");
    let mut spec = deployment["spec"]["template"]["spec"].clone();
    spec["serviceAccountName"] = Value::Null;
    spec["serviceAccount"] = Value::Null;
    let operator =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "o"}, "spec": spec});
    dry_run(&namespace.name, &operator.to_string()).unwrap();
}

#[test]
fn an_account_without_access_is_refused_by_the_sidecar_and_by_the_api_server() {
    let namespace = Namespace::new("access");
    for account in ["ann", "bob"] {
        kubectl(&["create", "serviceaccount", account, "-n", &namespace.name]);
    }
    namespace.lock(
        "orders",
        "{ttlSeconds: 5, access: [{serviceAccounts: [ann]}, {serviceAccounts: [bob], verbs: [Read]}]}",
    );
    namespace.lock("open", "{ttlSeconds: 5}");
    let pods = ["ann", "bob", "default"].map(|account| start(&namespace, account, account));
    let hold = pods[0].acquire("orders", "waitSeconds=10");
    for pod in &pods[1..] {
        let refusal = pod.post("orders/acquire");
        assert_eq!(refusal["code"], "forbidden", "{}: {refusal}", pod.name);
        pod.acquire("open", "waitSeconds=30&renew=manual");
    }
    let seen = pods[1].get("/v1/locks/orders");
    assert_eq!(seen["holder"]["fence"], hold["fence"], "{seen}");

    let ns = namespace.name.as_str();
    let (theirs, open) = ("leases/holdfast-lock-orders", "leases/holdfast-lock-open");
    eventually("the Roles are in force", Duration::from_secs(20), || {
        may("ann", ns, "patch", theirs)
    });
    assert!(may("bob", ns, "get", theirs) && may("default", ns, "patch", open));
    for (account, verb, what) in [
        ("bob", "patch", theirs),
        ("default", "get", theirs),
        ("default", "patch", theirs),
        ("ann", "create", "leases"),
        ("ann", "list", "leases"),
        ("ann", "update", theirs),
        ("ann", "delete", theirs),
        ("ann", "get", "secrets/holdfast-redis"),
        ("ann", "get", "configmaps/theirs"),
        ("ann", "patch", "configmaps/holdfast-bundle"),
    ] {
        assert!(!may(account, ns, verb, what), "{account} may {verb} {what}");
    }
}

#[test]
fn a_tenant_of_a_redis_reaches_its_own_keys_only() {
    let home = Namespace::new("tenant");
    let backend = home.backend("shared", &redis(&home.name, "redis"));
    let neighbour = Namespace::new("tenant2");
    let spec = format!("{{ttlSeconds: 5, backend: {backend}}}");
    for namespace in [&home, &neighbour] {
        namespace.lock("orders", &spec);
    }
    let pod = start(&neighbour, "a", "default");
    let hold = pod.acquire("orders", "waitSeconds=20");

    // The credentials are in the sidecar's container only; take them from where it has them.
    let secret = |key: &str| {
        let template =
            format!("-o=go-template={{{{index .data \"{backend}.{key}\" | base64decode}}}}");
        kubectl(&["get", "secret", "holdfast-redis", "-n", &home.name, &template])
    };
    let (user, password) = (secret("username"), secret("password"));
    let server = Pod { namespace: home.name.clone(), name: "redis".into() };
    let call = |command: &[&str]| {
        let login = ["redis-cli", "--user", &user, "--pass", &password, "--no-auth-warning"];
        server.run("redis", &[&login[..], command].concat()).unwrap()
    };
    assert_eq!(call(&["PING"]), "PONG", "the control: it may log in");
    let admin =
        |command: &[&str]| server.run("redis", &[&["redis-cli"], command].concat()).unwrap();
    let keys = admin(&["--scan", "--pattern", &format!("*{}*", neighbour.name)]);
    let record = keys.lines().find(|key| key.contains("orders")).expect("the neighbour's key");
    for command in [
        &["GET", record][..],
        &["HSET", record, "fence", "1"],
        &["PEXPIRE", record, "1"],
        &["PUBLISH", "hf:everything", "x"],
        &["FLUSHALL"],
        &["EVAL", "return 1", "0"],
        &["FUNCTION", "FLUSH"],
        &["SCRIPT", "FLUSH"],
        &["CONFIG", "GET", "*"],
        &["ACL", "LIST"],
        &["KEYS", "*"],
        &["SCAN", "0"],
        &["SHUTDOWN"],
    ] {
        let answer = call(command);
        assert!(answer.contains("NOPERM"), "{command:?}: {answer}");
    }
    let still = pod.get("/v1/locks/orders");
    assert_eq!(still["holder"]["fence"], hold["fence"], "{still}");
}
