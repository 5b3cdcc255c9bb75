//! Jobs and CronJobs that hold by annotation alone: no sidecar, no client.

use std::{
    collections::BTreeSet,
    thread::sleep,
    time::{Duration, Instant},
};

use holdfast_e2e::{
    Namespace,
    hold::{FENCE, HOLD, STATE, is_over, let_go, mk_template, pods, watch},
    kubectl, redis, try_kubectl,
};
use serde_json::Value;

/// When the containers of the pods ran, in seconds; sorted by their begin.
fn runs(pods: &[Value]) -> Vec<(String, String, u64)> {
    let mut runs: Vec<_> = pods
        .iter()
        .map(|pod| {
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let fence = pod["metadata"]["annotations"][FENCE].as_str().unwrap_or_default();
            (text(&ended["startedAt"]), text(&ended["finishedAt"]), fence.parse().unwrap_or(0))
        })
        .collect();
    runs.sort();
    runs
}

#[test]
fn a_jobs_pods_run_one_at_a_time_under_a_permit() {
    let namespace = Namespace::new("gated");
    let backend = namespace.backend("gated", &redis(&namespace.name, "redis"));
    namespace.semaphore("nightly", &format!("{{backend: {backend}, permits: 1, ttlSeconds: 5}}"));
    let three = "parallelism: 3, completions: 3";
    namespace.held_job("export", "semaphore/nightly", three, "echo $FENCE; sleep 5");
    // In the queue, in everybody's sight: two of the three, if not at the same look.
    let mut waited = BTreeSet::new();
    watch(&namespace, 1, 60, |pods| {
        let waiting = |pod: &&Value| {
            pod["metadata"]["annotations"][STATE].as_str().unwrap_or("").starts_with("Waiting")
        };
        let names = pods.iter().filter(waiting).filter_map(|pod| pod["metadata"]["name"].as_str());
        waited.extend(names.map(str::to_owned));
        pods.len() == 3 && waited.len() >= 2
    });
    assert!(pods(&namespace).iter().all(|pod| pod["spec"]["initContainers"].is_null()));
    watch(&namespace, 1, 120, |pods| pods.iter().filter(|pod| is_over(pod)).count() == 3);
    let job = ["--for=condition=Complete", "job/export", "--timeout=30s"];
    kubectl(&[&["wait", "-n", &namespace.name][..], &job].concat());
    let runs = runs(&pods(&namespace));
    for pair in runs.windows(2) {
        // By the kubelet's own times, which are of whole seconds.
        assert!(pair[0].1 <= pair[1].0, "{runs:?}");
        assert!(pair[0].2 < pair[1].2, "{runs:?}");
    }
    // The app was told its fence before it began.
    for pod in pods(&namespace) {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let log = kubectl(&["logs", "-n", &namespace.name, name]);
        assert_eq!(Value::from(log.trim()), pod["metadata"]["annotations"][FENCE]);
    }
    let events = kubectl(&["get", "events", "-n", &namespace.name]);
    for reason in ["HoldWaiting", "HoldGranted", "HoldReleased"] {
        assert!(events.contains(reason), "no {reason} in {events}");
    }
}

