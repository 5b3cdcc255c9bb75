//! The Lease substrate on a real kube-apiserver and etcd, with the chart's admission policy in force.

#[path = "../support/apiserver.rs"]
mod apiserver;
mod contention;
mod fences;
mod fixture;
mod policy;
mod relay;
mod settle;
mod time;
