//! What every binary shares: flags, logs, metrics, the admin server, shutdown.
//!
//! Knows no primitive. Admin routes: `/livez` (the loop turns), `/readyz` (200, or 503 with what is
//! missing, a line each), `/metrics` (Prometheus text).

pub mod admin;
pub mod args;
pub mod log;
pub mod readiness;
pub mod shutdown;

pub use readiness::Readiness;
