//! The operator: it compiles classes into Leases, Redis users and bundles, and injects sidecars.
//!
//! It is never in the path of a request of an app. `main.rs` only parses and calls in here.
//!
//! One direction: custom resources → [`watch`] (caches and triggers) → [`controllers`] (dereference,
//! validate, plan: see [`pipeline`]) → [`apply`] (the only writer of children) → [`status`] (the only
//! writer of status). [`gate`] holds pods on behalf of their annotation. [`leader`] decides which replica does so; [`admission`] runs on each.

pub mod admission;
pub mod apply;
pub mod args;
pub mod cleanup;
pub mod context;
pub mod controllers;
pub mod error;
pub mod floors;
pub mod gate;
pub mod leader;
pub mod metrics;
pub mod pipeline;
pub mod run;
pub mod status;
pub mod stores;
pub mod watch;
