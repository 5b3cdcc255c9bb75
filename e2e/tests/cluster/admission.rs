//! What the API server refuses, and what it says.

use holdfast_e2e::{Namespace, get, kubectl, try_kubectl};
use serde_json::Value;

fn lock(spec: &str) -> String {
    format!(
        "{{apiVersion: holdfast.dev/v1alpha1, kind: Lock, metadata: {{name: x}}, spec: {spec}}}"
    )
}

/// The messages of all rules below a part of a schema.
fn messages(schema: &Value, found: &mut Vec<String>) {
    if let Some(rules) = schema.get("x-kubernetes-validations").and_then(Value::as_array) {
        found.extend(rules.iter().map(|rule| rule["message"].as_str().unwrap().to_owned()));
    }
    match schema {
        Value::Object(fields) => fields.values().for_each(|field| messages(field, found)),
        Value::Array(items) => items.iter().for_each(|item| messages(item, found)),
        _ => {}
    }
}

/// Every rule of a definition has refused something.
pub fn assert_all_seen(definition: &str, refusals: &[String]) {
    let crd = get("default", &format!("crd/{definition}"));
    let mut rules = Vec::new();
    messages(&crd["spec"]["versions"], &mut rules);
    assert!(!rules.is_empty(), "{definition} has no rules");
    for rule in rules {
        let is_seen = refusals.iter().any(|refusal| refusal.contains(&rule));
        assert!(is_seen, "no case of {definition} fails with: {rule}");
    }
}

#[test]
fn every_rule_of_a_lock_has_a_case_that_passes_and_one_that_fails() {
    let namespace = Namespace::new("rules");
    let try_lock = |yaml: &str| {
        try_kubectl(&["apply", "--dry-run=server", "-n", &namespace.name, "-f", "-"], yaml)
    };
    let mut refusals = Vec::new();
    for (good, bad, says) in [
        ("{ttlSeconds: 1}", "{ttlSeconds: 0}", "greater than or equal to 1"),
        ("{ttlSeconds: 86400}", "{ttlSeconds: 86401}", "less than or equal to 86400"),
        (
            "{ttlSeconds: 30, maxHoldSeconds: 30}",
            "{ttlSeconds: 30, maxHoldSeconds: 29}",
            "maxHoldSeconds must not be less than ttlSeconds",
        ),
        (
            "{maxHoldSeconds: 60, minHoldSeconds: 60}",
            "{maxHoldSeconds: 60, minHoldSeconds: 61}",
            "minHoldSeconds must not be greater than maxHoldSeconds",
        ),
        ("{fairness: None}", "{fairness: Fifo}", "cannot promise an order"),
        ("{backend: main, fairness: Fifo}", "{backend: memory}", "exists in `holdfast dev` only"),
        (
            "{backend: main, consistency: BestEffort}",
            "{consistency: BestEffort}",
            "the lease backend is always Strict",
        ),
        ("{keys: [a, b]}", "{keys: [a, a]}", "Duplicate value"),
        ("{queue: {maxWaiters: 0}}", "{queue: {maxWaiters: 10001}}", "less than or equal to 10000"),
        (
            "{access: [{serviceAccounts: [a]}]}",
            "{access: [{serviceAccounts: []}]}",
            "should have at least 1 items",
        ),
        ("{}", "{ttlSecond: 5}", "unknown field"),
    ] {
        try_lock(&lock(good)).unwrap_or_else(|error| panic!("{good}: {error}"));
        let refusal = try_lock(&lock(bad)).expect_err(bad);
        assert!(refusal.contains(says), "{bad}: {refusal}");
        refusals.push(refusal);
    }
    let long = "l".repeat(53);
    let named = lock("{}").replacen("name: x", &format!("name: {long}"), 1);
    refusals.push(try_lock(&named).expect_err("too long"));
    let longest = lock("{}").replacen("name: x", &format!("name: {}", "l".repeat(52)), 1);
    try_lock(&longest).unwrap();
    namespace.lock("x", "{}");
    refusals.push(try_lock(&lock("{backend: main}")).expect_err("backend is immutable"));
    try_lock(&lock("{ttlSeconds: 30}")).unwrap();
    assert_all_seen("locks.holdfast.dev", &refusals);
}

