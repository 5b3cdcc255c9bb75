//! The served version.

pub mod backend;
pub mod lock;

pub use backend::{Backend, BackendSpec, BackendStatus};
pub use lock::{Lock, LockSpec, LockStatus};
