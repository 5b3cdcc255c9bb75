//! A Redis that fails: what was granted is never granted again with a lower fence.

use std::time::Duration;

use holdfast_e2e::{Namespace, Pod, eventually, fence, get, kubectl, redis};
use serde_json::Value;

#[test]
fn a_redis_that_comes_back_empty_grants_higher_fences_after_the_longest_hold() {
    let namespace = Namespace::new("empty");
    let backend = namespace.backend("empty", &redis(&namespace.name, "redis"));
    namespace.lock("orders", &format!("{{ttlSeconds: 3, backend: {backend}}}"));
    let pods = namespace.pods(&["a", "b"]);
    let hold = pods[0].acquire("orders", "waitSeconds=20");
    let epoch = || get("default", &format!("backend/{backend}"))["status"]["epoch"].clone();
    let before = epoch()["number"].as_u64().unwrap();
    // All of its data goes with the pod; the Service, and so the address, stays.
    kubectl(&["delete", "pod", "redis", "-n", &namespace.name, "--force", "--grace-period=0"]);
    redis(&namespace.name, "redis");
    let mut next = Value::Null;
    eventually("it grants again", Duration::from_secs(60), || {
        next = pods[1].post("orders/acquire?waitSeconds=5");
        next["holdId"].is_string()
    });
    assert!(fence(&next) > fence(&hold), "{next} {hold}");
    assert!(epoch()["number"].as_u64().unwrap() > before);
    let id = hold["holdId"].as_str().unwrap();
    assert_eq!(pods[0].get(&format!("/v1/holds/{id}"))["code"], "hold_lost");
    assert_eq!(pods[1].release("orders", &next)["released"], true);
}

#[test]
fn a_namespace_can_be_deleted_though_its_redis_is_gone_for_good() {
    let namespace = Namespace::new("wedge");
    let backend = namespace.backend("wedge", &redis(&namespace.name, "redis"));
    namespace.lock("orders", &format!("{{ttlSeconds: 3, backend: {backend}}}"));
    kubectl(&["delete", "pod", "redis", "-n", &namespace.name, "--force", "--grace-period=0"]);
    // The operator lets go of it after letGoSeconds.
    kubectl(&["delete", "namespace", &namespace.name, "--timeout=120s"]);
    kubectl(&["delete", "backend", &backend, "--timeout=120s"]);
}

#[test]
fn the_last_class_of_a_namespace_may_go_and_come_back_under_running_pods() {
    let namespace = Namespace::new("back");
    let backend = namespace.backend("back", &redis(&namespace.name, "redis"));
    let spec = format!("{{ttlSeconds: 3, backend: {backend}}}");
    namespace.lock("orders", &spec);
    let pods = namespace.pods(&["a"]);
    let before = pods[0].acquire("orders", "waitSeconds=20");
    pods[0].release("orders", &before);
    // The Backends of other scenes come and go meanwhile.
    let ours = format!("{backend}.password");
    let secret = || get(&namespace.name, "secret/holdfast-redis")["data"][&ours].clone();
    let credentials = secret();
    assert!(credentials.is_string());
    kubectl(&["delete", "lock", "orders", "-n", &namespace.name, "--timeout=60s"]);
    eventually("its user is gone", Duration::from_secs(20), || {
        let server = Pod { namespace: namespace.name.clone(), name: "redis".into() };
        let users = server.run("redis", &["redis-cli", "ACL", "LIST"]).unwrap();
        !users.contains(&namespace.name)
    });
    // A kubelet takes a minute or so to bring a new password to a running pod.
    assert_eq!(secret(), credentials);
    namespace.lock("orders", &spec);
    let mut after = Value::Null;
    eventually("the new class is served", Duration::from_secs(30), || {
        after = pods[0].post("orders/acquire");
        after["holdId"].is_string()
    });
    assert!(fence(&after) > fence(&before), "{after} {before}");
}
