//! What the service says: states for the wire, and its own failures.

use std::time::Duration;

use holdfast_core::{
    Address, Holder, Key,
    lock::{HolderView, LockView},
};
use holdfast_wire::{Code, HolderResponse, LockState, PermitHolder, Problem, SemaphoreState};

use crate::{
    error::Failure,
    holds::{View, ended::End},
};

pub(super) fn mk_state(key: &Key, view: LockView) -> LockState {
    LockState {
        key: key.to_string(),
        held: view.holder.is_some(),
        holder: view.holder.map(mk_holder),
        waiters: view.waiters,
        queue: view.queue.iter().map(Holder::to_string).collect(),
        last_fence: view.last_fence.map(|fence| fence.to_string()),
    }
}

/// A holder for the wire.
pub fn mk_holder(view: HolderView) -> HolderResponse {
    HolderResponse {
        pod: view.holder.to_string(),
        fence: view.fence.to_string(),
        ttl_ms: view.ttl.as_millis() as u64,
        held_for_ms: view.held_for.as_millis() as u64,
    }
}

pub(super) fn mk_semaphore_state(key: &Key, permits: u32, view: LockView) -> SemaphoreState {
    SemaphoreState {
        key: key.to_string(),
        permits,
        used: view.used,
        holds: view.holds,
        holders: view.holder.into_iter().chain(view.others).map(mk_permit_holder).collect(),
        waiters: view.waiters,
        queue: view.queue.iter().map(Holder::to_string).collect(),
        last_fence: view.last_fence.map(|fence| fence.to_string()),
    }
}

/// A holder of permits for the wire.
pub fn mk_permit_holder(view: HolderView) -> PermitHolder {
    PermitHolder {
        pod: view.holder.to_string(),
        permits: view.permits,
        fence: view.fence.to_string(),
        ttl_ms: view.ttl.as_millis() as u64,
        held_for_ms: view.held_for.as_millis() as u64,
    }
}

pub(super) fn mk_ended(end: End) -> Failure {
    Failure::new(Code::HoldLost, end.sentence())
}

/// A live hold, unless its holder has said that it is done: another may have it already.
pub(super) fn usable(view: View) -> Result<View, Failure> {
    if view.is_releasing { Err(mk_releasing()) } else { Ok(view) }
}

pub(super) fn mk_releasing() -> Failure {
    let why = "the hold is being released: its holder said that it is done with it";
    Failure::new(Code::HoldLost, why)
}

pub(super) fn mk_unknown() -> Failure {
    let why =
        "no such hold here: it was never granted, belongs to another class, or ended long ago";
    Failure::new(Code::HoldLost, why)
}

pub(super) fn mk_closing() -> Failure {
    let why = "the sidecar is shutting down and grants no more holds";
    Failure::from(Problem::new(Code::NotReady, why).retry_after_ms(1_000))
}

pub(super) fn mk_too_many(why: String) -> Failure {
    Failure::from(Problem::new(Code::TooMany, why).retry_after_ms(1_000))
}

pub(super) fn mk_locked(at: &Address, retry_after: Duration, waiters: u32) -> Failure {
    let problem = Failure::new(Code::Locked, format!("{at} is held by another")).0;
    problem.retry_after_ms(retry_after.as_millis() as u64).waiters(waiters).into()
}

pub(super) fn mk_too_heavy(at: &Address, most: u32) -> Failure {
    let why = format!("permits: one hold of {at} can have {most} at the most; ask for fewer");
    Failure::new(Code::CostTooLarge, why)
}

pub(super) fn mk_queue_full(at: &Address, retry_ms: u64, waiters: u32) -> Failure {
    let why = format!("{waiters} wait for {at}, as many as may");
    Failure::new(Code::QueueFull, why).0.retry_after_ms(retry_ms).waiters(waiters).into()
}
