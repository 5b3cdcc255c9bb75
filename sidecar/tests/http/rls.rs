//! Envoy's rate limit service, spoken by a tonic client: names, hits, answers.

use std::slice::from_ref;

use holdfast_api::bundle::Bundle;
use holdfast_backend::redis::LocalEpoch;
use holdfast_core::{Holder, Substrate};
use holdfast_peers::{
    rls::{
        RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
        rate_limit_descriptor::{Entry, RateLimitOverride},
        rate_limit_response::{Code, rate_limit::Unit},
        rate_limit_service_client::RateLimitServiceClient,
    },
    tonic::{Code as Grpc, Status, transport::Channel},
};
use holdfast_sidecar::{Compat, Local};

use holdfast_wire::CheckRequest;

use crate::{
    client::{mk_bundle, mk_bundle_on},
    server::RedisServer,
};

const CLASSES: &str = r#"
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: shop}
spec:
  backend: main
  limits:
  - {name: minute, algorithm: FixedWindow, limit: 10, windowSeconds: 60}
  - {name: hour, algorithm: TokenBucket, limit: 5, windowSeconds: 3600}
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: shop-remote-address}
spec:
  backend: main
  limits: [{name: odd, limit: 1, windowSeconds: 90, algorithm: TokenBucket}]
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: shop-shadowed}
spec:
  backend: main
  shadow: true
  limits: [{name: l, limit: 1, windowSeconds: 3600}]
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: only-some-keys}
spec:
  backend: main
  limits: [{name: l, limit: 1, windowSeconds: 3600}]
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: permits}
spec:
  backend: main
  limits: [{name: running, algorithm: Concurrency, limit: 1, windowSeconds: 600}]
"#;

struct Rls {
    serving: holdfast_sidecar::Serving,
    client: RateLimitServiceClient<Channel>,
    _epoch: Option<LocalEpoch>,
}

async fn start() -> Rls {
    start_on(&mk_bundle(CLASSES), None).await
}

