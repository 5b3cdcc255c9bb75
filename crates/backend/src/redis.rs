//! The Redis substrate: locks on a Redis (6.2 or later; a cluster from 7.0) or Valkey, with no modules.
//!
//! - [`keys`] is the key rule, [`scripts`] the transitions in Lua, [`config`] and [`client`] the
//!   one command connection, [`errors`] what an error of the store means.
//! - [`RedisLocks`] serves applications; a tenant's ACL user suffices for it.
//! - [`RedisAdmin`] is the operator's: probe, library, epoch marker, users, purge. [`LocalEpoch`]
//!   stands in for the operator where there is none.
//!
//! - `acked` is the connection of grants that replicas must have: WAIT blocks the one it is on.
//!
//! - [`sentinel`] finds the primary that Sentinels watch.
//!
//! - `cluster` knows the servers of a cluster and sends each request to the one that has its slot.
//! - [`Redlocks`] are locks on a majority of several servers; `votes` is one server's part in them.

mod acked;
pub mod admin;
pub mod client;
mod cluster;
pub mod config;
pub mod epoch;
pub mod errors;
pub mod keys;
mod limited;
mod lock;
mod look;
mod markers;
mod policy;
mod pushes;
mod ratelimit;
mod redlock;
mod reply;
mod request;
pub mod scripts;
mod semaphore;
pub mod sentinel;
pub mod slots;
pub mod topology;
pub mod users;
mod votes;

pub use acked::Ack;
pub use admin::{ClusterView, Probe, RedisAdmin};
pub use config::{CredentialSource, Credentials, RedisConfig};
pub use epoch::{KnownEpoch, KnownRun, LocalEpoch};
pub use lock::RedisLocks;
pub use markers::Marker;
pub use ratelimit::RedisRateLimits;
pub use redlock::Redlocks;
pub use semaphore::RedisSemaphores;
pub use sentinel::Sentinels;
