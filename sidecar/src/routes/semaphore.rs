//! `/v1/semaphores/{name}`.

use std::sync::Arc;

use axum::{Json, extract::State};
use holdfast_core::Kind;
use holdfast_wire::{
    ForcePermitsRequest, ForcePermitsResponse, LockQuery, PermitsRequest, PermitsResponse, Problem,
    ReleaseRequest, ReleaseResponse, RenewRequest, RenewResponse, SemaphoreState,
};

use super::{
    Route,
    fields::{Fields, Name, Params},
    lock::{mk_released, mk_renewed},
};
use crate::{
    error::Failure,
    holds::View,
    service::{Sidecar, mk_permit_holder},
};

/// The routes of this kind.
pub fn routes() -> Vec<Route> {
    routes![permits, acquire_permits, renew_permits, release_permits, force_release_permits]
}

/// The state of a key: permits in use, holders, queue. Stale the moment it is read.
#[utoipa::path(
    get, path = "/v1/semaphores/{name}", params(("name" = String, Path), LockQuery),
    responses(
        (status = 200, body = SemaphoreState),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn permits(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Params(params): Params<LockQuery>,
) -> Result<Json<SemaphoreState>, Failure> {
    sidecar.permits(&name, params.key.as_deref()).await.map(Json)
}

/// Acquires permits, waiting at most `waitSeconds`: all that are asked for, or none.
#[utoipa::path(
    post, path = "/v1/semaphores/{name}/acquire",
    params(("name" = String, Path), PermitsRequest), request_body = Option<PermitsRequest>,
    responses(
        (status = 200, body = PermitsResponse),
        (status = 409, description = "`locked`: not enough are free", body = Problem,
         content_type = "application/problem+json"),
        (status = 410, description = "`hold_lost`: the hold of this requestId has ended",
         body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`cost_too_large`: more than one hold can ever have",
         body = Problem, content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn acquire_permits(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<PermitsRequest>,
) -> Result<Json<PermitsResponse>, Failure> {
    sidecar.acquire_permits(&name, request).await.map(|view| Json(mk_granted(&view)))
}

fn mk_granted(view: &View) -> PermitsResponse {
    PermitsResponse {
        hold_id: view.hold.to_string(),
        key: view.at.key.to_string(),
        permits: view.permits,
        fence: view.fence.to_string(),
        ttl_ms: view.ttl.as_millis() as u64,
        hold_for_ms: view.left.as_millis() as u64,
        deadline_boottime_ns: view.deadline.boot_ns().to_string(),
        guarantee: view.class.guarantee.clone(),
    }
}

/// Renews a hold; needed with `renew: manual` only.
#[utoipa::path(
    post, path = "/v1/semaphores/{name}/renew", params(("name" = String, Path), RenewRequest),
    request_body = Option<RenewRequest>,
    responses(
        (status = 200, body = RenewResponse),
        (status = 410, description = "`hold_lost`", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn renew_permits(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<RenewRequest>,
) -> Result<Json<RenewResponse>, Failure> {
    let renewed = sidecar.renew(Kind::Semaphore, &name, request.hold_id.as_deref()).await;
    renewed.map(|view| Json(mk_renewed(&view)))
}

/// Releases a hold with all its permits. Releasing twice is no error.
#[utoipa::path(
    post, path = "/v1/semaphores/{name}/release", params(("name" = String, Path), ReleaseRequest),
    request_body = Option<ReleaseRequest>,
    responses(
        (status = 200, body = ReleaseResponse),
        (status = 410, description = "`hold_lost`: it had ended before", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn release_permits(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<ReleaseRequest>,
) -> Result<Json<ReleaseResponse>, Failure> {
    sidecar.release(Kind::Semaphore, &name, request.hold_id.as_deref()).await?;
    Ok(Json(mk_released(request)))
}

/// Takes the hold with a fence, or every hold of a key. Their holders are told `lost`.
#[utoipa::path(
    post, path = "/v1/semaphores/{name}/force-release",
    params(("name" = String, Path), ForcePermitsRequest),
    request_body = Option<ForcePermitsRequest>,
    responses(
        (status = 200, body = ForcePermitsResponse),
        (status = 403, description = "`forbidden`: not permitted by spec.access", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn force_release_permits(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<ForcePermitsRequest>,
) -> Result<Json<ForcePermitsResponse>, Failure> {
    let (key, fence) = (request.key.as_deref(), request.fence.as_deref());
    let (key, taken) = sidecar.force_permits(&name, key, fence).await?;
    let taken_from = taken.into_iter().map(mk_permit_holder).collect();
    Ok(Json(ForcePermitsResponse { key: key.to_string(), taken_from }))
}
