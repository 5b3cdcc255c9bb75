//! The operator: it compiles classes into Leases, Redis users and bundles, and injects sidecars.
//!
//! It is never in the path of a request of an app. `main.rs` only parses and calls in here.

pub mod admission;
pub mod cleanup;
pub mod leader;
