//! The HTTP side of Dapr's lock API, and what its SDKs ask before they start.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use super::{Dapr, FENCE, Refusal, Unlocked};
use crate::routes::fields::{Name, whole};

/// The routes, beside the native ones.
pub fn routes(dapr: Arc<Dapr>) -> Router {
    Router::new()
        .route("/v1.0-alpha1/lock/{store}", post(lock))
        .route("/v1.0-alpha1/unlock/{store}", post(unlock))
        .route("/v1.0/healthz", get(health))
        .route("/v1.0/healthz/outbound", get(health))
        .route("/v1.0/metadata", get(metadata))
        .with_state(dapr)
}

/// Unknown fields are passed over, as Dapr does.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Body {
    resource_id: String,
    lock_owner: String,
    expiry_in_seconds: i64,
}

async fn lock(
    State(dapr): State<Arc<Dapr>>,
    Name(store): Name,
    request: Request,
) -> Result<Response, Refusal> {
    let body: Body = read(request).await?;
    let (resource, owner) = (&body.resource_id, &body.lock_owner);
    let Some(view) = dapr.try_lock(&store, resource, owner, body.expiry_in_seconds).await? else {
        return Ok(Json(json!({"success": false})).into_response());
    };
    let mut answer = Json(json!({"success": true})).into_response();
    if let Ok(fence) = HeaderValue::from_str(&view.fence.to_string()) {
        answer.headers_mut().insert(FENCE, fence);
    }
    Ok(answer)
}

async fn unlock(
    State(dapr): State<Arc<Dapr>>,
    Name(store): Name,
    request: Request,
) -> Result<Response, Refusal> {
    let body: Body = read(request).await?;
    let unlocked: Unlocked = dapr.unlock(&store, &body.resource_id, &body.lock_owner).await?;
    Ok(Json(json!({"status": unlocked as u8})).into_response())
}

/// 204 once there are classes to lock.
async fn health(State(dapr): State<Arc<Dapr>>) -> Response {
    match dapr.is_ready() {
        true => StatusCode::NO_CONTENT.into_response(),
        false => not_ready(),
    }
}

/// What the JavaScript SDK waits for.
async fn metadata(State(dapr): State<Arc<Dapr>>) -> Response {
    if !dapr.is_ready() {
        return not_ready();
    }
    let stores = dapr.stores();
    let component = |name: &String| json!({"name": name, "type": "lock.holdfast", "version": "v1"});
    Json(json!({
        "id": dapr.sidecar.identity.holder.as_str(),
        "runtimeVersion": concat!("holdfast-", env!("CARGO_PKG_VERSION")),
        "components": stores.iter().map(component).collect::<Vec<_>>(),
    }))
    .into_response()
}

fn not_ready() -> Response {
    let why = "the sidecar has no classes yet; it waits for its namespace's bundle";
    mk_error(StatusCode::INTERNAL_SERVER_ERROR, "ERR_HEALTH_NOT_READY", why)
}

async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let body = whole(request.into_body()).await;
    let body = body.map_err(|failure| Refusal::Malformed(failure.0.detail))?;
    serde_json::from_slice(&body)
        .map_err(|error| Refusal::Malformed(format!("the body is not as expected: {error}")))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, why) = match self {
            Refusal::Malformed(why) => (StatusCode::BAD_REQUEST, "ERR_MALFORMED_REQUEST", why),
            Refusal::NoStore(why) => (StatusCode::BAD_REQUEST, "ERR_LOCK_STORE_NOT_FOUND", why),
            Refusal::TryLock(failure) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "ERR_TRY_LOCK", failure.0.detail)
            }
            Refusal::Unlock(failure) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "ERR_UNLOCK", failure.0.detail)
            }
        };
        mk_error(status, code, &why)
    }
}

fn mk_error(status: StatusCode, code: &str, why: &str) -> Response {
    (status, Json(json!({"errorCode": code, "message": why}))).into_response()
}
