//! The end: `helm uninstall` leaves nothing that needs the operator.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test that cannot go on has failed"
)]

use std::time::Duration;

use holdfast_e2e::{Namespace, SYSTEM, apply, eventually, get, helm, kubectl, try_kubectl};

#[test]
fn uninstall_leaves_classes_that_can_be_deleted_and_nothing_else() {
    let namespace = Namespace::new("uninstall");
    namespace.lock("orders", "{ttlSeconds: 5}");
    let pods = namespace.pods(&["a"]);
    pods[0].acquire("orders", "");
    // A Backend that never answers must not be in the way.
    apply(
        "default",
        "{apiVersion: holdfast.dev/v1alpha1, kind: Backend, metadata: {name: dead}, \
         spec: {redis: {mode: Standalone, addresses: ['192.0.2.1:6379']}}}",
    );
    helm(&["uninstall", "holdfast", "-n", SYSTEM, "--wait", "--timeout", "120s"]);
    let managed = ["-A", "-l", "holdfast.dev/managed=true", "-o", "name"];
    for kind in ["leases", "roles", "rolebindings", "configmaps", "secrets"] {
        let left = kubectl(&[&["get", kind][..], &managed].concat());
        let left: Vec<&str> =
            left.lines().filter(|l| !l.contains("holdfast-fence-floors")).collect();
        assert!(left.is_empty(), "{kind}: {left:?}");
    }
    let cluster_wide = [
        "mutatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "clusterroles",
        "clusterrolebindings",
        "flowschemas",
        "prioritylevelconfigurations",
    ];
    for kind in cluster_wide {
        let left = kubectl(&["get", kind, "-o", "name"]);
        assert!(!left.contains("holdfast"), "{kind}: {left}");
    }
    eventually("the operator's pods are gone", Duration::from_secs(60), || {
        kubectl(&["get", "pods", "-n", SYSTEM, "-o", "name"]).is_empty()
    });
    // Pods that ask for a sidecar are admitted again, and classes can go though nobody is there.
    let lock = get(&namespace.name, "lock/orders");
    assert!(lock["metadata"]["finalizers"].is_null(), "{lock}");
    kubectl(&["delete", "lock", "orders", "-n", &namespace.name, "--timeout=20s"]);
    kubectl(&["delete", "backend", "dead", "--timeout=20s"]);
    kubectl(&["delete", "namespace", &namespace.name, "--timeout=60s"]);
    assert!(try_kubectl(&["get", "namespace", &namespace.name], "").is_err());
}
