//! A rate limit in pods: one count for all of them, wherever they run.

use std::{thread, time::Duration};

use holdfast_e2e::{Namespace, Pod, eventually, get, kubectl, redis};

/// The status code and the headers of a check.
fn check(pod: &Pod, query: &str) -> (u16, String) {
    let url = format!("http://127.0.0.1:4140/v1/ratelimits/mail/check?{query}");
    let call =
        ["curl", "-s", "-o", "/dev/null", "-D", "-", "-w", "%{http_code}", "-X", "POST", &url];
    let output = pod.exec(&call).unwrap();
    let (headers, code) = output.trim().rsplit_once('\n').expect("headers and a code");
    (code.parse().unwrap(), headers.to_lowercase())
}

#[test]
fn all_pods_share_one_count_and_kubectl_shows_who_is_at_the_limit() {
    let namespace = Namespace::new("rates");
    let address = redis(&namespace.name, "redis");
    let backend = namespace.backend("rates", &address);
    let declare = |limit: u32| {
        namespace.apply(&format!(
            "{{apiVersion: holdfast.dev/v1alpha1, kind: RateLimit, metadata: {{name: mail}}, spec: \
             {{backend: {backend}, limits: [{{name: hour, limit: {limit}, windowSeconds: 3600}}, \
             {{name: day, algorithm: FixedWindow, limit: 100, windowSeconds: 86400}}]}}}}"
        ));
        let name = ["-n", &namespace.name, "rl/mail"];
        kubectl(&[&["wait", "--for=condition=Ready", "--timeout=60s"][..], &name].concat());
    };
    declare(7);
    let pods = namespace.pods(&["a", "b", "c"]);
    let within = Duration::from_secs(30);
    eventually("the limit is served", within, || check(&pods[0], "key=warm").0 == 200);

    // 15 checks from three pods at once: 7 pass, however they interleave.
    let codes: Vec<u16> = thread::scope(|scope| {
        let of = |pod| (0..5).map(|_| check(pod, "key=t/1").0).collect::<Vec<_>>();
        let all: Vec<_> = pods.iter().map(|pod| scope.spawn(move || of(pod))).collect();
        all.into_iter().flat_map(|pod| pod.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 200).count(), 7, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 429).count(), 8, "{codes:?}");
    let (code, headers) = check(&pods[2], "key=t/1");
    assert_eq!(code, 429);
    for header in ["ratelimit: ", "ratelimit-policy: ", "retry-after: "] {
        assert!(headers.contains(header), "{headers}");
    }
    assert_eq!(check(&pods[1], "key=t/2&cost=8").0, 422, "it can never fit");
    assert_eq!(check(&pods[1], "key=t/2").0, 200, "another key has a count of its own");
    eventually("the status shows the key", within, || {
        get(&namespace.name, "rl/mail")["status"]["limited"] == 1
    });

    // A higher limit is in force at once for what was spent before.
    declare(9);
    eventually("the new limit is served", within, || check(&pods[0], "key=t/1").0 == 200);
    kubectl(&["delete", "-n", &namespace.name, "rl/mail", "--timeout=60s"]);
    eventually("the pods know it no more", within, || check(&pods[0], "key=t/1").0 == 404);
}