#[test]
fn every_rule_of_a_backend_has_a_case_that_passes_and_one_that_fails() {
    holdfast_e2e::installed();
    let try_backend = |name: &str, spec: &str| {
        let yaml = format!(
            "{{apiVersion: holdfast.dev/v1alpha1, kind: Backend, metadata: {{name: {name}}}, spec: {spec}}}"
        );
        try_kubectl(&["apply", "--dry-run=server", "-f", "-"], &yaml)
    };
    let good = "{redis: {mode: Standalone, addresses: ['r:6379']}}";
    let longest = "b".repeat(63);
    try_backend("r", good).unwrap();
    try_backend("r", "{redis: {mode: Cluster, addresses: ['a:1', 'b:1']}}").unwrap();
    try_backend("r", "{redis: {mode: Redlock, addresses: ['a:1', 'b:1', 'c:1']}}").unwrap();
    try_backend(&longest, good).unwrap();
    let refusals = [
        ("lease", good, "built in"),
        ("memory", good, "built in"),
        (&format!("{longest}b"), good, "at most 63 characters"),
        ("r", "{redis: {mode: Standalone, addresses: []}}", "should have at least 1 items"),
        ("r", "{redis: {mode: Standalone, addresses: ['a:1', 'b:1']}}", "exactly one address"),
        ("r", "{redis: {mode: Sentinel, addresses: ['a:1', 'b:1']}}", "needs sentinel.masterName"),
        (
            "r",
            "{redis: {mode: Cluster, addresses: ['a:1'], ack: {replicas: 1}}}",
            "mode Cluster has no ack",
        ),
        ("r", "{redis: {mode: Cluster, addresses: ['a:1'], database: 1}}", "database must be 0"),
        ("r", "{redis: {mode: Redlock, addresses: ['a:1', 'b:1']}}", "3 or 5 addresses"),
        ("r", "{redis: {mode: Redlock, addresses: ['a:1', 'b:1', 'a:1']}}", "there twice"),
        (
            "r",
            "{redis: {mode: Redlock, addresses: ['a:1', 'b:1', 'c:1'], ack: {replicas: 1}}}",
            "mode Redlock has no ack",
        ),
        ("r", "{redis: {mode: Sideways, addresses: ['r:6379']}}", "Unsupported value"),
        ("r", "{redis: {addresses: ['r:6379'], database: 1024}}", "less than or equal to 1023"),
        ("r", "{redis: {addresses: ['r:6379'], tenancy: None}}", "Unsupported value"),
        ("r", "{redis: {addresses: ['r:6379'], tls: {insecure: true}}}", "unknown field"),
        ("r", "{}", "Required value"),
    ]
    .map(|(name, spec, says)| {
        let refusal = try_backend(name, spec).expect_err(spec);
        assert!(refusal.contains(says), "{spec}: {refusal}");
        refusal
    });
    assert_all_seen("backends.holdfast.dev", &refusals);
}

#[test]
fn explain_reads_well_and_columns_are_there() {
    let namespace = Namespace::new("explain");
    let text = kubectl(&["explain", "lock.spec.ttlSeconds"]);
    assert!(text.contains("Seconds a hold lasts without a renewal"), "{text}");
    let text = kubectl(&["explain", "backend.spec.redis"]);
    assert!(text.contains("addresses"), "{text}");
    namespace.lock("x", "{}");
    let table = kubectl(&["get", "lock", "-n", &namespace.name]);
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    let columns = ["NAME", "READY", "HOLDER", "FENCE", "WAITING", "BACKEND", "GUARANTEE", "AGE"];
    assert_eq!(header, columns);
    assert!(kubectl(&["get", "holdfast", "-A"]).contains("lock.holdfast.dev/x"));
    let lock = get(&namespace.name, "lock/x");
    assert_eq!(lock["status"]["conditions"][0]["type"], "Ready");
    assert_eq!(lock["status"]["guarantee"], "Consensus");
}

#[test]
fn a_pod_that_does_not_ask_gets_no_sidecar_and_a_job_completes_with_one() {
    let namespace = Namespace::new("inject");
    namespace.lock("job", "{ttlSeconds: 5}");
    let image = holdfast_e2e::app_image();
    namespace.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: plain}}, spec: {{containers: \
         [{{name: app, image: '{image}', imagePullPolicy: IfNotPresent, command: [sleep, '60']}}]}}}}"
    ));
    let plain = get(&namespace.name, "pod/plain");
    assert!(plain["spec"]["initContainers"].is_null(), "{plain}");
    namespace.apply(&format!(
        "{{apiVersion: batch/v1, kind: Job, metadata: {{name: once}}, spec: {{template: {{metadata: \
         {{labels: {{holdfast.dev/inject: 'true'}}}}, spec: {{restartPolicy: Never, containers: \
         [{{name: app, image: '{image}', imagePullPolicy: IfNotPresent, command: [/bin/sh, -ec, \
         'curl -sf --retry 20 --retry-delay 1 --retry-all-errors -X POST \
         http://127.0.0.1:4140/v1/locks/job/acquire?waitSeconds=30']}}]}}}}}}}}"
    ));
    kubectl(&[
        "wait",
        "-n",
        &namespace.name,
        "--for=condition=Complete",
        "job/once",
        "--timeout=90s",
    ]);
    // Its pod has ended, so its hold is released and not only run out.
    let pods = namespace.pods(&["after"]);
    pods[0].acquire("job", "waitSeconds=10");
}

#[test]
fn a_bad_class_says_what_to_do_and_harms_no_other() {
    let namespace = Namespace::new("bad");
    namespace.lock("good", "{}");
    namespace.apply(
        "{apiVersion: holdfast.dev/v1alpha1, kind: Lock, metadata: {name: lost}, \
         spec: {backend: nowhere}}",
    );
    kubectl(&[
        "wait",
        "-n",
        &namespace.name,
        "--for=condition=Ready=False",
        "lock/lost",
        "--timeout=30s",
    ]);
    let lock = get(&namespace.name, "lock/lost");
    let message = lock["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("there is no Backend \"nowhere\""), "{message}");
    let pods = namespace.pods(&["a"]);
    pods[0].acquire("good", "");
    let missing = pods[0].post("goood/acquire");
    assert!(missing["detail"].as_str().unwrap().contains("did you mean \"good\"?"), "{missing}");
}
