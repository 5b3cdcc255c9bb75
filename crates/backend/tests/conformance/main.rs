//! One body per behaviour, run against every substrate: what a lock is, wherever it lives.
//!
//! Memory always runs. Redis and Lease run on a real redis-server and a real API server that the
//! suite starts; a missing one is a failure, never a skip.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[macro_use]
mod suite;

#[allow(dead_code, reason = "other suites stop etcd and count requests")]
#[path = "../support/apiserver.rs"]
mod apiserver;
mod cluster;
mod fixture;
mod history;
mod lease;
mod lock;
mod ratelimit;
mod redis;
#[path = "../support/cluster.rs"]
mod redis_cluster;
mod redlock;
mod semaphore;
#[allow(dead_code, reason = "other suites restart and pause it")]
#[path = "../support/redis.rs"]
mod server;
#[path = "../support/servers.rs"]
mod servers;
mod stale;
