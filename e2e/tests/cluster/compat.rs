//! Other projects' APIs in a cluster: an annotation for a pod's own sidecar, a gateway for a namespace.

use std::{fmt::Write, time::Duration};

use holdfast_e2e::{Namespace, Pod, eventually, gateway, get, kubectl, redis};

const WITHIN: Duration = Duration::from_secs(30);

/// A field of a message, of which all are short.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("it is short");
    [&[number << 3 | 2, length], bytes].concat()
}

/// What Envoy would ask about a path, and what comes back, as far as it is text.
fn ask(pod: &Pod, address: &str, domain: &str, path: &str) -> String {
    let entry = [field(1, b"path"), field(2, path.as_bytes())].concat();
    let descriptor = field(2, &field(1, &entry));
    let message = [field(1, domain.as_bytes()), descriptor].concat();
    let length = u8::try_from(message.len()).expect("it is short");
    let octal = [&[0, 0, 0, 0, length], &message[..]].concat().iter().fold(
        String::new(),
        |mut text, byte| {
            let _ = write!(text, "\\{byte:03o}");
            text
        },
    );
    let url =
        format!("http://{address}/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    let command = format!(
        "printf '{octal}' | curl -s -D - --max-time 5 --http2-prior-knowledge -H 'te: trailers' \
         -H 'content-type: application/grpc' --data-binary @- {url} | tr -cd 'a-z0-9 :/-'"
    );
    pod.exec(&["sh", "-c", &command]).unwrap_or_default()
}

#[test]
fn a_gateway_and_the_sidecars_of_its_namespace_share_their_counts() {
    let namespace = Namespace::new("edge");
    let backend = namespace.backend("edge", &redis(&namespace.name, "redis"));
    namespace.apply(&format!(
        "{{apiVersion: holdfast.dev/v1alpha1, kind: RateLimit, metadata: {{name: edge}}, spec: \
         {{backend: {backend}, limits: [{{name: hour, limit: 3, windowSeconds: 3600}}]}}}}"
    ));
    kubectl(&["wait", "-n", &namespace.name, "--for=condition=Ready", "rl/edge", "--timeout=60s"]);
    gateway(&namespace.name, &["--set", "gateway.networkPolicy.enabled=true"]);
    let service = get(&namespace.name, "service/holdfast-gateway");
    let address = format!("{}:8081", service["spec"]["clusterIP"].as_str().unwrap());
    let pods = namespace.pods(&["app"]);
    eventually("the gateway answers", WITHIN, || {
        ask(&pods[0], &address, "edge", "/warm").contains("edge/hour")
    });
    let url = "http://127.0.0.1:4140/v1/ratelimits/edge/check?key=path=/&cost=2";
    let own = pods[0].curl(&["-X", "POST", url]);
    assert_eq!(own["remaining"], 1, "{own}");
    let passed = ask(&pods[0], &address, "edge", "/");
    assert!(passed.contains("edge/hour") && !passed.contains("retry-after"), "{passed}");
    let refused = ask(&pods[0], &address, "edge", "/");
    assert!(refused.contains("retry-after"), "{refused}");
    let own = pods[0].curl(&["-X", "POST", url]);
    assert_eq!(own["code"], "quota_exceeded", "{own}");
}

#[test]
fn an_annotated_pod_speaks_daprs_and_envoys_apis_on_localhost() {
    let namespace = Namespace::new("peers");
    namespace.lock("orders", "{ttlSeconds: 60, keys: [order-1]}");
    let pod = namespace.annotated_pod("app", "holdfast.dev/compat", "dapr,rls=8082");
    let call = |path: &str, owner: &str| {
        let body = format!(
            "{{\"resourceId\": \"order-1\", \"lockOwner\": \"{owner}\", \"expiryInSeconds\": 60}}"
        );
        let url = format!("http://127.0.0.1:3500/v1.0-alpha1/{path}/orders");
        pod.curl(&["-H", "content-type: application/json", "-d", &body, &url])
    };
    eventually("the lock is known", WITHIN, || call("lock", "ann")["success"] == true);
    assert_eq!(call("lock", "bob")["success"], false);
    eventually("kubectl shows the holder", WITHIN, || {
        namespace.column("orders", "HOLDER") == "app"
    });
    assert_eq!(call("unlock", "bob")["status"], 2);
    assert_eq!(call("unlock", "ann")["status"], 0);
    // No RateLimit is declared here, and it says so: NOT_FOUND.
    let said = ask(&pod, "127.0.0.1:8082", "edge", "/");
    assert!(said.contains("grpc-status: 5"), "{said}");
    // Not named, not served.
    let closed = pod.exec(&["curl", "-s", "--max-time", "5", "http://127.0.0.1:4040/"]);
    assert!(closed.is_err(), "{closed:?}");
}
