//! The routes of the localhost API, and their description: both from one declaration.
//!
//! Routes parse and answer; they have no rules.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use holdfast_core::Kind;
use holdfast_wire::{Catalogue, Code, Status, headers};
use utoipa::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use crate::{error::Failure, service::Sidecar};

/// A route, and what describes it. That is made when somebody asks: a thousand small texts, which would
/// leave a mebibyte of holes in the memory of a sidecar at rest.
pub struct Route {
    path: String,
    methods: MethodRouter<Arc<Sidecar>>,
    described: fn() -> UtoipaMethodRouter<Arc<Sidecar>>,
}

/// The [`Route`]s of handlers, each declared by its `utoipa::path`.
macro_rules! routes {
    ($($handler:ident),+ $(,)?) => {
        vec![$({
            use utoipa_axum::PathItemExt as _;
            let (path, methods) = utoipa_axum::paste! {{
                type Declared = [<__path_ $handler>];
                (<Declared as utoipa::Path>::path(), <Declared as utoipa::Path>::methods())
            }};
            let methods = methods.iter().fold(axum::routing::MethodRouter::new(), |router, method| {
                router.on(method.to_method_filter(), $handler)
            });
            $crate::routes::Route { path, methods, described: || utoipa_axum::routes!($handler) }
        }),+]
    };
}

mod body;
pub mod direct;
pub mod election;
pub mod fence;
pub mod fields;
pub mod hold;
pub mod lock;
pub mod ratelimit;
pub mod semaphore;

#[derive(OpenApi)]
#[openapi(info(
    title = "Holdfast sidecar",
    description = "Coordination for the app of this pod, on localhost. Durations are numbers with \
                   the unit in the name, fencing tokens are strings, errors are RFC 9457 problem \
                   documents with a stable `code`. Every field of a POST may be a query parameter \
                   instead of part of the JSON body."
))]
struct Api;

/// All routes; with `page`, the status page at `/`.
pub fn router(sidecar: Arc<Sidecar>, page: bool) -> Router {
    let served = |router: Router<_>, route: Route| router.route(&route.path, route.methods);
    let router = all()
        .into_iter()
        .fold(Router::new(), served)
        .with_state(sidecar)
        .route("/openapi.json", get(|| async { described_as(openapi()) }))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    if page { router.route("/", get(status_page)) } else { router }
}

/// The OpenAPI document, as JSON. Made when somebody asks: hardly anybody does.
pub fn openapi() -> String {
    let described = |router: OpenApiRouter<_>, route: Route| router.routes((route.described)());
    let router = OpenApiRouter::with_openapi(Api::openapi());
    let document = all().into_iter().fold(router, described).into_openapi();
    // The document has string keys only, so it always has a JSON form.
    document.to_json().unwrap_or_default()
}

fn all() -> Vec<Route> {
    let of_kinds = Kind::ALL.iter().flat_map(|kind| match kind {
        Kind::Lock => lock::routes(),
        Kind::LeaderElection => election::routes(),
        Kind::RateLimit => ratelimit::routes(),
        Kind::Semaphore => semaphore::routes(),
    });
    let others = [routes![catalogue, status], hold::routes(), fence::routes()];
    others.into_iter().flatten().chain(of_kinds).collect()
}

fn described_as(json: String) -> Response {
    ([(CONTENT_TYPE, headers::JSON)], json).into_response()
}

/// What this pod may use.
#[utoipa::path(get, path = "/v1", responses((status = 200, body = Catalogue)))]
async fn catalogue(State(sidecar): State<Arc<Sidecar>>) -> axum::Json<Catalogue> {
    axum::Json(sidecar.catalogue())
}

/// Every key that is held or waited for, where the backend can list them.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
async fn status(State(sidecar): State<Arc<Sidecar>>) -> axum::Json<Status> {
    axum::Json(sidecar.status().await)
}

async fn status_page() -> axum::response::Html<&'static str> {
    axum::response::Html(include_str!("routes/page.html"))
}

async fn not_found() -> Failure {
    let why = "there is no such route; GET /v1 lists the classes, GET /openapi.json the routes";
    Failure::new(Code::NotFound, why)
}

async fn method_not_allowed() -> Failure {
    let why = "this route has no such method; acquire, renew, release, heartbeat, campaign and resign are POSTs";
    Failure::new(Code::MethodNotAllowed, why)
}
