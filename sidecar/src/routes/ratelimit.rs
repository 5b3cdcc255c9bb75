//! `/v1/ratelimits/{name}`.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue},
    response::Response,
};
use holdfast_core::ratelimit::Outcome;
use holdfast_wire::{
    CheckRequest, CheckResponse, Code, PeekQuery, PermitReleaseRequest, PermitReleaseResponse,
    Problem, RefundRequest, RefundResponse, headers,
};
use hyper::body::Bytes;

use super::{
    Route,
    body::{Object, write_number},
    direct::{Answer, fail, mk_answer},
    fields::{Fields, Name, Params},
};
use crate::{
    error::Failure,
    service::{Checked, Sidecar},
};

const RATELIMIT: HeaderName = HeaderName::from_static(headers::RATELIMIT);
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static(headers::RATELIMIT_POLICY);

/// The routes of this kind.
pub fn routes() -> Vec<Route> {
    routes![peek, check, refund, release]
}

/// How the limits of a key stand. Charges nothing.
#[utoipa::path(
    get, path = "/v1/ratelimits/{name}", params(("name" = String, Path), PeekQuery),
    operation_id = "peek_ratelimit",
    responses(
        (status = 200, body = CheckResponse),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn peek(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Params(query): Params<PeekQuery>,
) -> Result<Response, Failure> {
    let checked = sidecar.peek(&name, &query).await?;
    let is_allowed = matches!(checked.decision.outcome, Outcome::Allowed { .. });
    Ok(with_headers(mk_answer(HeaderMap::new(), write_body(&checked, is_allowed)), &checked)
        .map(Body::new))
}

/// Asks whether something may be done now, and charges all limits if so.
#[utoipa::path(
    post, path = "/v1/ratelimits/{name}/check", params(("name" = String, Path), CheckRequest),
    request_body = Option<CheckRequest>, operation_id = "check_ratelimit",
    responses(
        (status = 200, body = CheckResponse),
        (status = 422, description = "`cost_too_large`: it can never fit", body = Problem,
         content_type = "application/problem+json"),
        (status = 429, description = "`quota_exceeded`", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn check(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<CheckRequest>,
) -> Result<Response, Failure> {
    let checked = sidecar.check(&name, &request).await?;
    Ok(answer(HeaderMap::new(), &checked).map(Body::new))
}

/// The answer to a check.
pub(super) fn answer(headers: HeaderMap, checked: &Checked) -> Answer {
    let answer = match checked.decision.outcome {
        Outcome::Allowed { .. } => mk_answer(headers, write_body(checked, true)),
        Outcome::Limited { .. } if checked.class.config.shadow => {
            mk_answer(headers, write_body(checked, true))
        }
        Outcome::Limited { retry_us } => fail(mk_limited(checked, retry_us)),
        Outcome::TooLarge => {
            let most = checked.class.plan.policy.capacity();
            let why = format!(
                "RateLimit \"{}\" never allows more than {most} at once: split it up, or raise \
                 burst (or limit)",
                checked.class.name
            );
            fail(Failure::new(Code::CostTooLarge, why))
        }
    };
    with_headers(answer, checked)
}

/// Gives back what a check charged and was not used.
#[utoipa::path(
    post, path = "/v1/ratelimits/{name}/refund", params(("name" = String, Path), RefundRequest),
    request_body = Option<RefundRequest>, operation_id = "refund_ratelimit",
    responses(
        (status = 200, body = RefundResponse),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn refund(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<RefundRequest>,
) -> Result<Json<RefundResponse>, Failure> {
    sidecar.refund(&name, &request).await.map(|refunded| Json(RefundResponse { refunded }))
}

/// Gives back a permit of a Concurrency limit.
#[utoipa::path(
    post, path = "/v1/ratelimits/{name}/release",
    params(("name" = String, Path), PermitReleaseRequest),
    request_body = Option<PermitReleaseRequest>, operation_id = "release_ratelimit",
    responses(
        (status = 200, body = PermitReleaseResponse),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn release(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<PermitReleaseRequest>,
) -> Result<Json<PermitReleaseResponse>, Failure> {
    let (key, permit) = (request.key.as_deref(), request.permit.as_deref());
    let released = sidecar.release_permit(&name, key, permit).await?;
    Ok(Json(PermitReleaseResponse { released }))
}

/// A [`CheckResponse`], written.
fn write_body(checked: &Checked, allowed: bool) -> Bytes {
    let Checked { class, decision, permit, degraded, waited, .. } = checked;
    let is_passed = matches!(decision.outcome, Outcome::Allowed { .. });
    let mut body = Object::new();
    body.bool("allowed", allowed)
        .number("remaining", decision.verdicts().iter().map(|v| v.remaining).min().unwrap_or(0))
        .number("waitedMs", waited.as_millis() as u64);
    if allowed && !is_passed {
        body.bool("wouldBeLimited", true);
    }
    if *degraded {
        body.bool("degraded", true);
    }
    if let Some(bound) = class.plan.over_admission {
        body.object("overAdmission", |over| {
            over.number("perSidecar", bound.per_sidecar).number("atMost", bound.at_most);
        });
    }
    if class.has_permits && is_passed && *permit > 0 {
        body.long("permit", *permit);
    }
    let limits = class.config.limits.iter().zip(decision.verdicts());
    body.list("limits", limits, |state, (limit, verdict)| {
        state.text("name", &limit.name);
        state.number("remaining", verdict.remaining);
        state.number("resetMs", verdict.reset_us.div_ceil(1_000));
    });
    body.end()
}

fn mk_limited(checked: &Checked, retry_us: u64) -> Failure {
    let limits = checked.class.config.limits.iter().zip(checked.decision.verdicts());
    let violated = limits.filter(|(_, verdict)| verdict.wait_us > 0);
    let violated: Vec<String> = violated.map(|(limit, _)| limit.name.clone()).collect();
    let mut why =
        format!("RateLimit \"{}\": no more of {}", checked.class.name, violated.join(", "));
    if checked.crowded {
        why.push_str("; it did not wait, because as many checks of this pod wait as may");
    }
    let mut problem = Problem::new(Code::QuotaExceeded, why);
    problem.violated_policies = violated;
    Failure::from(problem.retry_after_ms(retry_us.div_ceil(1_000)))
}

/// Structured fields; seconds are rounded up, because earlier would be too early.
fn with_headers(mut answer: Answer, checked: &Checked) -> Answer {
    if checked.degraded && checked.decision.count == 0 {
        return answer;
    }
    let limits = checked.class.config.limits.iter().zip(checked.decision.verdicts());
    let mut text = Vec::with_capacity(64);
    for (limit, verdict) in limits {
        text.extend_from_slice(if text.is_empty() { b"\"" } else { b", \"" });
        text.extend_from_slice(limit.name.as_bytes());
        text.extend_from_slice(b"\";r=");
        write_number(&mut text, verdict.remaining);
        text.extend_from_slice(b";t=");
        write_number(&mut text, verdict.reset_us.div_ceil(1_000_000));
    }
    let (limits, policy) = (HeaderValue::try_from(text).ok(), checked.class.header.clone());
    for (name, value) in [(RATELIMIT, limits), (RATELIMIT_POLICY, policy)] {
        if let Some(value) = value {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}
