//! What is on the wire, byte for byte: a change of a body is a change of a file here.
//!
//! `HOLDFAST_UPDATE_GOLDEN=1 cargo test -p holdfast-wire` rewrites the files.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fmt::Debug, fs, path::Path};

use holdfast_wire::{
    AcquireRequest, AcquireResponse, Bind, Catalogue, ClassInfo, Code, ForceReleaseRequest,
    ForceReleaseResponse, HoldEvent, HoldEventKind, HoldInfo, HoldState, HolderResponse, LockState,
    Problem, ReleaseRequest, ReleaseResponse, Renew, RenewRequest, RenewResponse, Status,
    StatusRow,
};
use serde::{Serialize, de::DeserializeOwned};

const HOLD: &str = "0f6bd1d5f1c84f4e8f7e6f0c2a9b1d3c";
const FENCE: &str = "4611686018427387904";

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(file: &str, value: &T) {
    // Tests run in the folder of their package.
    let path = Path::new("tests/golden").join(file);
    let text = serde_json::to_string_pretty(value).unwrap() + "\n";
    if std::env::var_os("HOLDFAST_UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(text, golden, "{file}: HOLDFAST_UPDATE_GOLDEN=1 accepts the new form");
    assert_eq!(serde_json::from_str::<T>(&golden).unwrap(), *value, "{file}");
}

fn mk_holder() -> HolderResponse {
    HolderResponse { pod: "web-0".into(), fence: FENCE.into(), ttl_ms: 9_500, held_for_ms: 5_500 }
}

fn mk_state() -> LockState {
    LockState {
        key: "order/123".into(),
        held: true,
        holder: Some(mk_holder()),
        waiters: 2,
        queue: vec!["web-1".into(), "web-2".into()],
        last_fence: Some(FENCE.into()),
    }
}

#[test]
fn bodies_of_a_lock_keep_their_form() {
    let acquire = AcquireRequest {
        key: Some("order/123".into()),
        ttl_seconds: Some(15.0),
        wait_seconds: Some(30.0),
        request_id: Some("checkout-77".into()),
        renew: Some(Renew::Auto),
        bind: Some(Bind::Heartbeat),
        heartbeat_seconds: Some(2.5),
        max_hold_seconds: Some(600.0),
    };
    check("lock/acquire.request.json", &acquire);
    check("lock/acquire.empty.request.json", &AcquireRequest::default());
    check(
        "lock/acquire.response.json",
        &AcquireResponse {
            hold_id: HOLD.into(),
            key: "order/123".into(),
            fence: FENCE.into(),
            ttl_ms: 15_000,
            hold_for_ms: 13_498,
            deadline_boottime_ns: "86413498000000".into(),
            guarantee: "BestEffort".into(),
        },
    );
    check("lock/renew.request.json", &RenewRequest { hold_id: Some(HOLD.into()) });
    check(
        "lock/renew.response.json",
        &RenewResponse {
            hold_id: HOLD.into(),
            fence: FENCE.into(),
            ttl_ms: 15_000,
            hold_for_ms: 13_499,
            deadline_boottime_ns: "86418498000000".into(),
        },
    );
    check("lock/release.request.json", &ReleaseRequest { hold_id: Some(HOLD.into()) });
    check("lock/release.response.json", &ReleaseResponse { hold_id: HOLD.into(), released: true });
    check(
        "lock/force_release.request.json",
        &ForceReleaseRequest { key: Some("order/123".into()) },
    );
    check(
        "lock/force_release.response.json",
        &ForceReleaseResponse { key: "order/123".into(), taken_from: Some(mk_holder()) },
    );
    check("lock/state.json", &mk_state());
}

#[test]
fn bodies_of_a_hold_keep_their_form() {
    check(
        "hold/info.json",
        &HoldInfo {
            hold_id: HOLD.into(),
            name: "nightly".into(),
            key: "default".into(),
            fence: FENCE.into(),
            state: HoldState::Suspended,
            ttl_ms: 15_000,
            hold_for_ms: 1_200,
            deadline_boottime_ns: "86413498000000".into(),
        },
    );
    for kind in [
        HoldEventKind::Granted,
        HoldEventKind::Suspended,
        HoldEventKind::Lost,
        HoldEventKind::Released,
    ] {
        let event = HoldEvent {
            event: kind,
            hold_id: HOLD.into(),
            fence: FENCE.into(),
            hold_for_ms: 1_200,
        };
        check(&format!("hold/event.{}.json", kind.as_str()), &event);
    }
}

#[test]
fn the_catalogue_and_the_status_keep_their_form() {
    check(
        "catalogue.json",
        &Catalogue {
            namespace: "shop".into(),
            holder: "web-0".into(),
            classes: vec![ClassInfo {
                kind: "Lock".into(),
                name: "nightly".into(),
                backend: "lease".into(),
                guarantee: "Consensus".into(),
                path: "/v1/locks/nightly".into(),
            }],
        },
    );
    check(
        "status.json",
        &Status {
            locks: vec![StatusRow {
                kind: "Lock".into(),
                name: "orders".into(),
                state: mk_state(),
            }],
        },
    );
}

#[test]
fn every_problem_code_keeps_its_word_and_its_status() {
    let words: Vec<String> =
        Code::ALL.iter().map(|code| format!("{} {}", code.status(), code.as_str())).collect();
    check("problem/codes.json", &words);
    for code in Code::ALL {
        let json = serde_json::to_string(code).unwrap();
        assert_eq!(json, format!("\"{}\"", code.as_str()), "serde and as_str agree");
    }
    let locked =
        Problem::new(Code::Locked, "\"nightly\" is held by web-0").retry_after_ms(1_500).waiters(3);
    check("problem/locked.json", &locked);
}

#[test]
fn unknown_fields_of_a_request_are_refused() {
    let error = serde_json::from_str::<AcquireRequest>(r#"{"waitSecond":1}"#).unwrap_err();
    assert!(error.to_string().contains("waitSeconds"), "names what it knows: {error}");
    assert!(serde_json::from_str::<ReleaseRequest>(r#"{"hold":"x"}"#).is_err());
}
