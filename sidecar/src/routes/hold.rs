//! `/v1/holds/{holdId}`: a hold after it was granted.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, stream};
use holdfast_core::HoldId;
use holdfast_wire::{Code, HoldEvent, HoldEventKind, HoldInfo, Problem};
use tokio::sync::broadcast::error::RecvError;

use super::{Route, fields::Name};
use crate::{
    error::Failure,
    holds::{View, stream::Subscription},
    service::Sidecar,
};

/// Comments on a silent stream come this often per time to live: longer silence means that the
/// sidecar is gone or frozen.
const BEATS_PER_TTL: u32 = 6;

/// The routes of holds, of whatever kind.
pub fn routes() -> Vec<Route> {
    routes![info, events, heartbeat]
}

/// How a hold stands.
#[utoipa::path(
    get, path = "/v1/holds/{holdId}", params(("holdId" = String, Path)),
    responses(
        (status = 200, body = HoldInfo),
        (status = 410, description = "`hold_lost`", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn info(
    State(sidecar): State<Arc<Sidecar>>,
    Name(hold): Name,
) -> Result<Json<HoldInfo>, Failure> {
    let hold = read(&hold)?;
    sidecar.live(sidecar.holds.find(&hold)).map(|view| Json(mk_info(&view)))
}

/// Tells that the app is alive, for a hold with `bind: heartbeat`.
#[utoipa::path(
    post, path = "/v1/holds/{holdId}/heartbeat", params(("holdId" = String, Path)),
    responses(
        (status = 200, body = HoldInfo),
        (status = 410, description = "`hold_lost`", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn heartbeat(
    State(sidecar): State<Arc<Sidecar>>,
    Name(hold): Name,
) -> Result<Json<HoldInfo>, Failure> {
    let hold = read(&hold)?;
    sidecar.live(sidecar.holds.beat(&hold)).map(|view| Json(mk_info(&view)))
}

/// Streams what happens to a hold: `granted`, `suspended`, `lost`, `released`. Ends after the last
/// two. Silence for more than a sixth of the time to live means that nobody watches over the hold:
/// treat it as `suspended`.
#[utoipa::path(
    get, path = "/v1/holds/{holdId}/events", params(("holdId" = String, Path)),
    responses(
        (status = 200, body = HoldEvent, content_type = "text/event-stream"),
        (status = 410, description = "`hold_lost`", body = Problem,
         content_type = "application/problem+json"),
    )
)]
async fn events(
    State(sidecar): State<Arc<Sidecar>>,
    Name(hold): Name,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let hold = read(&hold)?;
    sidecar.live(sidecar.holds.find(&hold))?;
    let subscription = match sidecar.holds.subscribe(&hold) {
        Ok(subscription) => subscription,
        Err(found) => return Err(sidecar.live(found).err().unwrap_or_else(gone)),
    };
    let every = (subscription.ttl / BEATS_PER_TTL).max(Duration::from_millis(10));
    Ok(Sse::new(follow(sidecar, subscription)).keep_alive(KeepAlive::new().interval(every)))
}

fn follow(
    sidecar: Arc<Sidecar>,
    subscription: Subscription,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let first = Some(subscription.first.clone());
    stream::unfold((sidecar, Some(subscription), first), |(sidecar, subscription, first)| async {
        let mut subscription = subscription?;
        let event = match first {
            Some(event) => event,
            None => tokio::select! {
                // What happened before the stop is still told.
                biased;
                event = next(&mut subscription) => event?,
                () = sidecar.stopped.cancelled() => return None,
            },
        };
        let is_last = matches!(event.event, HoldEventKind::Lost | HoldEventKind::Released);
        let rest = (!is_last).then_some(subscription);
        Some((Ok(mk_event(&event)), (sidecar, rest, None)))
    })
}

async fn next(subscription: &mut Subscription) -> Option<HoldEvent> {
    loop {
        match subscription.events.recv().await {
            Ok(event) => return Some(event),
            // A reader this slow has missed warnings only: the last event is always kept.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

fn mk_event(event: &HoldEvent) -> Event {
    // An event has string keys only, so it always has a JSON form.
    let data = serde_json::to_string(event).unwrap_or_default();
    Event::default().event(event.event.as_str()).data(data)
}

fn mk_info(view: &View) -> HoldInfo {
    HoldInfo {
        hold_id: view.hold.to_string(),
        name: view.class.name.to_string(),
        key: view.at.key.to_string(),
        fence: view.fence.to_string(),
        state: view.state,
        ttl_ms: view.ttl.as_millis() as u64,
        hold_for_ms: view.left.as_millis() as u64,
        deadline_boottime_ns: view.deadline.boot_ns().to_string(),
    }
}

fn read(hold: &str) -> Result<HoldId, Failure> {
    HoldId::new(hold).map_err(|why| Failure::new(Code::InvalidField, format!("holdId: {why}")))
}

fn gone() -> Failure {
    Failure::new(Code::HoldLost, "the hold has just ended")
}
