//! `mode: gateway`: rate limits for one namespace, and nothing of the operator's.

use serde_json::Value;

use crate::{NAMESPACE, list, of_kind, one, render, strings, try_render};

const MODE: &str = "mode=gateway";

fn spec(objects: &[Value]) -> &Value {
    &one(objects, "Deployment", "holdfast-gateway")["spec"]["template"]["spec"]
}

#[test]
fn a_gateway_is_of_its_namespace_only() {
    let objects = render(&[MODE, "gateway.networkPolicy.enabled=true"]);
    let mut kinds: Vec<&str> =
        objects.iter().filter_map(|object| object["kind"].as_str()).collect();
    kinds.sort_unstable();
    let expected = [
        "Deployment",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    ];
    assert_eq!(kinds, expected);
    for object in &objects {
        assert_eq!(object["metadata"]["namespace"], NAMESPACE, "{}", object["kind"]);
        assert_eq!(object["metadata"]["name"], "holdfast-gateway", "{}", object["kind"]);
    }
    let of_operator = render(&[]);
    assert!(!of_operator.iter().any(|object| object["metadata"]["name"] == "holdfast-gateway"));
}

#[test]
fn it_may_read_the_bundle_and_nothing_else() {
    let objects = render(&[MODE]);
    let rules = list(&one(&objects, "Role", "holdfast-gateway")["rules"]);
    assert_eq!(rules.len(), 1);
    assert_eq!(strings(&rules[0]["resources"]), ["configmaps"]);
    assert_eq!(strings(&rules[0]["resourceNames"]), ["holdfast-bundle"]);
    assert_eq!(strings(&rules[0]["verbs"]), ["get", "watch"]);
    let binding = one(&objects, "RoleBinding", "holdfast-gateway");
    assert_eq!(binding["roleRef"]["name"], "holdfast-gateway");
    assert_eq!(binding["subjects"][0]["name"], spec(&objects)["serviceAccountName"]);
    assert_eq!(binding["subjects"][0]["namespace"], NAMESPACE);
}

#[test]
fn it_is_confined_as_pod_security_restricted_asks() {
    let objects = render(&[MODE]);
    let spec = spec(&objects);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        assert!(spec[shared].is_null(), "{shared}");
    }
    let volumes = list(&spec["volumes"]);
    assert_eq!(volumes.len(), 1);
    assert_eq!(volumes[0]["secret"]["optional"], true, "a namespace may have no Redis");
    let security = &list(&spec["containers"])[0]["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert!(security["runAsUser"].as_u64().unwrap() >= 10_000);
    assert_eq!(security["capabilities"]["drop"], Value::from(["ALL"]));
    // A namespace that is injected as a whole spares it.
    let template = &one(&objects, "Deployment", "holdfast-gateway")["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["holdfast.dev/inject"], "false");
}

#[test]
fn its_port_is_one_and_the_same_everywhere() {
    let objects = render(&[MODE, "gateway.port=9090", "gateway.networkPolicy.enabled=true"]);
    let service = &one(&objects, "Service", "holdfast-gateway")["spec"];
    assert_eq!(service["ports"][0]["port"], 9090);
    let deployment = &one(&objects, "Deployment", "holdfast-gateway")["spec"];
    let labels = &deployment["template"]["metadata"]["labels"];
    assert!(crate::matches(&service["selector"], labels));
    assert!(crate::matches(&deployment["selector"]["matchLabels"], labels));
    let container = &list(&spec(&objects)["containers"])[0];
    let ports = list(&container["ports"]);
    assert_eq!((&ports[0]["name"], &ports[0]["containerPort"]), (&"rls".into(), &9090.into()));
    assert_eq!(service["ports"][0]["targetPort"], ports[0]["name"]);
    let env = list(&container["env"]).iter().find(|env| env["name"] == "HOLDFAST_COMPAT").unwrap();
    assert_eq!(env["value"], "rls=0.0.0.0:9090");
    let policy = &one(&objects, "NetworkPolicy", "holdfast-gateway")["spec"];
    assert!(crate::matches(&policy["podSelector"]["matchLabels"], labels));
    assert_eq!(policy["ingress"][0]["ports"][0]["port"], "rls");
    assert_eq!(list(&policy["ingress"][0]["from"]), [serde_json::json!({"podSelector": {}})]);
    let from = "gateway.networkPolicy.from[0].podSelector.matchLabels.app=edge";
    let objects = render(&[MODE, "gateway.networkPolicy.enabled=true", from]);
    let policy = &one(&objects, "NetworkPolicy", "holdfast-gateway")["spec"];
    let peers = list(&policy["ingress"][0]["from"]);
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0]["podSelector"]["matchLabels"]["app"], "edge");
    assert!(of_kind(&render(&[MODE]), "NetworkPolicy").is_empty());
}

#[test]
fn wrong_values_of_a_gateway_are_refused_by_their_names() {
    for (set, says) in [
        ("mode=sidecar", "/mode"),
        ("gateway.port=80", "/gateway/port"),
        ("gateway.replicas=0", "/gateway/replicas"),
        ("gateway.replica=2", "replica"),
        ("gateway.networkPolicy.from=edge", "/gateway/networkPolicy/from"),
    ] {
        let refusal = try_render(&[MODE, set]).expect_err(set);
        assert!(refusal.contains(says), "{set}: {refusal}");
    }
}
