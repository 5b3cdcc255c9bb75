//! Locks in pods, on Leases and on Redis: the same scenes on both.

use std::{
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use holdfast_e2e::{Namespace, Pod, apply, eventually, fence, get, kubectl, redis};
use serde_json::Value;

/// A Backend on a Redis of this cluster, for all scenes; ready when this returns.
fn redis_backend() -> &'static str {
    static BACKEND: OnceLock<()> = OnceLock::new();
    BACKEND.get_or_init(|| {
        holdfast_e2e::installed();
        let address = redis("default", "redis");
        apply(
            "default",
            &format!(
                "{{apiVersion: holdfast.dev/v1alpha1, kind: Backend, metadata: {{name: main}}, \
                 spec: {{redis: {{mode: Standalone, addresses: ['{address}']}}}}}}"
            ),
        );
        kubectl(&["wait", "--for=condition=Ready", "backend/main", "--timeout=90s"]);
    });
    "main"
}

/// A resource that refuses stale fences, on reads as on writes: a register in a Redis of its own.
struct Register {
    namespace: String,
}

impl Register {
    fn new(namespace: &Namespace) -> Self {
        redis(&namespace.name, "register");
        Register { namespace: namespace.name.clone() }
    }

    /// Runs an operation with a fence; `None` when it was refused.
    fn call(&self, fence: u64, write: &str) -> Option<String> {
        const GUARD: &str = "if tonumber(ARGV[1]) < tonumber(redis.call('GET', 'fence') or '0') then \
                             return 'refused' end redis.call('SET', 'fence', ARGV[1]) \
                             if ARGV[2] ~= '' then redis.call('SET', 'value', ARGV[2]) end \
                             return redis.call('GET', 'value') or '0'";
        let fence = fence.to_string();
        let args = ["exec", "-n", &self.namespace, "register", "--"];
        let call = ["redis-cli", "eval", GUARD, "0", &fence, write];
        let answer = kubectl(&[&args[..], &call].concat());
        (answer != "refused").then_some(answer)
    }
}

fn three_pods_contend_and_no_increment_is_lost(namespace: &Namespace) {
    let register = Register::new(namespace);
    let pods = namespace.pods(&["a", "b", "c"]);
    const EACH: u64 = 3;
    let increments = |pod: &Pod| {
        for _ in 0..EACH {
            let hold = pod.acquire("orders", "waitSeconds=60");
            let value: u64 = register.call(fence(&hold), "").expect("held").parse().unwrap();
            register.call(fence(&hold), &(value + 1).to_string()).expect("held");
            pod.release("orders", &hold);
        }
    };
    thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| increments(pod));
        }
    });
    let hold = pods[0].acquire("orders", "waitSeconds=10");
    assert_eq!(register.call(fence(&hold), "").unwrap(), (3 * EACH).to_string());
    pods[0].release("orders", &hold);

    // One that stops renewing is overtaken; its late write is refused by the fence.
    let stale = pods[0].acquire("orders", "renew=manual");
    let next = pods[1].acquire("orders", "waitSeconds=30");
    assert!(fence(&next) > fence(&stale));
    assert!(register.call(fence(&next), "7").is_some());
    assert_eq!(register.call(fence(&stale), "666"), None, "a stale write was accepted");
    let gone = pods[0].release("orders", &stale);
    assert_eq!(gone["code"], "hold_lost");
    pods[1].release("orders", &next);
}

fn holder_and_queue_are_shown(namespace: &Namespace, queue_is_shared: bool) {
    let pods = namespace.pods(&["d", "e"]);
    let hold = pods[0].acquire("orders", "waitSeconds=30");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pods[1].acquire("orders", "waitSeconds=60"));
        let shown = || pods[1].get("/v1/locks/orders");
        eventually("the waiter is seen", Duration::from_secs(20), || shown()["waiters"] == 1);
        let state = shown();
        assert_eq!((&state["holder"]["pod"], &state["queue"][0]), (&"d".into(), &"e".into()));
        eventually("kubectl shows the holder", Duration::from_secs(20), || {
            namespace.column("orders", "HOLDER") == "d"
                && namespace.column("orders", "FENCE") == hold["fence"].as_str().unwrap()
                && (!queue_is_shared || namespace.column("orders", "WAITING") == "1")
        });
        pods[0].release("orders", &hold);
        let next = waiting.join().unwrap();
        assert!(fence(&next) > fence(&hold));
        pods[1].release("orders", &next);
    });
}

fn a_killed_pod_hands_over_within_the_ttl(namespace: &Namespace, ttl: Duration) {
    let pods = namespace.pods(&["f", "g"]);
    let hold = pods[0].acquire("orders", "waitSeconds=30");
    let begun = Instant::now();
    kubectl(&["delete", "pod", "f", "-n", &namespace.name, "--force", "--grace-period=0"]);
    let next = pods[1].acquire("orders", "waitSeconds=60");
    let waited = begun.elapsed();
    assert!(fence(&next) > fence(&hold));
    // Its last renewal may have been just before, and the pod takes a moment to die: a long one
    // where the kubelet has much to do.
    assert!(waited < ttl + Duration::from_secs(20), "{waited:?}");
    pods[1].release("orders", &next);
}

