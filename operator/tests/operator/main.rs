//! The operator as a process, on a real kube-apiserver and etcd and real Redis servers.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../../crates/backend/tests/support/apiserver.rs"]
mod apiserver;
mod backends;
mod classes;
mod clusters;
mod crashes;
mod elections;
mod endings;
mod fixture;
mod forced;
mod gate_ends;
mod gates;
mod passwords;
#[path = "../../../crates/backend/tests/support/ports.rs"]
mod ports;
mod process;
mod ratelimits;
#[path = "../../../crates/backend/tests/support/redis.rs"]
mod redis;
mod redlock;
mod schema;
mod semaphores;
#[path = "../../../crates/backend/tests/support/cluster.rs"]
mod servers;
mod uninstall;

use redis as server;
