//! The substrates behind one trait per primitive, and the one way to wait for a turn.
//!
//! `memory`, `redis` and `lease` implement `holdfast_core::lock::LockBackend`; [`waiter`] turns
//! single attempts into "acquire, waiting at most so long"; [`hub`] brings a store's pushes to
//! whoever waits for them. Nothing here knows HTTP or custom resources, and nothing else in the
//! project speaks Redis.

pub mod hub;
#[cfg(feature = "lease")]
pub mod lease;
pub mod limiter;
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;
pub mod waiter;
