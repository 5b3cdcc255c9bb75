//! The command as people use it: real processes, real files, a real Redis.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test that cannot go on has failed"
)]

mod dev;
mod elections;
mod lint;
mod peers;
#[path = "../../../backend/tests/support/ports.rs"]
mod ports;
mod recipes;
mod run;
#[allow(dead_code, reason = "other suites restart it")]
#[path = "../../../backend/tests/support/redis.rs"]
mod server;
mod support;
mod tour;
