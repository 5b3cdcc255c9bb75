//! The webhook's HTTPS server: reads a review, asks [`inject`](super::inject) or [`hold`](super::hold),
//! writes the answer.
//!
//! - TLS 1.2 or newer, with certificates that are replaced under way (see [`super::certs`]).
//! - Bodies, headers and time are bounded; a request that breaks a bound gets an error and changes
//!   nothing.
//! - The answer depends on the request alone: there is nothing to look up, so nothing to wait for.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State, rejection::JsonRejection},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use axum_server::{Handle, tls_rustls::RustlsConfig};
use k8s_openapi::api::core::v1::Pod;
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation},
};
use tokio_util::sync::CancellationToken;

use super::{
    hold,
    inject::{self, Decision, InjectSettings, SkipReason},
    metrics::Metrics,
};

/// The path for pods that carry the label.
pub const POD_PATH: &str = "/inject/pod";
/// The path for pods without it, in namespaces that carry it.
pub const NAMESPACE_PATH: &str = "/inject/namespace";
/// The path for pods that are to be held until they have a lock or permits.
pub const HOLD_PATH: &str = "/hold/pod";
/// A pod has at most 1.5 MiB in etcd; a review may hold two.
const MAX_BODY_BYTES: usize = 3 << 20;
/// The API server waits for 3 s; after that nobody reads the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// For how long requests on their way may finish after the stop.
const DRAIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Context {
    settings: Arc<InjectSettings>,
    metrics: Metrics,
}

/// Serves until `stop`, then lets the requests on their way finish.
///
/// # Errors
/// When accepting connections fails for good.
pub async fn serve(
    listener: TcpListener,
    tls: RustlsConfig,
    settings: Arc<InjectSettings>,
    metrics: Metrics,
    stop: CancellationToken,
) -> io::Result<()> {
    let handle = Handle::new();
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    let stopper = handle.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => stopper.graceful_shutdown(Some(DRAIN)),
            () = ended.cancelled() => {}
        }
    });
    let mut server = axum_server::from_tcp_rustls(listener, tls)?
        .map(|acceptor| acceptor.handshake_timeout(HEADER_TIMEOUT))
        .handle(handle);
    server.http_builder().http1().header_read_timeout(HEADER_TIMEOUT).max_buf_size(64 << 10);
    server.http_builder().http2().max_concurrent_streams(64).max_header_list_size(64 << 10);
    server.serve(router(settings, metrics).into_make_service()).await
}

/// The routes, for the server and for tests without a socket.
pub fn router(settings: Arc<InjectSettings>, metrics: Metrics) -> Router {
    Router::new()
        .route(POD_PATH, post(|context, body| review(context, body, Asked::Pod)))
        .route(NAMESPACE_PATH, post(|context, body| review(context, body, Asked::Namespace)))
        .route(HOLD_PATH, post(|context, body| review(context, body, Asked::Hold)))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(in_time))
        .with_state(Context { settings, metrics })
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            (StatusCode::REQUEST_TIMEOUT, "the request did not arrive in 3 s").into_response()
        }
    }
}

/// What the API server asks, by its path.
#[derive(Clone, Copy)]
enum Asked {
    /// For a sidecar, by the pod's label.
    Pod,
    /// For a sidecar, by the namespace's label.
    Namespace,
    /// For a hold, by the pod's annotation.
    Hold,
}

async fn review(
    State(context): State<Context>,
    body: Result<Json<AdmissionReview<Pod>>, JsonRejection>,
    asked: Asked,
) -> Response {
    let timer = context.metrics.review_seconds.start_timer();
    let request: Result<AdmissionRequest<Pod>, String> = match body {
        Ok(Json(review)) => review.try_into().map_err(|_| "the review has no request".to_owned()),
        Err(rejection) => {
            context.metrics.reviews.with_label_values(&["invalid"]).inc();
            return (rejection.status(), rejection.body_text()).into_response();
        }
    };
    let (review, outcome) = match request {
        Ok(request) => answer(&request, asked, &context.settings),
        Err(reason) => (AdmissionResponse::invalid(reason).into_review(), "invalid"),
    };
    context.metrics.reviews.with_label_values(&[outcome]).inc();
    timer.observe_duration();
    Json(review).into_response()
}

/// The answer to one review, and a word for the metrics.
fn answer(
    request: &AdmissionRequest<Pod>,
    asked: Asked,
    settings: &InjectSettings,
) -> (AdmissionReview<DynamicObject>, &'static str) {
    let response = AdmissionResponse::from(request);
    let (Operation::Create, Some(pod)) = (&request.operation, &request.object) else {
        return (response.into_review(), "not_asked");
    };
    let namespace = request.namespace.as_deref().unwrap_or("default");
    let decision = match asked {
        Asked::Pod => inject::decide(pod, namespace, false, settings),
        Asked::Namespace => inject::decide(pod, namespace, true, settings),
        Asked::Hold => return held(request, hold::decide(pod, namespace, settings)),
    };
    let (response, outcome) = match decision {
        Decision::NotAsked => (Ok(response), "not_asked"),
        Decision::Deny(reason) => (Ok(response.deny(reason)), "denied"),
        Decision::Skip(reason) => (skip(response, pod, reason), "skipped"),
        Decision::Inject { patch, warnings } => {
            let response = with_warnings(response, warnings);
            match patch.0.is_empty() {
                true => (Ok(response), "unchanged"),
                false => (response.with_patch(patch), "injected"),
            }
        }
    };
    let name = request.name.as_str();
    tracing::debug!(namespace, name, outcome, "reviewed a pod");
    match response {
        Ok(response) => (response.into_review(), outcome),
        Err(error) => (AdmissionResponse::from(request).deny(error).into_review(), "invalid"),
    }
}

/// The answer about a pod that asks to be held.
fn held(
    request: &AdmissionRequest<Pod>,
    decision: hold::Decision,
) -> (AdmissionReview<DynamicObject>, &'static str) {
    let response = AdmissionResponse::from(request);
    let (response, outcome) = match decision {
        hold::Decision::NotAsked => (Ok(response), "not_asked"),
        hold::Decision::Deny(reason) => (Ok(response.deny(reason)), "denied"),
        hold::Decision::Skip(warning) => (Ok(with_warnings(response, vec![warning])), "skipped"),
        hold::Decision::Gate(patch) if patch.0.is_empty() => (Ok(response), "unchanged"),
        hold::Decision::Gate(patch) => (response.with_patch(patch), "gated"),
    };
    match response {
        Ok(response) => (response.into_review(), outcome),
        Err(error) => (AdmissionResponse::from(request).deny(error).into_review(), "invalid"),
    }
}

fn skip(
    response: AdmissionResponse,
    pod: &Pod,
    reason: SkipReason,
) -> Result<AdmissionResponse, kube::core::admission::SerializePatchError> {
    let response = with_warnings(response, vec![format!("no holdfast sidecar: {reason}")]);
    match reason {
        // The kubelet compares a mirror pod with its file.
        SkipReason::StaticPod => Ok(response),
        _ => response.with_patch(inject::mark_skipped(pod, reason)),
    }
}

fn with_warnings(mut response: AdmissionResponse, warnings: Vec<String>) -> AdmissionResponse {
    response.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
    response
}

#[cfg(test)]
mod tests;
