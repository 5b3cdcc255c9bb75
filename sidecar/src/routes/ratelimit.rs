//! `/v1/ratelimits/{name}`.

use std::{fmt::Write, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::HeaderValue,
    response::{IntoResponse, Response},
};
use holdfast_core::ratelimit::Outcome;
use holdfast_wire::{
    CheckRequest, CheckResponse, Code, LimitState, PeekQuery, PermitReleaseRequest,
    PermitReleaseResponse, Problem, RefundRequest, RefundResponse, headers,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::fields::{Fields, Name, Params};
use crate::{
    error::Failure,
    service::{Checked, Sidecar},
};

/// The routes of this kind.
pub fn routes() -> OpenApiRouter<Arc<Sidecar>> {
    OpenApiRouter::new()
        .routes(routes!(peek))
        .routes(routes!(check))
        .routes(routes!(refund))
        .routes(routes!(release))
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
    Ok(with_headers(Json(mk_body(&checked, is_allowed)).into_response(), &checked))
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
    let answer = match checked.decision.outcome {
        Outcome::Allowed { .. } => Json(mk_body(&checked, true)).into_response(),
        Outcome::Limited { .. } if checked.class.config.shadow => {
            Json(mk_body(&checked, true)).into_response()
        }
        Outcome::Limited { retry_us } => mk_limited(&checked, retry_us).into_response(),
        Outcome::TooLarge => {
            let most = checked.class.policy.capacity();
            let why = format!(
                "RateLimit \"{}\" never allows more than {most} at once: split it up, or raise \
                 burst (or limit)",
                checked.class.name
            );
            Failure::new(Code::CostTooLarge, why).into_response()
        }
    };
    Ok(with_headers(answer, &checked))
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

fn mk_body(checked: &Checked, allowed: bool) -> CheckResponse {
    let Checked { class, decision, permit, degraded } = checked;
    let limits = class.config.limits.iter().zip(decision.verdicts());
    let (is_passed, waited_us) = match decision.outcome {
        Outcome::Allowed { wait_us } => (true, wait_us),
        Outcome::Limited { .. } | Outcome::TooLarge => (false, 0),
    };
    CheckResponse {
        allowed,
        remaining: decision.verdicts().iter().map(|limit| limit.remaining).min().unwrap_or(0),
        waited_ms: waited_us.div_ceil(1_000),
        would_be_limited: allowed && !is_passed,
        degraded: *degraded,
        permit: (class.has_permits && is_passed && *permit > 0).then(|| permit.to_string()),
        limits: limits
            .map(|(limit, verdict)| LimitState {
                name: limit.name.clone(),
                remaining: verdict.remaining,
                reset_ms: verdict.reset_us.div_ceil(1_000),
            })
            .collect(),
    }
}

fn mk_limited(checked: &Checked, retry_us: u64) -> Failure {
    let limits = checked.class.config.limits.iter().zip(checked.decision.verdicts());
    let violated = limits.filter(|(_, verdict)| verdict.wait_us > 0);
    let violated: Vec<String> = violated.map(|(limit, _)| limit.name.clone()).collect();
    let why = format!("RateLimit \"{}\": no more of {}", checked.class.name, violated.join(", "));
    let mut problem = Problem::new(Code::QuotaExceeded, why);
    problem.violated_policies = violated;
    Failure::from(problem.retry_after_ms(retry_us.div_ceil(1_000)))
}

/// Structured fields; seconds are rounded up, because earlier would be too early.
fn with_headers(mut answer: Response, checked: &Checked) -> Response {
    if checked.degraded {
        return answer;
    }
    let limits = checked.class.config.limits.iter().zip(checked.decision.verdicts());
    let mut text = String::new();
    for (limit, verdict) in limits {
        let comma = if text.is_empty() { "" } else { ", " };
        let (left, t) = (verdict.remaining, verdict.reset_us.div_ceil(1_000_000));
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}\"{}\";r={left};t={t}", limit.name);
    }
    let pairs =
        [(headers::RATELIMIT, text.as_str()), (headers::RATELIMIT_POLICY, &checked.class.header)];
    for (name, value) in pairs {
        if let Ok(value) = HeaderValue::from_str(value) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}