async fn start_on(bundle: &Bundle, redis: Option<(&str, &str)>) -> Rls {
    let local = Local {
        namespace: "default".into(),
        holder: Holder::new("pod-a").unwrap(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        page: false,
    };
    let (mut serving, epoch) = local.start(bundle, redis).await.unwrap();
    let wanted: Compat = "rls=127.0.0.1:0".parse().unwrap();
    let at = serving.compat(&wanted).await.unwrap().rls.unwrap();
    let channel = Channel::from_shared(format!("http://{at}")).unwrap().connect().await.unwrap();
    Rls { serving, client: RateLimitServiceClient::new(channel), _epoch: epoch }
}

fn descriptor(pairs: &[(&str, &str)]) -> RateLimitDescriptor {
    let entry = |(key, value): &(&str, &str)| Entry { key: (*key).into(), value: (*value).into() };
    RateLimitDescriptor { entries: pairs.iter().map(entry).collect(), ..Default::default() }
}

fn ask(domain: &str, descriptors: &[RateLimitDescriptor]) -> RateLimitRequest {
    RateLimitRequest { domain: domain.into(), descriptors: descriptors.to_vec(), hits_addend: 0 }
}

impl Rls {
    async fn send(&mut self, request: RateLimitRequest) -> Result<RateLimitResponse, Status> {
        self.client.should_rate_limit(request).await.map(|answer| answer.into_inner())
    }

    async fn codes(&mut self, request: RateLimitRequest) -> (Code, Vec<Code>) {
        let answer = self.send(request).await.unwrap();
        (answer.overall_code(), answer.statuses.iter().map(|status| status.code()).collect())
    }

    fn hits(&self, name: &str, outcome: &str) -> f64 {
        let families = self.serving.registry.gather();
        let family = families.iter().find(|f| f.name() == "holdfast_rls_hits_total").unwrap();
        let labels = |metric: &prometheus::proto::Metric| {
            metric.get_label().iter().map(|l| l.value().to_owned()).collect::<Vec<_>>()
        };
        let found = family.get_metric().iter().find(|metric| labels(metric) == [name, outcome]);
        found.map_or(0.0, |metric| metric.get_counter().get_value())
    }
}

#[tokio::test]
async fn a_descriptor_passes_until_the_limit_and_is_told_when_to_come_back() {
    let mut rls = start().await;
    let request = ask("shop", &[descriptor(&[("user", "ann")])]);
    for left in (0..5).rev() {
        let answer = rls.send(request.clone()).await.unwrap();
        assert_eq!(answer.overall_code(), Code::Ok);
        assert_eq!(answer.statuses[0].limit_remaining, left, "the tightest limit is shown");
        assert!(answer.response_headers_to_add.is_empty());
    }
    let refused = rls.send(request).await.unwrap();
    assert_eq!(refused.overall_code(), Code::OverLimit);
    let status = &refused.statuses[0];
    let limit = status.current_limit.as_ref().unwrap();
    assert_eq!((limit.name.as_str(), limit.requests_per_unit), ("shop/hour", 5));
    assert_eq!(limit.unit(), Unit::Hour);
    assert!((3_500..=3_600).contains(&status.duration_until_reset.unwrap().seconds));
    let header = &refused.response_headers_to_add[0];
    assert_eq!(header.key, "retry-after");
    assert!((700..=720).contains(&header.value.parse::<u64>().unwrap()), "{}", header.value);
    let other = ask("shop", &[descriptor(&[("user", "bob")])]);
    assert_eq!(rls.codes(other).await.0, Code::Ok, "another value has counts of its own");
    assert_eq!(rls.hits("shop", "within"), 5.0);
    assert_eq!(rls.hits("shop", "near"), 1.0, "the last one left less than a fifth");
    assert_eq!(rls.hits("shop", "over"), 1.0);
}

#[tokio::test]
async fn keys_choose_the_class_and_each_descriptor_is_charged_by_itself() {
    let mut rls = start().await;
    let address = descriptor(&[("remote_address", "10.0.0.1")]);
    let user = descriptor(&[("user", "ann")]);
    let both = ask("shop", &[address.clone(), user.clone()]);
    assert_eq!(rls.codes(both.clone()).await, (Code::Ok, vec![Code::Ok, Code::Ok]));
    let second = rls.send(both).await.unwrap();
    assert_eq!(second.overall_code(), Code::OverLimit);
    let codes: Vec<Code> = second.statuses.iter().map(|status| status.code()).collect();
    assert_eq!(codes, [Code::OverLimit, Code::Ok]);
    let odd = second.statuses[0].current_limit.as_ref().unwrap();
    assert_eq!((odd.name.as_str(), odd.unit()), ("shop-remote-address/odd", Unit::Unknown));
    assert_eq!(second.statuses[1].limit_remaining, 3, "the other was charged twice");
    let deeper = descriptor(&[("remote_address", "10.0.0.1"), ("path", "/")]);
    assert_eq!(rls.codes(ask("shop", &[deeper])).await.0, Code::Ok, "it has a class of its own");
}

#[tokio::test]
async fn hits_are_the_cost_and_the_descriptors_own_win() {
    let mut rls = start().await;
    let plain = descriptor(&[("user", "ann")]);
    let with = |hits: u64, negative: bool| RateLimitDescriptor {
        hits_addend: Some(hits),
        is_negative_hits: negative,
        ..plain.clone()
    };
    let left = async |rls: &mut Rls| {
        let looked = rls.send(ask("shop", &[with(0, false)])).await.unwrap();
        looked.statuses[0].limit_remaining
    };
    let of_request = RateLimitRequest { hits_addend: 2, ..ask("shop", from_ref(&plain)) };
    assert_eq!(rls.codes(of_request.clone()).await.0, Code::Ok);
    assert_eq!(left(&mut rls).await, 3);
    let own = RateLimitRequest { descriptors: vec![with(3, false)], ..of_request };
    assert_eq!(rls.codes(own).await.0, Code::Ok);
    assert_eq!(left(&mut rls).await, 0);
    assert_eq!(rls.codes(ask("shop", &[with(4, true)])).await.0, Code::Ok);
    assert_eq!(left(&mut rls).await, 4);
    let never = rls.send(ask("shop", &[with(6, false)])).await.unwrap();
    assert_eq!(never.overall_code(), Code::OverLimit, "more than the limit can never fit");
    assert!(never.response_headers_to_add.is_empty(), "so there is no time to come back");
    assert_eq!(rls.hits("shop", "within"), 2.0);
    assert_eq!(rls.hits("shop", "near"), 3.0);
    assert_eq!(rls.hits("shop", "refunded"), 4.0);
}

#[tokio::test]
async fn a_shadow_lets_pass_and_is_counted() {
    let mut rls = start().await;
    let request = ask("shop", &[descriptor(&[("shadowed", "x")])]);
    assert_eq!(rls.codes(request.clone()).await.0, Code::Ok);
    assert_eq!(rls.codes(request).await.0, Code::Ok);
    assert_eq!(rls.hits("shop-shadowed", "shadowed"), 1.0);
}

#[tokio::test]
async fn what_no_class_is_for_is_unlimited_but_a_domain_without_any_is_an_error() {
    let mut rls = start().await;
    let unlimited = rls.send(ask("only", &[descriptor(&[("user", "ann")])])).await.unwrap();
    assert_eq!(unlimited.overall_code(), Code::Ok);
    assert_eq!(unlimited.statuses[0].current_limit, None);
    assert_eq!(rls.hits("", "unlimited"), 1.0);
    let typo = rls.send(ask("shpo", &[descriptor(&[("user", "ann")])])).await.unwrap_err();
    assert_eq!(typo.code(), Grpc::NotFound);
    assert!(typo.message().contains("did you mean \"shop\"?"), "{typo}");
}

#[tokio::test]
async fn wrong_requests_are_refused_and_charge_nothing() {
    let mut rls = start().await;
    let good = descriptor(&[("user", "ann")]);
    let own_limit = RateLimitDescriptor {
        limit: Some(RateLimitOverride { requests_per_unit: 1_000 }),
        ..good.clone()
    };
    for (request, says) in [
        (ask("", from_ref(&good)), "domain"),
        (ask("shop", &[]), "descriptors"),
        (ask("shop", &vec![good.clone(); 65]), "descriptors"),
        (ask("shop", &[good.clone(), descriptor(&[])]), "entry"),
        (ask("shop", &[good.clone(), own_limit]), "limits are those of the class"),
        (ask("permits", from_ref(&good)), "Concurrency"),
    ] {
        let refused = rls.send(request).await.unwrap_err();
        assert_eq!(refused.code(), Grpc::InvalidArgument, "{says}");
        assert!(refused.message().contains(says), "{says}: {refused}");
    }
    let large = descriptor(&[("user", &"x".repeat(70_000))]);
    assert_eq!(rls.send(ask("shop", &[large])).await.unwrap_err().code(), Grpc::OutOfRange);
    let left = rls.send(ask("shop", &[good])).await.unwrap().statuses[0].limit_remaining;
    assert_eq!(left, 4);
}

#[tokio::test]
async fn an_open_connection_does_not_hold_up_the_end() {
    let mut rls = start().await;
    rls.send(ask("shop", &[descriptor(&[("user", "ann")])])).await.unwrap();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), rls.serving.close(true));
    ended.await.unwrap();
    let late = rls.client.should_rate_limit(ask("shop", &[descriptor(&[("user", "ann")])])).await;
    assert_eq!(late.unwrap_err().code(), Grpc::Unavailable);
}

