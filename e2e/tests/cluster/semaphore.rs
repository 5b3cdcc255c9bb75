//! Permits in pods, on Redis and on Leases.

use std::{
    thread,
    time::{Duration, Instant},
};

use holdfast_e2e::{Namespace, Pod, eventually, fence, get, kubectl, redis};
use serde_json::Value;

fn declare(namespace: &Namespace, backend: &str, permits: u32) {
    namespace.apply(&format!(
        "{{apiVersion: holdfast.dev/v1alpha1, kind: Semaphore, metadata: {{name: pool}}, \
         spec: {{backend: {backend}, permits: {permits}, maxPerHolder: {}, ttlSeconds: 5}}}}",
        permits.min(2)
    ));
    let wait =
        ["wait", "-n", &namespace.name, "--for=condition=Ready", "sem/pool", "--timeout=60s"];
    kubectl(&wait);
}

fn post(pod: &Pod, what: &str) -> Value {
    pod.curl(&["-X", "POST", &format!("http://127.0.0.1:4140/v1/semaphores/pool/{what}")])
}

fn acquire(pod: &Pod, query: &str) -> Value {
    post(pod, &format!("acquire?{query}"))
}

fn release(pod: &Pod, hold: &Value) {
    let id = hold["holdId"].as_str().unwrap_or_else(|| panic!("not held: {hold}"));
    let answer = post(pod, &format!("release?holdId={id}"));
    assert_eq!(answer["released"], true, "{answer}");
}

fn status(namespace: &Namespace) -> Value {
    get(&namespace.name, "sem/pool")["status"].clone()
}

#[test]
fn pods_share_permits_and_a_killed_one_gives_them_back() {
    let namespace = Namespace::new("permits");
    let address = redis(&namespace.name, "redis");
    let backend = namespace.backend("permits", &address);
    declare(&namespace, &backend, 3);
    let pods = namespace.pods(&["a", "b"]);
    let (two, one) = (acquire(&pods[0], "permits=2"), acquire(&pods[1], ""));
    assert_eq!((&two["permits"], &one["permits"]), (&2.into(), &1.into()), "{two} {one}");
    assert!(fence(&one) > fence(&two));
    assert_eq!(acquire(&pods[1], "")["code"], "locked");
    assert_eq!(acquire(&pods[1], "permits=3")["code"], "cost_too_large");
    let within = Duration::from_secs(20);
    eventually("the status shows it", within, || {
        let status = status(&namespace);
        status["used"] == 3 && status["held"] == 2 && status["holders"][0]["pod"] == "a"
    });

    // Whoever waits is granted by the release, within the same step of the store.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| acquire(&pods[1], "waitSeconds=60"));
        eventually("the waiter is seen", within, || status(&namespace)["waiting"] == 1);
        release(&pods[0], &two);
        release(&pods[1], &waiting.join().unwrap());
    });
    release(&pods[1], &one);

    // The permits of a pod that was killed are back within their time to live.
    assert_eq!(acquire(&pods[0], "permits=2")["permits"], 2);
    kubectl(&["delete", "pod", "a", "-n", &namespace.name, "--force", "--grace-period=0"]);
    let begun = Instant::now();
    let all = acquire(&pods[1], "permits=2&waitSeconds=60");
    assert_eq!(all["permits"], 2, "{all}");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());

    // Fewer permits take nothing away.
    declare(&namespace, &backend, 2);
    eventually("the sidecar knows of it", within, || {
        pods[1].get("/v1/semaphores/pool")["permits"] == 2
    });
    assert_eq!(pods[1].get("/v1/semaphores/pool")["used"], 2);
    release(&pods[1], &all);
}

#[test]
fn pods_share_permits_that_are_leases() {
    let namespace = Namespace::new("slots");
    declare(&namespace, "lease", 3);
    let pods = namespace.pods(&["a", "b"]);
    let within = Duration::from_secs(20);
    // The class says two for each pod, and one for each hold.
    let (one, two) = (acquire(&pods[0], ""), acquire(&pods[0], ""));
    assert_eq!(acquire(&pods[0], "")["code"], "locked", "more than its share");
    assert_eq!(acquire(&pods[1], "permits=2")["code"], "cost_too_large");
    let three = acquire(&pods[1], "");
    assert!(fence(&one) < fence(&two) && fence(&two) < fence(&three), "{one} {two} {three}");
    assert_eq!(acquire(&pods[1], "")["code"], "locked");
    eventually("the status shows it", within, || {
        let status = status(&namespace);
        status["used"] == 3 && status["held"] == 3 && status["guarantee"] == "Consensus"
    });

    // Whoever waits is granted by the release.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| acquire(&pods[1], "waitSeconds=60"));
        eventually("the waiter is seen", within, || {
            pods[1].get("/v1/semaphores/pool")["waiters"] == 1
        });
        release(&pods[0], &one);
        let four = waiting.join().unwrap();
        assert!(fence(&four) > fence(&three), "{four}");
        release(&pods[1], &four);
    });

    // Fewer permits take nothing away, and let nothing be granted until enough have ended.
    declare(&namespace, "lease", 1);
    eventually("the sidecars know of it", within, || {
        pods.iter().all(|pod| pod.get("/v1/semaphores/pool")["permits"] == 1)
    });
    release(&pods[1], &three);
    assert_eq!(acquire(&pods[1], "")["code"], "locked", "the other is still held");
    release(&pods[0], &two);
    let next = acquire(&pods[1], "waitSeconds=30");
    assert!(fence(&next) > fence(&three), "{next}");

    // The permit of a pod that was killed is back within its time to live.
    kubectl(&["delete", "pod", "b", "-n", &namespace.name, "--force", "--grace-period=0"]);
    let begun = Instant::now();
    let last = acquire(&pods[0], "waitSeconds=60");
    assert!(fence(&last) > fence(&next), "{last}");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    release(&pods[0], &last);
}
