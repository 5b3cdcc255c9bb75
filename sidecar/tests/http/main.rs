//! The sidecar over HTTP: what an app sees, on memory.

mod client;
mod events;
mod lifecycle;
mod limits;
mod locks;
mod openapi;
#[allow(dead_code, reason = "other suites restart and pause it")]
#[path = "../../../crates/backend/tests/support/redis.rs"]
mod server;
