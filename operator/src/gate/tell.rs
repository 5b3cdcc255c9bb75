//! What is said of a pod's hold, in its annotations and in Events. A pod is written only when what is
//! said of it changes, and only as the version that was seen: of two leaders the later one wins.

use std::sync::Arc;

use holdfast_api::{
    hold::PodHold,
    names::{ANNOTATION_HOLD_FENCE, ANNOTATION_HOLD_STATE, GATE_HOLD},
};
use holdfast_core::{Fence, Kind};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    runtime::{events::EventType, reflector::ObjectRef},
};
use serde_json::json;

use super::seen::Seen;
use crate::{apply, context::Context, error::Error};

/// Places that are told exactly. Beyond them a grant would change every waiting pod.
const EXACT_PLACES: u32 = 10;
/// The most that is said of a pod, in characters.
const LONGEST: usize = 400;

/// Events about pods.
pub const HOLD_WAITING: &str = "HoldWaiting";
/// The pod cannot be let go until somebody changes something.
pub const HOLD_BLOCKED: &str = "HoldBlocked";
/// The pod has its hold and may be scheduled. Also about the class.
pub const HOLD_GRANTED: &str = "HoldGranted";
/// The pod goes on without its hold.
pub const HOLD_LOST: &str = "HoldLost";
/// The pod has ended, and its hold with it.
pub const HOLD_RELEASED: &str = "HoldReleased";

/// How a pod's hold stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits, at a place counted from 1.
    Waiting(u32),
    /// It cannot even wait, for a reason that somebody has to see to.
    Blocked(String),
    /// It has its hold.
    Granted,
    /// It had its hold, and runs on without it.
    Lost(&'static str),
    /// It has ended.
    Released,
}

impl State {
    /// The annotation's value.
    pub fn text(&self) -> String {
        match self {
            State::Waiting(place @ ..=EXACT_PLACES) => format!("Waiting: at place {place}"),
            State::Waiting(_) => format!("Waiting: more than {EXACT_PLACES} are before it"),
            State::Blocked(why) => format!("Blocked: {why}").chars().take(LONGEST).collect(),
            State::Granted => "Granted".into(),
            State::Lost(why) => format!("Lost: {why}"),
            State::Released => "Released".into(),
        }
    }

    /// Whether a text says that nothing is to be done about the hold any more.
    pub fn is_over(text: &str) -> bool {
        text == "Released" || text.starts_with("Lost: ")
    }
}

/// Notes on a pod how its hold stands, and with which fence if that has changed.
///
/// # Errors
/// [`Error::Conflict`] when it has changed since it was seen.
pub async fn note(
    ctx: &Context,
    seen: &Seen,
    state: &State,
    fence: Option<Fence>,
) -> Result<(), Error> {
    let mut notes = json!({ ANNOTATION_HOLD_STATE: state.text() });
    if let Some(fence) = fence {
        notes[ANNOTATION_HOLD_FENCE] = fence.to_string().into();
    }
    apply::annotate(ctx, &as_seen(seen), notes).await
}

/// Takes our gate off a pod and notes the fence, in one write.
///
/// # Errors
/// [`Error::Conflict`] when it has changed since it was seen.
pub async fn let_go(ctx: &Context, seen: &Seen, fence: Fence) -> Result<(), Error> {
    let notes = json!({
        ANNOTATION_HOLD_STATE: State::Granted.text(), ANNOTATION_HOLD_FENCE: fence.to_string(),
    });
    let others: Vec<_> = seen.gates.iter().filter(|gate| *gate != GATE_HOLD).collect();
    apply::ungate(ctx, &as_seen(seen), &others, notes).await
}

/// The object that a write is conditional on.
fn as_seen(seen: &Seen) -> Pod {
    let mut pod = seen.reference();
    pod.metadata.resource_version = Some(seen.version.clone());
    pod
}

/// Writes an Event about a pod.
pub async fn about_pod(ctx: &Context, seen: &Seen, reason: &str, note: String) {
    let kind = match reason {
        HOLD_BLOCKED | HOLD_LOST => EventType::Warning,
        _ => EventType::Normal,
    };
    ctx.tell(&seen.reference(), kind, reason, note, None).await;
}

/// Writes an Event about the class that a pod holds, if it is there.
pub async fn about_class(ctx: &Context, seen: &Seen, hold: &PodHold, reason: &str, note: String) {
    let about = Some((seen.name.clone(), hold.key.as_ref().map(ToString::to_string)));
    let about = about.map(|(pod, key)| (pod, key.unwrap_or_else(|| "default".into())));
    let (name, namespace) = (hold.class.as_str(), seen.namespace.as_str());
    match hold.kind {
        Kind::Lock => {
            let lock = ctx.caches.locks.get(&ObjectRef::new(name).within(namespace));
            if let Some(lock) = lock {
                ctx.tell(&*lock, EventType::Normal, reason, note, about).await;
            }
        }
        Kind::Semaphore => {
            let there = ctx.caches.semaphores.get(&ObjectRef::new(name).within(namespace));
            if let Some(semaphore) = there {
                ctx.tell(&*semaphore, EventType::Normal, reason, note, about).await;
            }
        }
        // No pod holds one.
        Kind::LeaderElection | Kind::RateLimit => {}
    }
}

/// What the class itself says of why it cannot be used, if it is there at all.
pub fn unready(ctx: &Context, namespace: &str, hold: &PodHold) -> Option<String> {
    let conditions = match hold.kind {
        Kind::Lock => {
            let lock = ctx.caches.locks.get(&ObjectRef::new(hold.class.as_str()).within(namespace));
            lock?.status.clone().unwrap_or_default().conditions
        }
        Kind::Semaphore => {
            let name = ObjectRef::new(hold.class.as_str()).within(namespace);
            ctx.caches.semaphores.get(&name)?.status.clone().unwrap_or_default().conditions
        }
        Kind::LeaderElection | Kind::RateLimit => return None,
    };
    let ready = conditions.into_iter().find(|c| c.type_ == holdfast_api::conditions::READY);
    Some(ready.map_or_else(|| "it is being set up".into(), |ready| ready.message))
}

/// The classes of a kind in a namespace, by name.
pub fn names_of(ctx: &Context, namespace: &str, kind: Kind) -> Vec<String> {
    let inside = |of: Option<String>| of.as_deref() == Some(namespace);
    match kind {
        Kind::Lock => {
            let all = ctx.caches.locks.state_filter(|lock| inside(lock.namespace()));
            all.iter().map(|lock: &Arc<_>| lock.name_any()).collect()
        }
        Kind::Semaphore => {
            let all = ctx.caches.semaphores.state_filter(|one| inside(one.namespace()));
            all.iter().map(|one: &Arc<_>| one.name_any()).collect()
        }
        Kind::LeaderElection | Kind::RateLimit => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_places_are_told_exactly_and_only_an_end_is_over() {
        assert_eq!(State::Waiting(3).text(), "Waiting: at place 3");
        assert_eq!(State::Waiting(11).text(), State::Waiting(500).text());
        let open = [State::Waiting(1), State::Blocked("Released".into()), State::Granted];
        assert!(!open.iter().any(|state| State::is_over(&state.text())));
        let over = [State::Lost("it expired"), State::Released];
        assert!(over.iter().all(|state| State::is_over(&state.text())));
        assert!(State::Blocked("x".repeat(9_999)).text().len() <= LONGEST);
    }
}
