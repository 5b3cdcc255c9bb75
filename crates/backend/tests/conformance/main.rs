//! One body per behaviour, run against every substrate: what a lock is, wherever it lives.
//!
//! Memory always runs. Redis and Lease run on a real redis-server and a real API server that the
//! suite starts; a missing one is a failure, never a skip.

mod fixture;
mod history;
mod lock;
mod stale;
