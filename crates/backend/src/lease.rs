//! The Lease substrate: locks kept in `coordination.k8s.io` Leases, that is in the API server's etcd.
//!
//! One Lease per key, created *unheld* by the operator; nothing here creates or deletes one. Every
//! transition is one merge-patch that carries `uid` and `resourceVersion`, so it applies to exactly
//! the state it was decided on. The fence of a grant is that resourceVersion.
//!
//! **Order of waiters.** First come, first served among the waiters of one process. Between processes
//! there is none: when the lock becomes free, each sends the write of its own first waiter, and
//! whichever lands first is granted.
//!
//! **Cost.** A renewal is one write. A waiter costs nothing while nothing changes: all waiters of a
//! process share one watch per Lease. A process in which nobody waits makes no request.
//!
//! **Time.** No time in a record is ever compared with a clock. See [`holdfast_core::lock::record`].

mod client;
mod grant;
mod local;
mod lock;
pub mod names;
mod record;
mod turn;

pub use client::LeaseClient;
pub use lock::LeaseLocks;
