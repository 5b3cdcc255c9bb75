//! What the chart renders: with no value set, with its options, with wrong values. Needs helm only.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test that cannot go on has failed"
)]

mod gateway;
mod rights;
mod values;

use holdfast_e2e::{root, try_helm};
use serde_json::Value;

/// Another namespace than the usual one: nothing may name that by itself.
const NAMESPACE: &str = "elsewhere";

/// The objects of the chart, or what helm complains about.
fn try_render(sets: &[&str]) -> Result<Vec<Value>, String> {
    let chart = root().join("charts/holdfast");
    let mut args = vec!["template", "holdfast", chart.to_str().unwrap(), "-n", NAMESPACE];
    // Hooks as well: the cleanup is one.
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let text = try_helm(&args)?;
    let documents = text.split("\n---").map(|document| serde_saphyr::from_str(document).unwrap());
    Ok(documents.filter(|document: &Value| document.is_object()).collect())
}

fn render(sets: &[&str]) -> Vec<Value> {
    try_render(sets).unwrap_or_else(|error| panic!("{sets:?}: {error}"))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = of_kind(objects, kind).into_iter().find(|found| found["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn strings(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

/// Whether the labels have all that a selector asks for.
fn matches(selector: &Value, labels: &Value) -> bool {
    selector.as_object().unwrap().iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// With each number in one form: YAML may say 1 or 1.0.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) => Value::from(number.as_f64()),
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(fields) => fields.iter().map(|(k, v)| (k.clone(), plain(v))).collect(),
        other => other.clone(),
    }
}

#[test]
fn no_value_is_required_and_all_of_it_is_where_the_release_is() {
    let objects = render(&[]);
    const CLUSTER_WIDE: [&str; 8] = [
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "FlowSchema",
        "MutatingWebhookConfiguration",
        "PriorityLevelConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    for object in &objects {
        let (kind, metadata) = (object["kind"].as_str().unwrap(), &object["metadata"]);
        let place = metadata["namespace"].as_str();
        let expected = if CLUSTER_WIDE.contains(&kind) { None } else { Some(NAMESPACE) };
        assert_eq!(place, expected, "{kind} {}", metadata["name"]);
        if kind != "CustomResourceDefinition" {
            assert_eq!(metadata["labels"]["app.kubernetes.io/name"], "holdfast", "{kind}");
        }
        assert!(!object.to_string().contains("holdfast-system"), "{kind} {}", metadata["name"]);
    }
    for kind in CLUSTER_WIDE {
        assert!(!of_kind(&objects, kind).is_empty(), "no {kind}");
    }
}

#[test]
fn the_definitions_are_those_of_the_code_and_outlive_the_release() {
    let objects = render(&[]);
    let rendered = of_kind(&objects, "CustomResourceDefinition");
    let files: Vec<_> = std::fs::read_dir(root().join("crds")).unwrap().collect();
    assert_eq!(rendered.len(), files.len());
    for file in files {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let crd: Value = serde_saphyr::from_str(&text).unwrap();
        let name = crd["metadata"]["name"].as_str().unwrap();
        let there = one(&objects, "CustomResourceDefinition", name);
        assert!(plain(&there["spec"]) == plain(&crd["spec"]), "{name} differs");
        assert_eq!(there["metadata"]["annotations"]["helm.sh/resource-policy"], "keep", "{name}");
    }
}

#[test]
fn webhooks_see_pods_that_ask_only_and_leave_the_system_alone() {
    let objects = render(&[]);
    let configuration = one(&objects, "MutatingWebhookConfiguration", "holdfast-injector");
    let service = one(&objects, "Service", "holdfast-webhook");
    let webhooks = list(&configuration["webhooks"]);
    assert_eq!(webhooks.len(), 3);
    for webhook in webhooks {
        let name = &webhook["name"];
        assert_eq!(webhook["failurePolicy"], "Fail", "{name}");
        assert_eq!(webhook["sideEffects"], "None", "{name}");
        assert!(webhook["timeoutSeconds"].as_u64().unwrap() <= 3, "{name}");
        let labelled = [&webhook["objectSelector"], &webhook["namespaceSelector"]]
            .into_iter()
            .any(|selector| selector["matchLabels"]["holdfast.dev/inject"] == "true");
        let annotated = list(&webhook["matchConditions"]).iter().any(|condition| {
            let asks = "'holdfast.dev/hold' in object.metadata.annotations";
            condition["expression"].as_str().is_some_and(|cel| cel.ends_with(&format!("&& {asks}")))
        });
        assert!(labelled || annotated, "{name} is called for every pod");
        let spared = list(&webhook["namespaceSelector"]["matchExpressions"]).iter().any(|rule| {
            let spared = strings(&rule["values"]);
            rule["operator"] == "NotIn"
                && ["kube-system", NAMESPACE].iter().all(|n| spared.contains(n))
        });
        assert!(spared, "{name} may keep the system or the operator from starting");
        for rule in list(&webhook["rules"]) {
            assert_eq!(
                (&rule["resources"], &rule["operations"]),
                (&["pods"].into(), &["CREATE"].into())
            );
        }
        let target = &webhook["clientConfig"]["service"];
        assert_eq!(target["name"], service["metadata"]["name"]);
        assert_eq!(target["namespace"], NAMESPACE);
    }
    // An authority that an upgrade resets would refuse pods until the operator repairs it.
    assert!(!configuration.to_string().contains("caBundle"));
}

#[test]
fn a_node_may_fail() {
    let objects = render(&[]);
    let deployment = one(&objects, "Deployment", "holdfast-operator");
    let template = &deployment["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    let spread = &list(&template["spec"]["topologySpreadConstraints"])[0];
    assert_eq!(spread["topologyKey"], "kubernetes.io/hostname");
    assert!(matches(&spread["labelSelector"]["matchLabels"], labels));
    let budget = one(&objects, "PodDisruptionBudget", "holdfast-operator");
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    assert!(matches(&budget["spec"]["selector"]["matchLabels"], labels));
    let service = one(&objects, "Service", "holdfast-webhook");
    assert!(matches(&service["spec"]["selector"], labels));
    // What selects the operator selects nothing else of ours.
    let cleanup = &one(&objects, "Job", "holdfast-cleanup")["spec"]["template"];
    assert!(!matches(&service["spec"]["selector"], &cleanup["metadata"]["labels"]));
    let container = &list(&template["spec"]["containers"])[0];
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert!(container[probe]["httpGet"]["path"].is_string(), "no {probe}");
    }
}
