//! The memory substrate: state in this process, gone with it. What every other substrate is held
//! against, and what `holdfast dev` runs on.

mod keys;
mod lock;
mod ratelimit;
mod semaphore;

pub use lock::MemoryLocks;
pub use ratelimit::MemoryRateLimits;
pub use semaphore::MemorySemaphores;
