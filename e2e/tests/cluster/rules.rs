//! What the API server refuses of elections, rate limits and semaphores, and what it says.

use holdfast_e2e::{Namespace, try_kubectl};

use crate::admission::assert_all_seen;

/// Tries each of a table's specs: one that passes, one that is refused with these words. Then the name
/// that is too long, and what cannot be changed of one that is there. Returns the refusals.
fn refusals(kind: &str, table: &[(&str, &str, &str)], fixed: &[&str]) -> Vec<String> {
    let namespace = Namespace::new(&format!("rules-{}", kind.to_lowercase()));
    let tried = |name: &str, spec: &str, more: &[&str]| {
        let yaml = format!(
            "{{apiVersion: holdfast.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, \
             spec: {spec}}}"
        );
        try_kubectl(&[&["apply", "-n", &namespace.name, "-f", "-"], more].concat(), &yaml)
    };
    let dry = &["--dry-run=server"];
    let mut refusals = Vec::new();
    for (good, bad, says) in table {
        tried("x", good, dry).unwrap_or_else(|error| panic!("{good}: {error}"));
        let refusal = tried("x", bad, dry).expect_err(bad);
        assert!(refusal.contains(says), "{bad}: {refusal}");
        refusals.push(refusal);
    }
    let (good, _, _) = table[0];
    tried(&"l".repeat(52), good, dry).unwrap();
    refusals.push(tried(&"l".repeat(53), good, dry).expect_err("too long"));
    tried("x", good, &[]).unwrap();
    refusals.extend(fixed.iter().map(|spec| tried("x", spec, dry).expect_err(spec)));
    refusals
}

#[test]
fn every_rule_of_an_election_has_a_case_that_passes_and_one_that_fails() {
    let table = [
        ("{}", "{leaseDurationSeconds: 0}", "greater than or equal to 1"),
        (
            "{leaseDurationSeconds: 5, retryPeriodSeconds: 4}",
            "{leaseDurationSeconds: 5, retryPeriodSeconds: 5}",
            "retryPeriodSeconds must be less than leaseDurationSeconds",
        ),
        (
            "{renewDeadlineSeconds: 14}",
            "{renewDeadlineSeconds: 15}",
            "renewDeadlineSeconds must be less than leaseDurationSeconds",
        ),
        (
            "{renewDeadlineSeconds: 3}",
            "{renewDeadlineSeconds: 2}",
            "retryPeriodSeconds must be less than renewDeadlineSeconds",
        ),
        ("{interop: ClientGo}", "{backend: main, interop: ClientGo}", "is about Leases"),
        ("{backend: main}", "{backend: memory}", "exists in `holdfast dev` only"),
        ("{leaderLabel: {name: example.com/role}}", "{leaderLabel: {name: 'a b'}}", "should match"),
        ("{service: {name: web}}", "{service: {nome: web}}", "unknown field"),
    ];
    let refused = refusals("LeaderElection", &table, &["{backend: main}", "{interop: ClientGo}"]);
    assert_all_seen("leaderelections.holdfast.dev", &refused);
}

#[test]
fn every_rule_of_a_rate_limit_has_a_case_that_passes_and_one_that_fails() {
    let one = |limit: &str, more: &str| {
        format!("{{backend: main, limits: [{{name: a, {limit}}}]{more}}}")
    };
    let plain = |more: &str| one("limit: 5, windowSeconds: 1", more);
    let (long, short) = (
        one("limit: 1, windowSeconds: 1, burst: 100", ""),
        one("limit: 1, windowSeconds: 1, burst: 101", ""),
    );
    let table = [
        (plain(""), one("limit: 0, windowSeconds: 1", ""), "greater than or equal to 1"),
        (long, short, "at most 100 times the limit"),
        (
            one("limit: 5, windowSeconds: 1, burst: 5", ""),
            one("limit: 5, windowSeconds: 1, burst: 5, algorithm: FixedWindow", ""),
            "burst goes with TokenBucket only",
        ),
        (
            one("limit: 1000, windowSeconds: 1, algorithm: Concurrency", ""),
            one("limit: 1001, windowSeconds: 1, algorithm: Concurrency", ""),
            "at most 1000",
        ),
        (plain(""), plain("").replace("main", "lease"), "cannot live on Leases"),
        (plain(", shadow: true"), plain("").replace("main", "memory"), "`holdfast dev` only"),
        (
            plain(", onBackendFailure: Local, localSharePercent: 50"),
            plain(", onBackendFailure: Open, localSharePercent: 50"),
            "goes with onBackendFailure: Local only",
        ),
        (
            plain(", accuracy: Leased, leased: {batch: 10}"),
            plain(", leased: {batch: 10}"),
            "leased goes with accuracy: Leased only",
        ),
        (
            one("limit: 5, windowSeconds: 1, algorithm: Concurrency", ""),
            one("limit: 5, windowSeconds: 1, algorithm: Concurrency", ", accuracy: Leased"),
            "a Concurrency limit cannot be Leased",
        ),
    ];
    let rows: Vec<_> = table.iter().map(|(good, bad, says)| (&**good, &**bad, *says)).collect();
    let refused = refusals("RateLimit", &rows, &[&plain("").replace("main", "other")]);
    assert_all_seen("ratelimits.holdfast.dev", &refused);
}

#[test]
fn rules_of_a_semaphore_have_cases_that_pass_and_that_fail() {
    let table = [
        (
            "{backend: main, permits: 5}",
            "{backend: main, permits: 0}",
            "greater than or equal to 1",
        ),
        (
            "{backend: main, permits: 5, maxPerHolder: 5}",
            "{backend: main, permits: 5, maxPerHolder: 6}",
            "maxPerHolder must not be greater than permits",
        ),
        (
            "{backend: main, permits: 5, ttlSeconds: 30, maxHoldSeconds: 30}",
            "{backend: main, permits: 5, ttlSeconds: 30, maxHoldSeconds: 29}",
            "maxHoldSeconds must not be less than ttlSeconds",
        ),
        (
            "{backend: main, permits: 10000}",
            "{backend: memory, permits: 5}",
            "exists in `holdfast dev` only",
        ),
    ];
    let refused = refusals("Semaphore", &table, &["{backend: other, permits: 5}"]);
    assert!(refused.last().unwrap().contains("backend cannot be changed"), "{refused:?}");
}
