//! Fixtures in, patches out; and what must hold of every patch.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;

fn mk_pod(yaml: &str) -> Pod {
    serde_saphyr::from_str(yaml).unwrap()
}

fn mk_settings() -> InjectSettings {
    InjectSettings { image: "holdfast:test".into(), ..InjectSettings::default() }
}

/// The pod after the patch, as the API server would have it.
fn patched(pod: &Pod, decision: &Decision) -> Pod {
    let Decision::Inject { patch, .. } = decision else { panic!("not injected: {decision:?}") };
    let mut value = serde_json::to_value(pod).unwrap();
    json_patch::patch(&mut value, patch).unwrap();
    serde_json::from_value(value).unwrap()
}

fn decide_in_shop(pod: &Pod) -> Decision {
    decide(pod, "shop", false, &mk_settings())
}

const PLAIN: &str = include_str!("fixtures/plain.yaml");
const FULL: &str = include_str!("fixtures/full.yaml");
const GUARANTEED: &str = include_str!("fixtures/guaranteed.yaml");

#[test]
fn patches_are_as_reviewed() {
    for (name, yaml) in [("plain", PLAIN), ("full", FULL), ("guaranteed", GUARANTEED)] {
        let Decision::Inject { patch, warnings } = decide_in_shop(&mk_pod(yaml)) else {
            panic!("{name} was not injected")
        };
        insta::assert_json_snapshot!(name, json!({ "patch": patch, "warnings": warnings }));
    }
}

#[test]
fn patch_of_a_patched_pod_is_empty() {
    for yaml in [PLAIN, FULL, GUARANTEED] {
        let pod = mk_pod(yaml);
        let once = patched(&pod, &decide_in_shop(&pod));
        assert_ne!(once, pod);
        let Decision::Inject { patch, .. } = decide_in_shop(&once) else { panic!() };
        assert_eq!(patch.0, [], "{yaml}");
    }
}

#[test]
fn container_added_by_a_later_webhook_is_connected_when_asked_again() {
    let pod = mk_pod(PLAIN);
    let mut once = patched(&pod, &decide_in_shop(&pod));
    let spec = once.spec.as_mut().unwrap();
    spec.containers.push(Container { name: "late".into(), ..Container::default() });
    let twice = patched(&once, &decide_in_shop(&once));
    let late = &twice.spec.unwrap().containers[1];
    assert_eq!(late.env.as_ref().unwrap()[0].name, URL_ENV);
}

#[test]
fn sidecar_is_first_and_never_what_the_pod_says() {
    let mut pod = mk_pod(FULL);
    let forged =
        Container { name: SIDECAR.into(), image: Some("evil:1".into()), ..Container::default() };
    pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap().push(forged);
    let spec = patched(&pod, &decide_in_shop(&pod)).spec.unwrap();
    let text = serde_json::to_string(&spec).unwrap();
    assert!(!text.contains("evil") && !text.contains("--privileged"), "{text}");

    let pod = mk_pod(FULL);
    let spec = patched(&pod, &decide_in_shop(&pod)).spec.unwrap();
    let init = spec.init_containers.unwrap();
    assert_eq!(init[0].name, SIDECAR);
    assert_eq!(init[0].restart_policy.as_deref(), Some("Always"));
    assert_eq!(init[1].name, "migrate");
    let names: Vec<_> = init[1].env.iter().flatten().map(|env| env.name.as_str()).collect();
    assert_eq!(names, ["STAGE", URL_ENV, SOCKET_ENV]);
}

#[test]
fn credentials_are_mounted_into_the_sidecar_only() {
    let pod = mk_pod(FULL);
    let spec = patched(&pod, &decide_in_shop(&pod)).spec.unwrap();
    for container in spec.containers.iter().chain(&spec.init_containers.unwrap()[1..]) {
        for mount in container.volume_mounts.iter().flatten() {
            assert!(["data", "holdfast-socket"].contains(&mount.name.as_str()), "{mount:?}");
        }
    }
}

