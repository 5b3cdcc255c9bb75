//! Elections in pods, on Leases and on Redis: who leads, and the way to them.

use std::time::{Duration, Instant};

use holdfast_e2e::{Namespace, Pod, eventually, get, kubectl, may, redis};
use serde_json::Value;

fn elect(namespace: &Namespace, backend: &str) {
    namespace.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: boss}, \
         spec: {clusterIP: None, ports: [{name: http, port: 80}]}}",
    );
    namespace.apply(&format!(
        "{{apiVersion: holdfast.dev/v1alpha1, kind: LeaderElection, metadata: {{name: boss}}, \
         spec: {{backend: {backend}, leaseDurationSeconds: 5, retryPeriodSeconds: 1, \
         leaderLabel: {{name: example.com/role, value: leader}}, service: {{name: boss}}}}}}"
    ));
    let wait = ["wait", "-n", &namespace.name, "--for=condition=Ready", "le/boss", "--timeout=60s"];
    kubectl(&wait);
}

/// The pod that the class's status names.
fn leader(namespace: &Namespace) -> String {
    let election = get(&namespace.name, "le/boss");
    election["status"]["leader"]["pod"].as_str().unwrap_or_default().to_owned()
}

fn term(state: &Value) -> u64 {
    state["term"].as_str().unwrap_or("0").parse().unwrap()
}

fn post(pod: &Pod, what: &str) -> Value {
    pod.curl(&["-X", "POST", &format!("http://127.0.0.1:4140/v1/elections/boss/{what}")])
}

fn leading(pod: &Pod) -> bool {
    pod.get("/v1/elections/boss/leading")["state"] == "leading"
}

/// Until exactly this pod leads by every account: its own, the status, the label, the Service.
fn until_leads(namespace: &Namespace, pod: &Pod) -> u64 {
    let within = Duration::from_secs(25);
    eventually(&format!("{} leads", pod.name), within, || leading(pod));
    eventually("the status names it", within, || leader(namespace) == pod.name);
    let select =
        ["get", "pods", "-n", &namespace.name, "-l", "example.com/role=leader", "-o", "name"];
    eventually("the label is on it alone", within, || {
        kubectl(&select).trim() == format!("pod/{}", pod.name)
    });
    let address = get(&namespace.name, &format!("pod/{}", pod.name))["status"]["podIP"].clone();
    eventually("the Service has it alone", within, || {
        let slice = get(&namespace.name, "endpointslice/holdfast-boss");
        let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints.len() == 1 && endpoints[0]["addresses"][0] == address
    });
    term(&pod.get("/v1/elections/boss"))
}

fn leaders_come_and_go(namespace: &Namespace) {
    let pods = namespace.candidates(&["a", "b"], "boss");
    eventually("somebody leads", Duration::from_secs(30), || pods.iter().any(leading));
    let (first, second) =
        if leading(&pods[0]) { (&pods[0], &pods[1]) } else { (&pods[1], &pods[0]) };
    let one = until_leads(namespace, first);
    assert!(!leading(second));
    assert_eq!(second.get("/v1/elections/boss")["leader"]["pod"], first.name.as_str());

    // A resignation hands over at once, and the one who resigned stands by.
    assert_eq!(post(first, "resign?pauseSeconds=30")["state"], "standby");
    let two = until_leads(namespace, second);
    assert!(two > one, "{two} after {one}");

    // A killed leader is replaced within its lease.
    assert_eq!(post(first, "resign?withdraw=true")["state"], "notCandidate");
    assert_eq!(post(first, "campaign")["state"], "standby");
    let begun = Instant::now();
    kubectl(&["delete", "pod", &second.name, "-n", &namespace.name, "--force", "--grace-period=0"]);
    eventually("the other leads", Duration::from_secs(60), || leading(first));
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert!(until_leads(namespace, first) > two);
    let events = kubectl(&["get", "events", "-n", &namespace.name]);
    assert!(events.contains("LeaderChanged"), "{events}");
}

#[test]
fn leaders_come_and_go_on_leases() {
    let namespace = Namespace::new("elect");
    // Here by one watch of each sidecar for all Leases; those of locks are watched by name.
    kubectl(&["label", "namespace", &namespace.name, "holdfast.dev/lease-watch=shared"]);
    elect(&namespace, "lease");
    assert!(may("default", &namespace.name, "watch", "leases"));
    leaders_come_and_go(&namespace);
}

#[test]
fn leaders_come_and_go_on_redis() {
    let namespace = Namespace::new("elect-redis");
    let address = redis(&namespace.name, "redis");
    let backend = namespace.backend("elect", &address);
    elect(&namespace, &backend);
    leaders_come_and_go(&namespace);
}
