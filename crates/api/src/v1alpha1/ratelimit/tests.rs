use holdfast_core::Substrate;

use super::*;

fn mk_class(spec: serde_json::Value) -> RateLimit {
    let mut class = RateLimit::new("api", serde_json::from_value(spec).unwrap());
    class.metadata.namespace = Some("shop".into());
    class
}

fn check(spec: serde_json::Value) -> Result<RateLimitConfig, Vec<String>> {
    let checked =
        mk_class(spec).validate(&Resolved { substrate: Substrate::Redis, fence_floor: 0 });
    checked.map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn with(more: serde_json::Value) -> serde_json::Value {
    let mut spec = serde_json::json!({
        "backend": "main", "limits": [{"name": "l", "limit": 100, "windowSeconds": 10}],
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

#[test]
fn leases_and_shares_have_defaults_and_a_bound() {
    let exact = check(with(serde_json::json!({}))).unwrap();
    assert_eq!((exact.accuracy, exact.over_admission()), (ratelimit::Accuracy::Exact, None));
    let leased = with(serde_json::json!({"accuracy": "Leased", "onBackendFailure": "Local"}));
    let leased = check(leased).unwrap();
    let share = ratelimit::OnBackendFailure::Local { share_percent: 20 };
    assert_eq!(leased.on_backend_failure, share);
    // A second at ten a second, and one that is cut in two by the beginning.
    let bound = leased.over_admission().unwrap();
    assert_eq!((bound.per_sidecar, bound.at_most, bound.of(3)), (11, 11, 11));
    assert_eq!(bound.to_string(), "11 per sidecar, at most 11");
    let terms = serde_json::json!({"accuracy": "Leased", "leased": {"batch": 20, "maxStalenessSeconds": 10}});
    let bound = check(with(terms)).unwrap().over_admission().unwrap();
    assert_eq!((bound.of(1), bound.of(3), bound.of(100)), (20, 60, 101));
}

#[test]
fn what_does_not_go_together_is_refused_with_what_to_do() {
    let limits = serde_json::json!([{"name": "l", "algorithm": "Concurrency", "limit": 5, "windowSeconds": 10}]);
    for (more, field) in [
        (serde_json::json!({"localSharePercent": 10}), "spec.localSharePercent"),
        (
            serde_json::json!({"onBackendFailure": "Local", "localSharePercent": 101}),
            "spec.localSharePercent",
        ),
        (serde_json::json!({"leased": {"batch": 5}}), "spec.leased"),
        (serde_json::json!({"accuracy": "Leased", "leased": {"batch": 0}}), "spec.leased.batch"),
        (
            serde_json::json!({"accuracy": "Leased", "leased": {"maxStalenessSeconds": 11}}),
            "spec.leased.maxStalenessSeconds",
        ),
        (serde_json::json!({"accuracy": "Leased", "limits": limits}), "spec.accuracy"),
    ] {
        let errors = check(with(more)).unwrap_err();
        assert!(errors.len() == 1 && errors[0].contains(field), "{field}: {errors:?}");
    }
}

#[test]
fn the_name_of_a_limit_has_63_characters_here_and_in_the_schema() {
    for (name, good) in
        [("a".repeat(63), true), ("a".repeat(64), false), ("a-".into(), false), ("A".into(), false)]
    {
        let limits =
            serde_json::json!({"limits": [{"name": name, "limit": 1, "windowSeconds": 1}]});
        assert_eq!(check(with(limits)).is_ok(), good, "{name}");
    }
}
