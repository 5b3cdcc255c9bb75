//! The operator is never in the path of a request, and comes back to where it was.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use holdfast_e2e::{Namespace, SYSTEM, eventually, fence, helm_upgrade, kubectl};

#[test]
fn locks_keep_working_while_the_operator_is_killed_and_changes_wait_for_it() {
    let namespace = Namespace::new("killed");
    namespace.lock("orders", "{ttlSeconds: 5}");
    let pods = namespace.pods(&["a", "b"]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let (mut last, mut grants) = (0, 0);
            while !done.load(Relaxed) {
                for pod in &pods {
                    let hold = pod.acquire("orders", "waitSeconds=20");
                    assert!(fence(&hold) > last);
                    last = fence(&hold);
                    assert_eq!(pod.release("orders", &hold)["released"], true);
                    grants += 1;
                }
            }
            grants
        });
        let operator = ["-n", SYSTEM, "-l", "app.kubernetes.io/component=operator"];
        let kill = ["delete", "pod", "--force", "--grace-period=0"];
        kubectl(&[&kill[..], &operator].concat());
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
        done.store(true, Relaxed);
        assert!(worker.join().unwrap() >= 6);
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
            while !done.load(Relaxed) {
                let answer = namespace.try_pod("probe");
                assert!(answer.is_ok(), "after {admitted} were admitted: {answer:?}");
                admitted += 1;
            }
            admitted
        });
        helm_upgrade(&["--set", "operator.log=debug"]);
        let deployment = "deployment/holdfast-operator";
        kubectl(&["rollout", "status", "-n", SYSTEM, deployment, "--timeout=90s"]);
        // The old replicas are still on their way out.
        thread::sleep(Duration::from_secs(5));
        done.store(true, Relaxed);
        assert!(admissions.join().unwrap() >= 20);
    });
    let id = hold["holdId"].as_str().unwrap();
    let info = pods[0].get(&format!("/v1/holds/{id}"));
    assert_eq!((&info["state"], &info["fence"]), (&"held".into(), &hold["fence"]), "{info}");
    // The certificate authority of the webhook is not reset by an upgrade.
    namespace.pods(&["b"]);
}
