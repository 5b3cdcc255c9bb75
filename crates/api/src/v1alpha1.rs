//! The served version.

pub mod backend;
pub mod election;
pub mod lock;
pub mod ratelimit;
pub mod semaphore;

pub use backend::{Backend, BackendSpec, BackendStatus};
pub use election::{LeaderElection, LeaderElectionSpec, LeaderElectionStatus};
pub use lock::{Lock, LockSpec, LockStatus};
pub use ratelimit::{RateLimit, RateLimitSpec, RateLimitStatus};
pub use semaphore::{Semaphore, SemaphoreSpec, SemaphoreStatus};