#[test]
fn a_cron_job_and_a_job_take_turns_on_a_lock_and_however_a_pod_ends_the_next_goes() {
    let namespace = Namespace::new("turns");
    namespace.lock("nightly", "{}");
    let job =
        |name: &str, command| namespace.held_job(name, "lock/nightly", "backoffLimit: 0", command);
    namespace.held_pod("first", "lock/nightly");
    watch(&namespace, 1, 60, |pods| pods.iter().any(|pod| pod["status"]["phase"] == "Running"));
    // Deleted while it waits.
    job("never", "exit 0");
    watch(&namespace, 1, 30, |pods| pods.len() == 2);
    let template = mk_template("lock/nightly", "exit 0");
    namespace.apply(&format!(
        "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: cron}}, spec: {{schedule: '* * * * *', \
         concurrencyPolicy: Forbid, jobTemplate: {{spec: {{template: {template}}}}}}}}}"
    ));
    kubectl(&["create", "job", "-n", &namespace.name, "by-hand", "--from=cronjob/cron"]);
    watch(&namespace, 1, 30, |pods| pods.len() >= 3);
    kubectl(&["delete", "job", "never", "-n", &namespace.name, "--wait=true"]);
    assert_eq!(namespace.column("nightly", "HOLDER"), "first");
    // It ends as pods do that are deleted: asked to, and then its kubelet says that it has.
    kubectl(&["delete", "pod", "first", "-n", &namespace.name, "--wait=false"]);
    let of = |job: &'static str, phase: &'static str| {
        move |pods: &[Value]| {
            let ours = |pod: &&Value| pod["metadata"]["labels"]["job-name"] == job;
            pods.iter().find(ours).is_some_and(|pod| pod["status"]["phase"] == phase)
        }
    };
    watch(&namespace, 1, 60, of("by-hand", "Succeeded"));
    kubectl(&["delete", "cronjob", "cron", "-n", &namespace.name]);
    job("broken", "exit 137");
    watch(&namespace, 1, 60, of("broken", "Failed"));
    job("last", "exit 0");
    watch(&namespace, 1, 60, of("last", "Succeeded"));
}

#[test]
fn a_pod_that_vanished_blocks_until_its_hold_runs_out() {
    let namespace = Namespace::new("vanish");
    namespace.lock("nightly", "{ttlSeconds: 1}");
    namespace.held_pod("a", "lock/nightly");
    kubectl(&["wait", "-n", &namespace.name, "--for=condition=Ready", "pod/a", "--timeout=60s"]);
    namespace.held_pod("b", "lock/nightly");
    watch(&namespace, 1, 30, |pods| pods.len() == 2);
    kubectl(&["delete", "pod", "a", "-n", &namespace.name, "--force", "--grace-period=0"]);
    // podHoldSeconds is 20 here, and a third of it may have gone since the last renewal.
    let deleted = Instant::now();
    loop {
        let now = pods(&namespace);
        if deleted.elapsed() > Duration::from_secs(10) {
            break;
        }
        assert!(let_go(&now).is_empty(), "let go while a may run");
        sleep(Duration::from_millis(200));
    }
    watch(&namespace, 1, 30, |pods| let_go(pods).len() == 1);
}

#[test]
fn a_hold_that_cannot_be_understood_is_refused_and_no_other_pod_is_asked_about() {
    let namespace = Namespace::new("refused");
    let pod = |annotations: &str| {
        let args = ["create", "--dry-run=server", "-n", &namespace.name, "-o", "json", "-f", "-"];
        try_kubectl(
            &args,
            &format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: x, annotations: {{{annotations}}}}}, \
                 spec: {{containers: [{{name: app, image: x}}]}}}}"
            ),
        )
    };
    for (annotations, says) in [
        ("holdfast.dev/hold: nightly", "is \"lock/NAME\" or \"semaphore/NAME\", not \"nightly\""),
        ("holdfast.dev/hold: lokc/nightly", "did you mean \"lock\"?"),
        ("holdfast.dev/hold: 'lock/nightly#a'", "holdfast.dev/hold-key"),
        ("holdfast.dev/hold: lock/a, holdfast.dev/hold-permits: '2'", "a Lock has no permits"),
    ] {
        let refusal = pod(annotations).expect_err(annotations);
        assert!(refusal.contains(says), "{annotations}: {refusal}");
    }
    let gated: Value =
        serde_json::from_str(&pod("holdfast.dev/hold: lock/nightly").unwrap()).unwrap();
    assert_eq!(gated["spec"]["schedulingGates"][0]["name"], HOLD);
    assert_eq!(gated["metadata"]["labels"][HOLD], "lock.nightly");
    let plain: Value = serde_json::from_str(&pod("a: b").unwrap()).unwrap();
    assert!(plain["spec"]["schedulingGates"].is_null() && plain["metadata"]["labels"].is_null());
}
