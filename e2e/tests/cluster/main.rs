//! Holdfast on a real Kubernetes, as its users see it.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test that cannot go on has failed"
)]

mod admission;
mod compat;
mod election;
mod failure;
mod hold;
mod lock;
mod ratelimit;
mod readme;
mod rules;
mod security;
mod semaphore;
