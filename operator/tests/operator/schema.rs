//! The rules in the schemas: each with a spec that passes and one that the API server refuses with
//! the sentence that the user needs.

use crate::fixture::{Bed, object};

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_of_a_lock_admits_and_refuses() {
    let bed = Bed::shared().await;
    let table = [
        (
            "{ttlSeconds: 5, maxHoldSeconds: 5}",
            "{ttlSeconds: 5, maxHoldSeconds: 4}",
            "maxHoldSeconds must not be less than ttlSeconds",
        ),
        (
            "{maxHoldSeconds: 60, minHoldSeconds: 60}",
            "{maxHoldSeconds: 60, minHoldSeconds: 61}",
            "minHoldSeconds must not be greater than maxHoldSeconds",
        ),
        ("{fairness: None}", "{fairness: Fifo}", "the lease backend cannot promise an order"),
        (
            "{backend: r, fairness: Fifo}",
            "{backend: lease, fairness: Fifo}",
            "the lease backend cannot promise an order",
        ),
        (
            "{backend: r, consistency: BestEffort}",
            "{consistency: BestEffort}",
            "the lease backend is always Strict",
        ),
        (
            "{backend: lease}",
            "{backend: memory}",
            "the memory backend exists in `holdfast dev` only",
        ),
        ("{ttlSeconds: 86400}", "{ttlSeconds: 86401}", "should be less than or equal to 86400"),
        ("{ttlSeconds: 1}", "{ttlSeconds: 0}", "should be greater than or equal to 1"),
        ("{lockDelaySeconds: 0}", "{lockDelaySeconds: -1}", "greater than or equal to 0"),
        ("{keys: [a, b]}", "{keys: [a, a]}", "Duplicate value"),
        (
            "{queue: {maxWaiters: 10000}}",
            "{queue: {maxWaiters: 10001}}",
            "should be less than or equal to 10000",
        ),
        (
            "{access: [{serviceAccounts: [a]}]}",
            "{access: [{serviceAccounts: []}]}",
            "should have at least 1 items",
        ),
        (
            "{access: [{serviceAccounts: [a.b-c]}]}",
            "{access: [{serviceAccounts: [a/b]}]}",
            "should match",
        ),
        (
            "{access: [{serviceAccounts: [a], verbs: [Read]}]}",
            "{access: [{serviceAccounts: [a], verbs: [Write]}]}",
            "Unsupported value: \"Write\"",
        ),
    ];
    for (i, (good, bad, why)) in table.into_iter().enumerate() {
        let name = format!("rule-{i}");
        let refusal = bed.try_lock(&name, bad).expect_err(bad);
        assert!(refusal.contains(why), "{bad}: {refusal}");
        bed.lock(&name, good);
    }
    let typo = bed.kubectl(
        &["create", "--validate=strict", "-f", "-"],
        &object("Lock", "typo", "{ttlSecond: 5}"),
    );
    assert!(typo.unwrap_err().contains("unknown field \"spec.ttlSecond\""));
    let long = "a".repeat(53);
    let refusal = bed.try_lock(&long, "{}").expect_err("a long name");
    assert!(refusal.contains("at most 52 characters"), "{refusal}");
    bed.lock(&"a".repeat(52), "{}");
    bed.lock("moved", "{backend: r1}");
    let refusal = bed.try_lock("moved", "{backend: r2}").expect_err("moved");
    assert!(refusal.contains("backend cannot be changed"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_of_a_leader_election_admits_and_refuses() {
    let bed = Bed::shared().await;
    let apply = |name: &str, spec: &str| {
        bed.kubectl(&["apply", "-f", "-"], &object("LeaderElection", name, spec))
    };
    let table = [
        (
            "{leaseDurationSeconds: 5, retryPeriodSeconds: 4}",
            "{leaseDurationSeconds: 5, retryPeriodSeconds: 5}",
            "retryPeriodSeconds must be less than leaseDurationSeconds",
        ),
        (
            "{leaseDurationSeconds: 5, renewDeadlineSeconds: 4}",
            "{leaseDurationSeconds: 5, renewDeadlineSeconds: 5}",
            "renewDeadlineSeconds must be less than leaseDurationSeconds",
        ),
        (
            "{leaseDurationSeconds: 5, renewDeadlineSeconds: 3, retryPeriodSeconds: 2}",
            "{leaseDurationSeconds: 5, renewDeadlineSeconds: 3, retryPeriodSeconds: 3}",
            "retryPeriodSeconds must be less than renewDeadlineSeconds",
        ),
        ("{interop: ClientGo}", "{backend: r, interop: ClientGo}", "is about Leases"),
        ("{backend: r}", "{backend: memory}", "exists in `holdfast dev` only"),
        ("{leaseDurationSeconds: 3600}", "{leaseDurationSeconds: 3601}", "less than or equal to"),
        ("{leaderLabel: {name: example.com/role}}", "{leaderLabel: {name: 'a b'}}", "should match"),
        ("{service: {name: web}}", "{service: {}}", "Required value"),
    ];
    for (i, (good, bad, why)) in table.into_iter().enumerate() {
        let name = format!("rule-{i}");
        let refusal = apply(&name, bad).expect_err(bad);
        assert!(refusal.contains(why), "{bad}: {refusal}");
        apply(&name, good).unwrap();
    }
    let refusal = apply(&"e".repeat(53), "{}").expect_err("a long name");
    assert!(refusal.contains("at most 52 characters"), "{refusal}");
    apply("moved", "{}").unwrap();
    let refusal = apply("moved", "{backend: r2}").expect_err("moved");
    assert!(refusal.contains("backend cannot be changed"), "{refusal}");
    let refusal = apply("moved", "{interop: ClientGo}").expect_err("shared");
    assert!(refusal.contains("interop cannot be changed"), "{refusal}");
    let explained = bed.kubectl_cluster(&["explain", "leaderelection.spec.service"], "").unwrap();
    assert!(explained.contains("EndpointSlice"), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_of_a_rate_limit_admits_and_refuses() {
    let bed = Bed::shared().await;
    let apply = |name: &str, spec: &str| {
        bed.kubectl(&["apply", "-f", "-"], &object("RateLimit", name, spec))
    };
    // Of one limit, or of all that follows the backend.
    let one = |limit: &str| format!("{{backend: r, limits: [{{name: a, {limit}}}]}}");
    let more = |fields: &str, limit: &str| {
        one(&format!("limit: 1, windowSeconds: 1{limit}"))
            .replace("backend: r", &format!("backend: r, {fields}"))
    };
    let table = [
        (one("limit: 1, windowSeconds: 1"), one("limit: 0, windowSeconds: 1"), "greater than or"),
        (
            one("limit: 1, windowSeconds: 2678400"),
            one("limit: 1, windowSeconds: 2678401"),
            "should be less than or equal to 2678400",
        ),
        (
            one("limit: 1, windowSeconds: 1, burst: 100"),
            one("limit: 1, windowSeconds: 1, burst: 101"),
            "at most 100 times the limit",
        ),
        (
            one("limit: 5, windowSeconds: 1, algorithm: TokenBucket, burst: 5"),
            one("limit: 5, windowSeconds: 1, algorithm: FixedWindow, burst: 5"),
            "burst goes with TokenBucket only",
        ),
        (
            one("limit: 1000, windowSeconds: 1, algorithm: Concurrency"),
            one("limit: 1001, windowSeconds: 1, algorithm: Concurrency"),
            "at most 1000",
        ),
        (
            one("limit: 1, windowSeconds: 1, algorithm: SlidingWindow"),
            one("limit: 1, windowSeconds: 1, algorithm: LeakyBucket"),
            "Unsupported value",
        ),
        (
            "{backend: r, limits: [{name: a, limit: 1, windowSeconds: 1}, \
              {name: b, limit: 1, windowSeconds: 1}]}"
                .into(),
            "{backend: r, limits: [{name: a, limit: 1, windowSeconds: 1}, \
              {name: a, limit: 1, windowSeconds: 1}]}"
                .into(),
            "Duplicate value",
        ),
        (
            one("limit: 1, windowSeconds: 1"),
            "{backend: r, limits: []}".into(),
            "should have at least 1 items",
        ),
        (
            one("limit: 1, windowSeconds: 1"),
            one("limit: 1, windowSeconds: 1").replace("name: a", "name: A"),
            "should match",
        ),
        (
            one("limit: 1, windowSeconds: 1").replace("backend: r", "backend: r, shadow: true"),
            one("limit: 1, windowSeconds: 1").replace("backend: r", "backend: lease"),
            "a rate limit cannot live on Leases",
        ),
        (
            one("limit: 1, windowSeconds: 1")
                .replace("backend: r", "backend: r, onBackendFailure: Open"),
            one("limit: 1, windowSeconds: 1").replace("backend: r", "backend: memory"),
            "exists in `holdfast dev` only",
        ),
        (
            more("onBackendFailure: Local, localSharePercent: 50", ""),
            more("onBackendFailure: Open, localSharePercent: 50", ""),
            "localSharePercent goes with onBackendFailure: Local only",
        ),
        (
            more("accuracy: Leased, leased: {batch: 10}", ""),
            more("accuracy: Exact, leased: {batch: 10}", ""),
            "leased goes with accuracy: Leased only",
        ),
        (
            more("accuracy: Exact", ", algorithm: Concurrency"),
            more("accuracy: Leased", ", algorithm: Concurrency"),
            "a Concurrency limit cannot be Leased",
        ),
    ];
    for (i, (good, bad, why)) in table.iter().enumerate() {
        let name = format!("rule-{i}");
        let refusal = apply(&name, bad).expect_err(bad);
        assert!(refusal.contains(why), "{bad}: {refusal}");
        apply(&name, good).unwrap();
    }
    let good = one("limit: 1, windowSeconds: 1");
    let refusal = apply(&"r".repeat(53), &good).expect_err("a long name");
    assert!(refusal.contains("at most 52 characters"), "{refusal}");
    let refusal = apply("rule-0", &good.replace("backend: r", "backend: r2")).expect_err("moved");
    assert!(refusal.contains("backend cannot be changed"), "{refusal}");
    let explained = bed.kubectl_cluster(&["explain", "ratelimit.spec.limits.burst"], "").unwrap();
    assert!(explained.contains("How much at once"), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_of_a_backend_admits_and_refuses() {
    let bed = Bed::shared().await;
    let apply = |name: &str, spec: &str| {
        bed.kubectl_cluster(
            &["apply", "--dry-run=server", "-f", "-"],
            &object("Backend", name, spec),
        )
    };
    let good = "{redis: {addresses: ['redis:6379']}}";
    apply("good", good).unwrap();
    apply("good", "{redis: {mode: Standalone, addresses: ['redis:6379'], tls: {}}}").unwrap();
    let watched = "mode: Sentinel, addresses: ['a:1', 'b:1'], sentinel: {masterName: main}";
    apply("good", &format!("{{redis: {{{watched}, ack: {{replicas: 1}}}}}}")).unwrap();
    apply("good", "{redis: {addresses: ['r:1'], ack: {replicas: 2, timeoutMs: 50}}}").unwrap();
    apply("good", "{redis: {mode: Redlock, addresses: ['a:1', 'b:1', 'c:1']}}").unwrap();
    apply("good", "{redis: {mode: Cluster, addresses: ['a:1', 'b:1'], tls: {}}}").unwrap();
    for (name, spec, why) in [
        ("bad", "{redis: {mode: Redlock, addresses: ['a:1', 'b:1']}}", "3 or 5 addresses"),
        ("bad", "{redis: {mode: Redlock, addresses: ['a:1', 'b:1', 'a:1']}}", "there twice"),
        (
            "bad",
            "{redis: {mode: Redlock, addresses: ['a:1', 'b:1', 'c:1'], ack: {replicas: 1}}}",
            "mode Redlock has no ack",
        ),
        ("lease", good, "the names lease and memory are taken"),
        ("memory", good, "the names lease and memory are taken"),
        (&*"b".repeat(64), good, "at most 63 characters"),
        (
            "bad",
            "{redis: {mode: Cluster, addresses: ['a:1'], ack: {replicas: 1}}}",
            "mode Cluster has no ack",
        ),
        (
            "bad",
            "{redis: {mode: Cluster, addresses: ['a:1'], database: 1}}",
            "a cluster has one database only",
        ),
        ("bad", "{redis: {mode: Sentinel, addresses: ['a:1']}}", "needs sentinel.masterName"),
        ("bad", "{redis: {addresses: ['a:1'], sentinel: {masterName: m}}}", "only it has one"),
        (
            "bad",
            "{redis: {mode: Sentinel, addresses: ['a:1'], sentinel: {masterName: ''}}}",
            "at least 1 chars long",
        ),
        ("bad", "{redis: {addresses: ['a:1'], ack: {replicas: 0}}}", "greater than or equal to 1"),
        (
            "bad",
            "{redis: {addresses: ['a:1'], ack: {replicas: 1, timeoutMs: 1}}}",
            "greater than or equal to 10",
        ),
        ("bad", "{redis: {addresses: ['a:1', 'b:1']}}", "exactly one address"),
        ("bad", "{redis: {addresses: []}}", "should have at least 1 items"),
        ("bad", "{redis: {addresses: ['a:1'], database: -1}}", "greater than or equal to 0"),
    ] {
        let refusal = apply(name, spec).expect_err(spec);
        assert!(refusal.contains(why), "{name} {spec}: {refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_explains_every_field_and_shows_the_columns() {
    let bed = Bed::shared().await;
    let explained = bed.kubectl_cluster(&["explain", "lock.spec.ttlSeconds"], "").unwrap();
    assert!(explained.contains("Seconds a hold lasts without a renewal"), "{explained}");
    let explained = bed.kubectl_cluster(&["explain", "backend.spec.redis.tenancy"], "").unwrap();
    assert!(explained.contains("PerNamespaceUser"), "{explained}");
    bed.lock("orders", "{}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let table = bed.kubectl(&["get", "holdfast"], "").unwrap();
    for column in ["READY", "HOLDER", "FENCE", "WAITING", "BACKEND", "GUARANTEE", "AGE"] {
        assert!(table.contains(column), "{table}");
    }
    assert!(table.contains("Consensus"), "{table}");
    bed.kubectl(&["wait", "--for=condition=Ready", "lock/orders", "--timeout=60s"], "").unwrap();
}
