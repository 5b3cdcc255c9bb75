//! The sidecar over HTTP: what an app sees, on memory.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "other suites stop etcd and count requests")]
#[path = "../../../crates/backend/tests/support/apiserver.rs"]
mod apiserver;
mod client;
mod clusters;
mod connections;
mod dapr;
mod elections;
mod elector;
mod events;
mod fences;
mod gateway;
mod lifecycle;
mod limits;
mod locks;
mod openapi;
mod ratelimits;
mod redlock;
mod rls;
mod scale;
mod semaphores;
#[allow(dead_code, reason = "other suites restart and pause it")]
#[path = "../../../crates/backend/tests/support/redis.rs"]
mod server;
#[allow(dead_code, reason = "other suites add servers")]
#[path = "../../../crates/backend/tests/support/cluster.rs"]
mod servers;
