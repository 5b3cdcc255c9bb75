//! What only a Redis can do wrong. Each test has a redis-server of its own.
#![cfg(feature = "redis")]

mod differential;
mod epochs;
mod failures;
mod fixture;
mod handover;
#[path = "../support/redis.rs"]
mod server;
mod tenants;