#[tokio::test]
async fn an_apps_checks_and_envoys_share_their_counts() {
    let mut rls = start().await;
    let own = CheckRequest { key: Some("user=ann".into()), cost: Some(4), wait_seconds: None };
    rls.serving.sidecar.check("shop", &own).await.unwrap();
    let request = ask("shop", &[descriptor(&[("user", "ann")])]);
    assert_eq!(rls.send(request.clone()).await.unwrap().statuses[0].limit_remaining, 0);
    assert_eq!(rls.codes(request).await.0, Code::OverLimit);
}

#[tokio::test]
async fn without_its_store_a_closed_class_is_an_error_and_an_open_one_lets_pass() {
    const ON_REDIS: &str = r#"
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: closed}
spec:
  backend: redis
  limits: [{name: l, limit: 1, windowSeconds: 3600}]
---
apiVersion: holdfast.dev/v1alpha1
kind: RateLimit
metadata: {name: open}
spec:
  backend: redis
  onBackendFailure: Open
  limits: [{name: l, limit: 1, windowSeconds: 3600}]
"#;
    let mut server = RedisServer::start(&[]);
    let url = format!("redis://{}", server.address());
    let bundle = mk_bundle_on("redis", Substrate::Redis, ON_REDIS);
    let mut rls = start_on(&bundle, Some(("redis", &url))).await;
    let of = |domain: &str| ask(domain, &[descriptor(&[("user", "ann")])]);
    for domain in ["closed", "open"] {
        assert_eq!(rls.codes(of(domain)).await.0, Code::Ok);
        assert_eq!(rls.codes(of(domain)).await.0, Code::OverLimit);
    }
    server.kill();
    let refused = rls.send(of("closed")).await.unwrap_err();
    assert_eq!(refused.code(), Grpc::Unavailable, "{refused}");
    let passed = rls.send(of("open")).await.unwrap();
    assert_eq!(passed.overall_code(), Code::Ok);
    assert_eq!(passed.statuses[0].current_limit, None, "nobody knows how it stands");
    assert_eq!(rls.hits("closed", "failed"), 1.0);
    assert_eq!(rls.hits("open", "unchecked"), 1.0);
}
