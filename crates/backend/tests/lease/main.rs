//! The Lease substrate on a real kube-apiserver and etcd, with the chart's admission policy in force.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../support/apiserver.rs"]
mod apiserver;
mod contention;
mod feed;
mod fences;
mod fixture;
mod policy;
mod relay;
mod semaphores;
mod settle;
mod time;
