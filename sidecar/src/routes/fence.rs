//! `/v1/fences/{name}`.

use std::sync::Arc;

use axum::{Json, extract::State};
use holdfast_wire::{FenceCheckRequest, FenceCheckResponse, Problem};

use super::{
    Route,
    fields::{Fields, Name},
};
use crate::{error::Failure, service::Sidecar};

/// The routes of the fence guard.
pub fn routes() -> Vec<Route> {
    routes![check]
}

/// Whether a fence is still the newest: for a resource that cannot compare fences by itself. Ask on the
/// first read of a critical section and before every write.
#[utoipa::path(
    post, path = "/v1/fences/{name}/check", params(("name" = String, Path), FenceCheckRequest),
    request_body = Option<FenceCheckRequest>, operation_id = "check_fence",
    responses(
        (status = 200, body = FenceCheckResponse),
        (status = 412, description = "`fenced`: a newer one was granted", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn check(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<FenceCheckRequest>,
) -> Result<Json<FenceCheckResponse>, Failure> {
    sidecar.check_fence(&name, &request).await.map(Json)
}