fn a_pod_that_ends_releases_after_its_app(namespace: &Namespace) {
    let pods = namespace.pods(&["h", "i"]);
    pods[0].acquire("orders", "waitSeconds=30");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pods[1].acquire("orders", "waitSeconds=60"));
        kubectl(&["delete", "pod", "h", "-n", &namespace.name]);
        let next = waiting.join().unwrap();
        pods[1].release("orders", &next);
    });
}

/// D4: the sidecar is told to stop after the app, so it releases after the app.
fn an_app_that_does_not_heed_sigterm_keeps_its_hold(namespace: &Namespace) {
    let deaf = namespace.deaf_pod("n");
    let other = namespace.pods(&["o"]).remove(0);
    deaf.acquire("orders", "waitSeconds=30");
    let begun = Instant::now();
    kubectl(&["delete", "pod", "n", "-n", &namespace.name, "--wait=false"]);
    let next = other.acquire("orders", "waitSeconds=60");
    // Its pod has ten seconds of grace.
    assert!(begun.elapsed() > Duration::from_millis(9_500), "{:?}", begun.elapsed());
    other.release("orders", &next);
}

fn a_restarted_container_loses_its_hold(namespace: &Namespace) {
    let pods = namespace.pods(&["j"]);
    let hold = pods[0].acquire("orders", "waitSeconds=30");
    // The app's process; a container restarts with another one.
    drop(pods[0].exec(&["kill", "-9", "1"]));
    drop(pods[0].exec(&["sh", "-c", "kill -TERM 1"]));
    eventually("the container has restarted", Duration::from_secs(60), || {
        let pod = get(&namespace.name, "pod/j");
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"].as_u64() > Some(0) && status["state"]["running"].is_object()
    });
    let id = hold["holdId"].as_str().unwrap();
    eventually("the hold is lost", Duration::from_secs(30), || {
        pods[0].get(&format!("/v1/holds/{id}"))["code"] == "hold_lost"
    });
    let next = pods[0].acquire("orders", "waitSeconds=60");
    assert!(fence(&next) > fence(&hold));
    pods[0].release("orders", &next);
}

fn force_release_takes_the_lock(namespace: &Namespace) {
    let pods = namespace.pods(&["k", "l"]);
    let hold = pods[0].acquire("orders", "waitSeconds=30");
    kubectl(&[
        "annotate",
        "lock",
        "orders",
        "-n",
        &namespace.name,
        "holdfast.dev/force-release=default",
    ]);
    let next = pods[1].acquire("orders", "waitSeconds=30");
    assert!(fence(&next) > fence(&hold));
    let id = hold["holdId"].as_str().unwrap();
    eventually("the holder is told", Duration::from_secs(20), || {
        pods[0].get(&format!("/v1/holds/{id}"))["code"] == "hold_lost"
    });
    eventually("an Event tells", Duration::from_secs(20), || {
        let events = kubectl(&[
            "get",
            "events",
            "-n",
            &namespace.name,
            "--field-selector",
            "reason=ForceReleased",
        ]);
        events.contains("lock/orders")
    });
    let lock: Value = get(&namespace.name, "lock/orders");
    assert!(lock["metadata"]["annotations"]["holdfast.dev/force-release"].is_null(), "done once");
    pods[1].release("orders", &next);
}

fn a_class_created_again_grants_higher_fences(namespace: &Namespace, spec: &str) {
    let pods = namespace.pods(&["m"]);
    let before = pods[0].acquire("orders", "waitSeconds=30");
    pods[0].release("orders", &before);
    kubectl(&["delete", "lock", "orders", "-n", &namespace.name, "--timeout=60s"]);
    namespace.lock("orders", spec);
    let mut after = Value::Null;
    eventually("the new class is served", Duration::from_secs(30), || {
        let before = after.take();
        after = pods[0].post("orders/acquire");
        if after["code"] != before["code"] {
            eprintln!("an acquire of the new class is answered by {after}");
        }
        after["holdId"].is_string()
    });
    assert!(fence(&after) > fence(&before), "{after} {before}");
}

fn scenes(name: &str, spec: &str, ttl: Duration, queue_is_shared: bool) {
    let namespace = Namespace::new(name);
    namespace.lock("orders", spec);
    three_pods_contend_and_no_increment_is_lost(&namespace);
    holder_and_queue_are_shown(&namespace, queue_is_shared);
    a_killed_pod_hands_over_within_the_ttl(&namespace, ttl);
    a_pod_that_ends_releases_after_its_app(&namespace);
    an_app_that_does_not_heed_sigterm_keeps_its_hold(&namespace);
    a_restarted_container_loses_its_hold(&namespace);
    force_release_takes_the_lock(&namespace);
    a_class_created_again_grants_higher_fences(&namespace, spec);
}

#[test]
fn every_scene_holds_on_leases() {
    scenes("lease", "{ttlSeconds: 5}", Duration::from_secs(5), false);
}

#[test]
fn every_scene_holds_on_redis() {
    let backend = redis_backend();
    let spec = format!("{{ttlSeconds: 5, backend: {backend}, keys: [default]}}");
    scenes("redis", &spec, Duration::from_secs(5), true);
}
