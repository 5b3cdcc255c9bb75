//! What the chart's accounts may do, and how its pods are confined.

use serde_json::Value;

use crate::{list, of_kind, one, render, strings};

fn rules(role: &Value) -> &[Value] {
    list(&role["rules"])
}

/// Whether a rule of these allows a verb on a resource; `name` limits it to that object.
fn allows(rules: &[Value], group: &str, resource: &str, verb: &str, name: Option<&str>) -> bool {
    rules.iter().any(|rule| {
        let names = strings(&rule["resourceNames"]);
        strings(&rule["apiGroups"]).contains(&group)
            && strings(&rule["resources"]).contains(&resource)
            && strings(&rule["verbs"]).contains(&verb)
            && (names.is_empty() || name.is_some_and(|name| names.contains(&name)))
    })
}

#[test]
fn no_rule_has_a_wildcard_or_a_way_to_more_rights() {
    let objects = render(&[]);
    let roles = [of_kind(&objects, "Role"), of_kind(&objects, "ClusterRole")].concat();
    assert!(roles.len() >= 4, "{}", roles.len());
    for role in roles {
        let name = &role["metadata"]["name"];
        assert!(!rules(role).is_empty(), "{name}");
        for rule in rules(role) {
            for part in ["apiGroups", "resources", "verbs", "resourceNames"] {
                let wild = strings(&rule[part]).iter().any(|text| text.contains('*'));
                assert!(!wild, "{name}: {rule}");
            }
            for verb in ["escalate", "bind", "impersonate", "deletecollection"] {
                assert!(!strings(&rule["verbs"]).contains(&verb), "{name}: {rule}");
            }
            assert!(rule["nonResourceURLs"].is_null(), "{name}: {rule}");
        }
    }
    for binding in of_kind(&objects, "ClusterRoleBinding") {
        assert!(binding["roleRef"]["name"].as_str().unwrap().starts_with("holdfast-"));
    }
}

#[test]
fn secrets_of_other_namespaces_are_out_of_reach_but_for_named_ones() {
    let objects = render(&[]);
    for role in of_kind(&objects, "ClusterRole") {
        for rule in rules(role) {
            if strings(&rule["resources"]).contains(&"secrets") {
                let named = strings(&rule["resourceNames"]);
                let ours =
                    !named.is_empty() && named.iter().all(|name| name.starts_with("holdfast-"));
                // A name cannot limit create.
                assert!(ours || strings(&rule["verbs"]) == ["create"], "{rule}");
            }
        }
    }
}

#[test]
fn the_operator_has_every_right_that_it_grants_to_sidecars() {
    let objects = render(&[]);
    let operator = rules(one(&objects, "ClusterRole", "holdfast-operator"));
    let coordination = "coordination.k8s.io";
    for verb in ["get", "watch", "patch"] {
        assert!(allows(operator, coordination, "leases", verb, None), "leases: {verb}");
    }
    for verb in ["get", "watch"] {
        assert!(allows(operator, "", "configmaps", verb, Some("holdfast-bundle")), "{verb}");
        assert!(allows(operator, "", "pods", verb, None), "pods: {verb}");
        // The check can fail: other ConfigMaps are none of its business.
        assert!(!allows(operator, "", "configmaps", verb, Some("theirs")), "{verb}");
    }
}

#[test]
fn every_pod_is_confined_as_pod_security_restricted_asks() {
    let objects = render(&[]);
    let pods = [of_kind(&objects, "Deployment"), of_kind(&objects, "Job")].concat();
    assert_eq!(pods.len(), 2);
    for pod in pods {
        let name = &pod["metadata"]["name"];
        let spec = &pod["spec"]["template"]["spec"];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for shared in ["hostNetwork", "hostPID", "hostIPC", "volumes"] {
            assert!(spec[shared].is_null(), "{name}: {shared}");
        }
        // It calls the API server, and says so.
        assert_eq!(spec["automountServiceAccountToken"], true, "{name}");
        for container in list(&spec["containers"]) {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(security["runAsNonRoot"], true, "{name}");
            assert!(security["runAsUser"].as_u64().unwrap() >= 10_000, "{name}");
            assert_eq!(security["capabilities"]["drop"], Value::from(["ALL"]), "{name}");
            assert!(security["capabilities"]["add"].is_null(), "{name}");
            let resources = &container["resources"];
            assert!(resources["requests"]["cpu"].is_string(), "{name}");
            assert!(resources["limits"]["memory"].is_string(), "{name}");
        }
    }
    // Accounts whose token is not asked for get none.
    for account in of_kind(&objects, "ServiceAccount") {
        assert_eq!(account["automountServiceAccountToken"], false, "{}", account["metadata"]);
    }
}

#[test]
fn only_the_operators_ports_are_open() {
    let objects = render(&[]);
    let policy = &one(&objects, "NetworkPolicy", "holdfast-operator")["spec"];
    let deployment = &one(&objects, "Deployment", "holdfast-operator")["spec"]["template"];
    let labels = &deployment["metadata"]["labels"];
    assert!(crate::matches(&policy["podSelector"]["matchLabels"], labels));
    let open: Vec<_> = list(&policy["ingress"][0]["ports"]).iter().map(|p| &p["port"]).collect();
    let container = &list(&deployment["spec"]["containers"])[0];
    let ports: Vec<_> = list(&container["ports"]).iter().map(|p| &p["name"]).collect();
    assert_eq!(open, ports);
    assert!(of_kind(&render(&["networkPolicy.enabled=false"]), "NetworkPolicy").is_empty());
}
