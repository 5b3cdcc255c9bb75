//! What only a Redis can do wrong. Each test has a redis-server of its own.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod ack;
mod cluster;
mod coalesce;
mod differential;
mod epochs;
mod failures;
mod fixture;
mod handover;
mod limiters;
mod model;
mod passing;
mod ratelimits;
#[path = "../support/cluster.rs"]
mod redis_cluster;
mod redlock;
mod runs;
mod semaphores;
mod sentinel;
#[path = "../support/redis.rs"]
mod server;
#[path = "../support/servers.rs"]
mod servers;
mod settling;
mod tenants;
mod tls;
