//! The operator is never in the path of a request, and comes back to where it was. These tests take
//! it away, so they run alone and one by one.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test that cannot go on has failed"
)]

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use holdfast_e2e::{
    Namespace, SYSTEM, eventually, fence, helm_upgrade,
    hold::{is_over, let_go, watch},
    kubectl, redis, try_kubectl,
};

#[test]
fn locks_keep_working_while_the_operator_is_killed_and_changes_wait_for_it() {
    let namespace = Namespace::new("killed");
    namespace.lock("orders", "{ttlSeconds: 5}");
    let pods = namespace.pods(&["a", "b"]);
    let (done, grants) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut last = 0;
            while !done.load(Relaxed) || grants.load(Relaxed) < 6 {
                for pod in &pods {
                    let hold = pod.acquire("orders", "waitSeconds=20");
                    assert!(fence(&hold) > last);
                    last = fence(&hold);
                    assert_eq!(pod.release("orders", &hold)["released"], true);
                    grants.fetch_add(1, Relaxed);
                }
            }
        });
        let operator = ["-n", SYSTEM, "-l", "app.kubernetes.io/component=operator"];
        let kill = ["delete", "pod", "--force", "--grace-period=0"];
        kubectl(&[&kill[..], &operator].concat());
        let before = grants.load(Relaxed);
        // Declared while there is no operator: it waits, and is done when there is one again.
        namespace.lock("later", "{}");
        kubectl(&[
            "rollout",
            "status",
            "-n",
            SYSTEM,
            "deployment/holdfast-operator",
            "--timeout=90s",
        ]);
        thread::sleep(Duration::from_secs(2));
        let meanwhile = grants.load(Relaxed) - before;
        done.store(true, Relaxed);
        worker.join().unwrap();
        // One was perhaps on its way, and on a slow machine there are not many.
        assert!(meanwhile >= 2, "{meanwhile} grants while the operator was replaced");
    });
    eventually("the sidecar has the new class", Duration::from_secs(30), || {
        pods[0].post("later/acquire")["holdId"].is_string()
    });
}

#[test]
fn an_upgrade_takes_no_lock_from_its_holder() {
    let namespace = Namespace::new("upgrade");
    namespace.lock("orders", "{ttlSeconds: 5}");
    let pods = namespace.pods(&["a"]);
    let hold = pods[0].acquire("orders", "");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let admissions = scope.spawn(|| {
            let mut admitted = 0;
            while !done.load(Relaxed) || admitted < 20 {
                let answer = namespace.try_pod("probe");
                assert!(answer.is_ok(), "after {admitted} were admitted: {answer:?}");
                admitted += 1;
            }
        });
        helm_upgrade(&["--set", "operator.log=debug"]);
        let deployment = "deployment/holdfast-operator";
        kubectl(&["rollout", "status", "-n", SYSTEM, deployment, "--timeout=90s"]);
        // The old replicas are still on their way out.
        thread::sleep(Duration::from_secs(5));
        done.store(true, Relaxed);
        admissions.join().unwrap();
    });
    let id = hold["holdId"].as_str().unwrap();
    let info = pods[0].get(&format!("/v1/holds/{id}"));
    assert_eq!((&info["state"], &info["fence"]), (&"held".into(), &hold["fence"]), "{info}");
    // The certificate authority of the webhook is not reset by an upgrade.
    namespace.pods(&["b"]);
}

#[test]
fn without_the_operator_locks_work_and_only_pods_that_ask_for_a_sidecar_wait() {
    let namespace = Namespace::new("absent");
    namespace.lock("orders", "{ttlSeconds: 6}");
    let pod = &namespace.pods(&["a"])[0];
    let hold = pod.acquire("orders", "waitSeconds=10");
    let scale = |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        kubectl(&["scale", "-n", SYSTEM, "deployment/holdfast-operator", &replicas]);
    };
    scale("0");
    let labels = ["-l", "app.kubernetes.io/component=operator", "-o", "name"];
    eventually("the operator is gone", Duration::from_secs(60), || {
        kubectl(&[&["get", "pods", "-n", SYSTEM][..], &labels].concat()).is_empty()
    });
    let plain = "{apiVersion: v1, kind: Pod, metadata: {name: plain}, spec: {containers: \
                 [{name: app, image: x}]}}";
    let args = ["create", "--dry-run=server", "-n", &namespace.name, "-f", "-"];
    try_kubectl(&args, plain).unwrap();
    let refusal = namespace.try_pod("b").expect_err("nobody injects");
    assert!(refusal.contains("inject.holdfast.dev"), "{refusal}");
    // It goes on being renewed, for longer than it would last by itself. A renewal may be late.
    let id = hold["holdId"].as_str().unwrap();
    for _ in 0..16 {
        let info = pod.get(&format!("/v1/holds/{id}"));
        assert!(info["state"] == "held" || info["state"] == "suspended", "{info}");
        assert_eq!(info["fence"], hold["fence"], "{info}");
        thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(pod.release("orders", &hold)["released"], true);
    let next = pod.acquire("orders", "");
    assert!(fence(&next) > fence(&hold));
    scale("2");
    let deployment = "deployment/holdfast-operator";
    kubectl(&["rollout", "status", "-n", SYSTEM, deployment, "--timeout=90s"]);
    eventually("sidecars are injected again", Duration::from_secs(30), || {
        namespace.try_pod("b").is_ok()
    });
}

#[test]
fn operators_that_are_killed_let_no_pod_go_beside_another() {
    let namespace = Namespace::new("gates");
    let backend = namespace.backend("gates", &redis(&namespace.name, "redis"));
    namespace.semaphore("pool", &format!("{{backend: {backend}, permits: 2, ttlSeconds: 5}}"));
    namespace.lock("nightly", "{}");
    let eight = "parallelism: 8, completions: 8";
    namespace.held_job("pooled", "semaphore/pool", eight, "sleep 2");
    namespace.held_job("nightly", "lock/nightly", "parallelism: 4, completions: 4", "sleep 2");
    let operators = ["-n", SYSTEM, "-l", "app.kubernetes.io/component=operator"];
    let kill = ["delete", "pod", "--force", "--grace-period=0", "--wait=false"];
    // Three are let go at a time, so a fourth end since a kill shows that the next operator lets
    // pods go: it is killed there. By progress, for a fast machine is done before any delay is.
    let mut kills = 0;
    let mut next = 1;
    watch(&namespace, 3, 240, |pods| {
        let of = |job: &str| {
            let pods = pods.iter().filter(|pod| pod["metadata"]["labels"]["job-name"] == job);
            pods.cloned().collect::<Vec<_>>()
        };
        let (pooled, nightly) = (of("pooled"), of("nightly"));
        assert!(let_go(&pooled).len() <= 2 && let_go(&nightly).len() <= 1);
        let over = |pods: &[_]| pods.iter().filter(|pod| is_over(pod)).count();
        let over = (over(&pooled), over(&nightly));
        if kills < 3 && over.0 + over.1 >= next {
            kubectl(&[&kill[..], &operators].concat());
            kills += 1;
            next = over.0 + over.1 + 4;
        }
        over == (8, 4)
    });
    assert!(kills >= 2, "all was over after {kills} kills");
    let rollout = ["rollout", "status", "-n", SYSTEM, "deployment/holdfast-operator"];
    kubectl(&[&rollout[..], &["--timeout=90s"]].concat());
}
