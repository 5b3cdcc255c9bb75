//! What the values do, and what is said about wrong ones.

use holdfast_e2e::{root, try_helm};
use serde_json::Value;

use crate::{list, of_kind, one, render, try_render};

#[test]
fn wrong_values_are_refused_by_their_names() {
    for (set, says) in [
        ("operator.replicas=0", "/operator/replicas"),
        ("operator.replica=2", "replica"),
        ("operator.probeMs=fast", "/operator/probeMs"),
        ("operator.electionSeconds=0", "/operator/electionSeconds"),
        ("webhook.timeoutSeconds=31", "/webhook/timeoutSeconds"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("sidecar.logFormat=xml", "/sidecar/logFormat"),
        ("redis.enabled=true", "/redis/address"),
        ("nonsense=1", "nonsense"),
    ] {
        let refusal = try_render(&[set]).expect_err(set);
        assert!(refusal.contains(says), "{set}: {refusal}");
    }
}

#[test]
fn values_reach_what_they_are_about() {
    let objects = render(&[
        "image.repository=registry.test/h",
        "image.tag=t1",
        "operator.replicas=3",
        "operator.log=debug",
        "sidecar.resources.limits.memory=96Mi",
        "webhook.certificateDays=1",
        "priorityAndFairness.enabled=false",
        "imagePullSecrets[0].name=pull",
    ]);
    let deployment = &one(&objects, "Deployment", "holdfast-operator")["spec"];
    assert_eq!(deployment["replicas"], 3);
    let container = &list(&deployment["template"]["spec"]["containers"])[0];
    assert_eq!(container["image"], "registry.test/h:t1");
    let env = |name: &str| -> &Value {
        let found = list(&container["env"]).iter().find(|variable| variable["name"] == name);
        &found.unwrap_or_else(|| panic!("no {name}"))["value"]
    };
    assert_eq!(env("HOLDFAST_LOG"), "debug");
    assert_eq!(env("HOLDFAST_SIDECAR_IMAGE"), "registry.test/h:t1");
    assert_eq!(env("HOLDFAST_SIDECAR_MEMORY_LIMIT"), "96Mi");
    assert_eq!(env("HOLDFAST_CERTIFICATE_LIFE_SECONDS"), "86400");
    for account in of_kind(&objects, "ServiceAccount") {
        assert_eq!(account["imagePullSecrets"][0]["name"], "pull");
    }
    assert!(of_kind(&objects, "FlowSchema").is_empty());
    assert!(of_kind(&objects, "PriorityLevelConfiguration").is_empty());
}

#[test]
fn lease_traffic_has_its_own_place_in_the_queues() {
    let objects = render(&[]);
    let flow = &one(&objects, "FlowSchema", "holdfast-leases")["spec"];
    let level = one(&objects, "PriorityLevelConfiguration", "holdfast");
    assert_eq!(flow["priorityLevelConfiguration"]["name"], level["metadata"]["name"]);
    // Before the schema that every other service account falls into, with 9000.
    assert!(flow["matchingPrecedence"].as_u64().unwrap() < 9000);
    let rule = &list(&list(&flow["rules"])[0]["resourceRules"])[0];
    assert_eq!(rule["resources"], Value::from(["leases"]));
}

#[test]
fn a_redis_comes_after_its_definition() {
    // A first install has no definition yet, and helm's own complaint would not say what to do.
    let sets = ["redis.enabled=true", "redis.address=r:6379", "redis.credentialsSecret=s"];
    let refusal = try_render(&sets).expect_err("there is no definition of it");
    assert!(refusal.contains("helm upgrade"), "{refusal}");
    let chart = root().join("charts/holdfast");
    let mut args = vec!["template", "holdfast", chart.to_str().unwrap()];
    args.extend(["--api-versions", "holdfast.dev/v1alpha1"]);
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let text = try_helm(&args).unwrap();
    let backend = text.split("\n---").find(|object| object.contains("\nkind: Backend")).unwrap();
    let backend: Value = serde_saphyr::from_str(backend).unwrap();
    assert_eq!(backend["spec"]["redis"]["addresses"][0], "r:6379");
    assert_eq!(backend["spec"]["redis"]["credentialsSecretRef"]["name"], "s");
}
