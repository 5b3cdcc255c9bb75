//! `/v1/locks/{name}`.

use std::sync::Arc;

use axum::{Json, extract::State};
use holdfast_core::{HoldId, Kind};
use holdfast_wire::{
    AcquireRequest, AcquireResponse, ForceReleaseRequest, ForceReleaseResponse, LockQuery,
    LockState, Problem, ReleaseRequest, ReleaseResponse, RenewRequest, RenewResponse,
};
use hyper::body::Bytes;

use super::{
    Route,
    body::Object,
    fields::{Fields, Name, Params},
};
use crate::{
    error::Failure,
    holds::View,
    service::{Sidecar, mk_holder},
};

/// The routes of this kind.
pub fn routes() -> Vec<Route> {
    routes![query, acquire, renew, release, force_release]
}

/// The state of a key: holder, fence, queue. Stale the moment it is read.
#[utoipa::path(
    get, path = "/v1/locks/{name}", params(("name" = String, Path), LockQuery),
    responses(
        (status = 200, body = LockState),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn query(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Params(params): Params<LockQuery>,
) -> Result<Json<LockState>, Failure> {
    sidecar.query(&name, params.key.as_deref()).await.map(Json)
}

/// Acquires the lock, waiting at most `waitSeconds`.
#[utoipa::path(
    post, path = "/v1/locks/{name}/acquire", params(("name" = String, Path), AcquireRequest),
    request_body = Option<AcquireRequest>,
    responses(
        (status = 200, body = AcquireResponse),
        (status = 409, description = "`locked`: another holds it", body = Problem,
         content_type = "application/problem+json"),
        (status = 410, description = "`hold_lost`: the hold of this requestId has ended",
         body = Problem, content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn acquire(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<AcquireRequest>,
) -> Result<Json<AcquireResponse>, Failure> {
    sidecar.acquire(&name, &request).await.map(|view| Json(mk_granted(&view)))
}

/// What a grant says.
pub(super) fn mk_granted(view: &View) -> AcquireResponse {
    AcquireResponse {
        hold_id: view.hold.to_string(),
        key: view.at.key.to_string(),
        fence: view.fence.to_string(),
        ttl_ms: view.ttl.as_millis() as u64,
        hold_for_ms: view.left.as_millis() as u64,
        deadline_boottime_ns: view.deadline.boot_ns().to_string(),
        guarantee: view.class.guarantee.clone(),
    }
}

/// [`mk_granted`], written.
pub(super) fn write_granted(view: &View) -> Bytes {
    let mut body = Object::new();
    body.word("holdId", view.hold.as_str())
        .text("key", view.at.key.as_str())
        .long("fence", view.fence.get())
        .number("ttlMs", view.ttl.as_millis() as u64)
        .number("holdForMs", view.left.as_millis() as u64)
        .long("deadlineBoottimeNs", view.deadline.boot_ns())
        .word("guarantee", &view.class.guarantee);
    body.end()
}

/// Renews a hold; needed with `renew: manual` only.
#[utoipa::path(
    post, path = "/v1/locks/{name}/renew", params(("name" = String, Path), RenewRequest),
    request_body = Option<RenewRequest>,
    responses(
        (status = 200, body = RenewResponse),
        (status = 410, description = "`hold_lost`", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn renew(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<RenewRequest>,
) -> Result<Json<RenewResponse>, Failure> {
    let renewed = sidecar.renew(Kind::Lock, &name, request.hold_id.as_deref()).await;
    renewed.map(|view| Json(mk_renewed(&view)))
}

/// What a renewal says.
pub(super) fn mk_renewed(view: &View) -> RenewResponse {
    RenewResponse {
        hold_id: view.hold.to_string(),
        fence: view.fence.to_string(),
        ttl_ms: view.ttl.as_millis() as u64,
        hold_for_ms: view.left.as_millis() as u64,
        deadline_boottime_ns: view.deadline.boot_ns().to_string(),
    }
}

/// Releases a hold. Releasing twice is no error.
#[utoipa::path(
    post, path = "/v1/locks/{name}/release", params(("name" = String, Path), ReleaseRequest),
    request_body = Option<ReleaseRequest>,
    responses(
        (status = 200, body = ReleaseResponse),
        (status = 410, description = "`hold_lost`: it had ended before", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn release(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<ReleaseRequest>,
) -> Result<Json<ReleaseResponse>, Failure> {
    sidecar.release(Kind::Lock, &name, request.hold_id.as_deref()).await?;
    Ok(Json(mk_released(request)))
}

/// What a release says.
pub(super) fn mk_released(request: ReleaseRequest) -> ReleaseResponse {
    ReleaseResponse { hold_id: request.hold_id.unwrap_or_default(), released: true }
}

/// [`mk_released`], written.
pub(super) fn write_released(hold: &HoldId) -> Bytes {
    let mut body = Object::new();
    body.word("holdId", hold.as_str()).bool("released", true);
    body.end()
}

/// Takes the lock from whoever has it. The next fence is higher, the holder is told `lost`.
#[utoipa::path(
    post, path = "/v1/locks/{name}/force-release",
    params(("name" = String, Path), ForceReleaseRequest),
    request_body = Option<ForceReleaseRequest>,
    responses(
        (status = 200, body = ForceReleaseResponse),
        (status = 403, description = "`forbidden`: not permitted by spec.access", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn force_release(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<ForceReleaseRequest>,
) -> Result<Json<ForceReleaseResponse>, Failure> {
    let (key, taken) = sidecar.force_release(&name, request.key.as_deref()).await?;
    Ok(Json(ForceReleaseResponse { key: key.to_string(), taken_from: taken.map(mk_holder) }))
}
