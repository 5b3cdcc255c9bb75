//! `GET /` as leader-elector answers it: `{"name": POD}`.
//!
//! It has one election and its URL no name in it: here it is the one that the pod stands in. Another
//! one is at `/NAME`. Whoever polls this polls often, so a store is asked at most once a second.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::get};
use holdfast_wire::Code;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{error::Failure, routes::fields::Name, service::Sidecar};

/// For so long an answer is given again.
const FRESH: Duration = Duration::from_secs(1);

struct Elector {
    sidecar: Arc<Sidecar>,
    /// What was answered last; only elections that there are come in.
    seen: Mutex<HashMap<String, (Instant, String)>>,
}

/// The routes.
pub fn routes(sidecar: Arc<Sidecar>) -> Router {
    let elector = Arc::new(Elector { sidecar, seen: Mutex::default() });
    Router::new().route("/", get(of_pod)).route("/{name}", get(named)).with_state(elector)
}

async fn of_pod(State(elector): State<Arc<Elector>>) -> Result<Json<Value>, Failure> {
    let names = elector.sidecar.elections.names();
    match &names[..] {
        [name] => elector.leader(name.as_str()).await,
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
    State(elector): State<Arc<Elector>>,
    Name(name): Name,
) -> Result<Json<Value>, Failure> {
    elector.leader(&name).await
}

impl Elector {
    /// Nobody leads: the name is empty, as there.
    async fn leader(&self, election: &str) -> Result<Json<Value>, Failure> {
        match self.sidecar.leading(election) {
            // This pod knows of itself, and is not cached: it must not say so too long.
            Ok(_) => return Ok(mk_answer(self.sidecar.identity.holder.as_str())),
            Err(failure) if failure.0.code == Code::NotLeading => {}
            Err(failure) => return Err(failure),
        }
        if let Some(name) = self.fresh(election) {
            return Ok(mk_answer(&name));
        }
        let state = self.sidecar.election_state(election).await?;
        let name = state.leader.map(|leader| leader.pod).unwrap_or_default();
        if name == self.sidecar.identity.holder.as_str() {
            // By the store only: its term is in doubt, or it has just resigned.
            return Ok(mk_answer(""));
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(election.to_owned(), (Instant::now(), name.clone()));
        Ok(mk_answer(&name))
    }

    fn fresh(&self, election: &str) -> Option<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(election).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, name)| name.clone())
    }
}

fn mk_answer(name: &str) -> Json<Value> {
    Json(json!({"name": name}))
}
