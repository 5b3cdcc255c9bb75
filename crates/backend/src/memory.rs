//! The memory substrate: state in this process, gone with it. What every other substrate is held
//! against, and what `holdfast dev` runs on.

mod lock;
mod ratelimit;

pub use lock::MemoryLocks;
pub use ratelimit::MemoryRateLimits;
