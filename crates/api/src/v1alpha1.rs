//! The served version.

pub mod backend;
pub mod lock;
pub mod ratelimit;

pub use backend::{Backend, BackendSpec, BackendStatus};
pub use lock::{Lock, LockSpec, LockStatus};
pub use ratelimit::{RateLimit, RateLimitSpec, RateLimitStatus};
