//! `/v1/elections/{name}`.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, StreamExt, future::ready};
use holdfast_wire::{CampaignRequest, ElectionState, Problem, ResignRequest, TermState};
use tokio_stream::wrappers::WatchStream;

use super::{
    Route,
    fields::{Fields, Name},
};
use crate::{error::Failure, service::Sidecar};

/// Comments on a silent stream come this often per time to live: longer silence means that the
/// sidecar is gone or frozen.
const BEATS_PER_TTL: u32 = 6;

/// The routes of this kind.
pub fn routes() -> Vec<Route> {
    routes![state, leading, events, campaign, resign]
}

/// Who leads, and how this pod stands.
#[utoipa::path(
    get, path = "/v1/elections/{name}", params(("name" = String, Path)),
    responses(
        (status = 200, body = ElectionState),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn state(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
) -> Result<Json<ElectionState>, Failure> {
    sidecar.election_state(&name).await.map(Json)
}

/// 200 while this pod leads without a doubt, else 409. Asks no store: cheap enough for every request.
#[utoipa::path(
    get, path = "/v1/elections/{name}/leading", params(("name" = String, Path)),
    responses(
        (status = 200, body = TermState),
        (status = 409, description = "`not_leading`", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn leading(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
) -> Result<Json<TermState>, Failure> {
    sidecar.leading(&name).map(Json)
}

/// Makes this pod a candidate, until it resigns with `withdraw` or ends. Asking twice is no error.
#[utoipa::path(
    post, path = "/v1/elections/{name}/campaign",
    params(("name" = String, Path), CampaignRequest), request_body = Option<CampaignRequest>,
    responses(
        (status = 200, description = "how it stands now", body = TermState),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn campaign(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<CampaignRequest>,
) -> Result<Json<TermState>, Failure> {
    sidecar.campaign(&name, &request).await.map(Json)
}

/// Gives the leadership up. Call it when the work of the term has stopped: another leads at once.
#[utoipa::path(
    post, path = "/v1/elections/{name}/resign",
    params(("name" = String, Path), ResignRequest), request_body = Option<ResignRequest>,
    responses(
        (status = 200, description = "how it stands now", body = TermState),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn resign(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
    Fields(request): Fields<ResignRequest>,
) -> Result<Json<TermState>, Failure> {
    sidecar.resign(&name, &request).await.map(Json)
}

/// Streams how this pod stands: `standby`, `leading`, `suspended`, `notCandidate`; the present state
/// first. Silence for more than a sixth of the lease duration means that nobody watches over the
/// term: treat it as `suspended`.
#[utoipa::path(
    get, path = "/v1/elections/{name}/events", params(("name" = String, Path)),
    responses(
        (status = 200, body = TermState, content_type = "text/event-stream"),
        (status = 409, description = "`not_leading`: no candidate", body = Problem,
         content_type = "application/problem+json"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn events(
    State(sidecar): State<Arc<Sidecar>>,
    Name(name): Name,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let (said, ttl) = sidecar.terms(&name)?;
    let stopped = sidecar.stopped.clone();
    let events = WatchStream::new(said)
        .map(move |said| mk_event(&sidecar.term_state(&said)))
        .take_until(async move { stopped.cancelled().await })
        .filter_map(|event| ready(Some(Ok(event))));
    let every = (ttl / BEATS_PER_TTL).max(Duration::from_millis(10));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(every)))
}

fn mk_event(state: &TermState) -> Event {
    // A state has string keys only, so it always has a JSON form.
    let data = serde_json::to_string(state).unwrap_or_default();
    Event::default().event(state.state.as_str()).data(data)
}