#[test]
fn guaranteed_pod_stays_guaranteed() {
    let pod = mk_pod(GUARANTEED);
    let spec = patched(&pod, &decide_in_shop(&pod)).spec.unwrap();
    let resources = spec.init_containers.unwrap().remove(0).resources.unwrap();
    assert_eq!(resources.requests, resources.limits);
    let pod = mk_pod(PLAIN);
    let spec = patched(&pod, &decide_in_shop(&pod)).spec.unwrap();
    let resources = spec.init_containers.unwrap().remove(0).resources.unwrap();
    assert_ne!(resources.requests, resources.limits);
}

#[test]
fn label_of_the_pod_wins_over_the_label_of_the_namespace() {
    let mut pod = mk_pod(PLAIN);
    let settings = mk_settings();
    let mut with = |label: Option<&str>, namespace| {
        let labels = pod.metadata.labels.as_mut().unwrap();
        match label {
            Some(value) => labels.insert(INJECT_LABEL.into(), value.into()),
            None => labels.remove(INJECT_LABEL),
        };
        decide(&pod, "shop", namespace, &settings)
    };
    assert!(matches!(with(None, true), Decision::Inject { .. }));
    assert_eq!(with(None, false), Decision::NotAsked);
    assert_eq!(with(Some("false"), true), Decision::NotAsked);
    assert!(matches!(with(Some("true"), false), Decision::Inject { .. }));
    let Decision::Deny(reason) = with(Some("yes"), false) else { panic!() };
    assert!(reason.contains("must be \"true\" or \"false\""), "{reason}");
}

#[test]
fn pods_that_cannot_have_a_sidecar_are_skipped_with_a_reason() {
    let settings = mk_settings();
    let cases: [(&str, Value, SkipReason); 5] = [
        ("shop", json!({"spec": {"hostNetwork": true}}), SkipReason::HostNetwork),
        ("shop", json!({"spec": {"os": {"name": "windows"}}}), SkipReason::NotLinux),
        ("holdfast-system", json!({}), SkipReason::OwnNamespace),
        ("kube-system", json!({}), SkipReason::SystemNamespace),
        (
            "shop",
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
            SkipReason::StaticPod,
        ),
    ];
    for (namespace, change, reason) in cases {
        let mut value = serde_json::to_value(mk_pod(PLAIN)).unwrap();
        json_patch::merge(&mut value, &change);
        let pod: Pod = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(decide(&pod, namespace, false, &settings), Decision::Skip(reason));
        json_patch::patch(&mut value, &mark_skipped(&pod, reason)).unwrap();
        assert_eq!(value["metadata"]["labels"][INJECTED_LABEL], "false");
        assert_eq!(value["metadata"]["annotations"][SKIPPED_ANNOTATION], reason.word());
    }
}

#[test]
fn pod_that_asks_in_a_way_that_cannot_work_is_refused() {
    let mut pod = mk_pod(PLAIN);
    pod.metadata.annotations = Some([(SOCKET_ANNOTATION.to_owned(), "yes".to_owned())].into());
    let Decision::Deny(reason) = decide_in_shop(&pod) else { panic!() };
    assert!(reason.contains(SOCKET_ANNOTATION), "{reason}");
    let candidate = |names: &str| {
        let mut pod = mk_pod(PLAIN);
        let annotation = (CANDIDATE_ANNOTATION.to_owned(), names.to_owned());
        pod.metadata.annotations = Some([annotation].into());
        decide_in_shop(&pod)
    };
    assert!(matches!(candidate("boss, other"), Decision::Inject { .. }));
    let Decision::Deny(reason) = candidate("boss,The Boss") else { panic!() };
    assert!(reason.contains("\"The Boss\" cannot be one"), "{reason}");
    let mut pod = mk_pod(PLAIN);
    pod.spec.as_mut().unwrap().containers[0].name = SIDECAR.into();
    let Decision::Deny(reason) = decide_in_shop(&pod) else { panic!() };
    assert!(reason.contains("rename it"), "{reason}");
}
