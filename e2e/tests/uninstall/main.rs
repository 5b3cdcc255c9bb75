//! The end: `helm uninstall` leaves nothing that needs the operator.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test that cannot go on has failed"
)]

use std::time::Duration;

use holdfast_e2e::{
    Namespace, Pod, SYSTEM, apply, eventually, fence, helm, helm_upgrade, kubectl, redis,
    try_kubectl,
};
use serde_json::Value;

/// The fences of deleted classes outlive an uninstall: a class may be created again later.
const KEPT: &str = "holdfast-fence-floors";

fn names(args: &[&str]) -> Vec<String> {
    let found = kubectl(&[&["get", "-o", "name"], args].concat());
    found.lines().filter(|name| !name.contains(KEPT)).map(str::to_owned).collect()
}

/// Uninstalls, and looks for what is left.
fn uninstall() {
    helm(&["uninstall", "holdfast", "-n", SYSTEM, "--wait", "--timeout", "120s"]);
    eventually("the operator's pods are gone", Duration::from_secs(60), || {
        names(&["pods", "-n", SYSTEM]).is_empty()
    });
    for kind in [
        "configmaps",
        "secrets",
        "serviceaccounts",
        "roles",
        "rolebindings",
        "leases",
        "services",
        "deployments",
        "jobs",
        "networkpolicies",
        "poddisruptionbudgets",
    ] {
        let mut left = names(&[kind, "-n", SYSTEM]);
        left.retain(|name| name.contains("holdfast"));
        assert!(left.is_empty(), "{left:?}");
        let left = names(&[kind, "-A", "-l", "holdfast.dev/managed=true"]);
        assert!(left.is_empty(), "{left:?}");
    }
    for kind in [
        "mutatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "clusterroles",
        "clusterrolebindings",
        "flowschemas",
        "prioritylevelconfigurations",
    ] {
        let mut left = names(&[kind]);
        left.retain(|name| name.contains("holdfast"));
        assert!(left.is_empty(), "{left:?}");
    }
    // Classes and Backends stay, and nothing keeps them from being deleted.
    for what in ["locks.holdfast.dev", "backends.holdfast.dev"] {
        let all: Value =
            serde_json::from_str(&kubectl(&["get", what, "-A", "-o", "json"])).unwrap();
        for object in all["items"].as_array().unwrap() {
            assert!(object["metadata"]["finalizers"].is_null(), "{object}");
        }
    }
}

#[test]
fn uninstall_leaves_classes_that_can_be_deleted_and_nothing_else() {
    let namespace = Namespace::new("uninstall");
    let backend = namespace.backend("alive", &redis(&namespace.name, "redis"));
    namespace.lock("orders", "{ttlSeconds: 5}");
    namespace.lock("stock", &format!("{{ttlSeconds: 5, backend: {backend}}}"));
    let pods = namespace.pods(&["a"]);
    let held = pods[0].acquire("orders", "");
    // A Backend that never answers must not be in the way.
    apply(
        "default",
        "{apiVersion: holdfast.dev/v1alpha1, kind: Backend, metadata: {name: dead}, \
         spec: {redis: {mode: Standalone, addresses: ['192.0.2.1:6379']}}}",
    );
    uninstall();
    let server = Pod { namespace: namespace.name.clone(), name: "redis".into() };
    let users = server.run("redis", &["redis-cli", "ACL", "LIST"]).unwrap();
    assert!(!users.contains(&namespace.name), "the namespace's user stays: {users}");

    // Installed again, it takes up the classes that were left, under sidecars that still run.
    helm_upgrade(&[]);
    let mut again = Value::Null;
    eventually("the class is served again", Duration::from_secs(60), || {
        again = pods[0].post("orders/acquire?waitSeconds=5");
        again["holdId"].is_string()
    });
    assert!(fence(&again) > fence(&held), "{again} {held}");
    uninstall();

    kubectl(&["delete", "lock", "--all", "-n", &namespace.name, "--timeout=60s"]);
    kubectl(&["delete", "backend", "dead", &backend, "--timeout=60s"]);
    // Pods that ask for a sidecar are admitted, with nobody there to inject it.
    namespace.try_pod("b").unwrap();
    kubectl(&["delete", "namespace", &namespace.name, "--timeout=60s"]);
    assert!(try_kubectl(&["get", "namespace", &namespace.name], "").is_err());
}
