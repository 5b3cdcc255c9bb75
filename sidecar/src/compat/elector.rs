//! `GET /` as leader-elector answers it: `{"name": POD}`.
//!
//! It has one election and its URL no name in it: here it is the one that the pod stands in. Another
//! one is at `/NAME`.

use std::sync::Arc;

use axum::{Json, Router, extract::State, routing::get};
use holdfast_wire::Code;
use serde_json::{Value, json};

use crate::{error::Failure, routes::fields::Name, service::Sidecar};

/// The routes.
pub fn routes(sidecar: Arc<Sidecar>) -> Router {
    Router::new().route("/", get(of_pod)).route("/{name}", get(named)).with_state(sidecar)
}

async fn of_pod(State(sidecar): State<Arc<Sidecar>>) -> Result<Json<Value>, Failure> {
    let names = sidecar.elections.names();
    match &names[..] {
        [name] => leader(&sidecar, name.as_str()).await,
        [] => {
            let why = "this pod stands in no election: annotate it with holdfast.dev/candidate, or \
                       POST …/campaign; or ask for /NAME";
            Err(Failure::new(Code::NotFound, why))
        }
        many => {
            let many: Vec<&str> = many.iter().map(|name| name.as_str()).collect();
            let why = format!("this pod stands in {}; ask for one of them: /NAME", many.join(", "));
            Err(Failure::new(Code::NotFound, why))
        }
    }
}

async fn named(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
) -> Result<Json<Value>, Failure> {
    leader(&sidecar, &name).await
}

/// Nobody leads: the name is empty, as there.
async fn leader(sidecar: &Sidecar, name: &str) -> Result<Json<Value>, Failure> {
    let state = sidecar.election_state(name).await?;
    let name = state.leader.map(|leader| leader.pod).unwrap_or_default();
    Ok(Json(json!({"name": name})))
}
