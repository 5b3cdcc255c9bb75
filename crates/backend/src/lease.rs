//! The Lease substrate: locks and semaphores kept in `coordination.k8s.io` Leases, that is in the API
//! server's etcd.
//!
//! One Lease per key, of a semaphore one per permit ([`slot`]), created *unheld* by the operator;
//! nothing here creates or deletes one. Every transition is one merge-patch that carries `uid` and
//! `resourceVersion`, so it applies to exactly the state it was decided on. The fence of a grant is
//! that resourceVersion.
//!
//! **Order of waiters.** First come, first served among the waiters of one process. Between processes
//! there is none: when the lock becomes free, each sends the write of its own first waiter, and
//! whichever lands first is granted.
//!
//! **Who does what.** `lock` and `semaphore` are the trait; `line` answers without the store and
//! queues; `turn` serves the queue; `grant` and `hold` are the conditional writes; `local` is what is
//! remembered.
//!
//! **Cost.** A renewal is one write. A waiter costs nothing while nothing changes: all waiters of a
//! process share one watch per Lease of the key, or, where that is allowed, one of all Leases of the
//! namespace ([`feed`]). A process in which nobody waits makes no request.
//!
//! **Time.** No time in a record is ever compared with a clock. See [`holdfast_core::lock::record`].

mod client;
mod feed;
mod grant;
mod hold;
mod line;
mod list;
mod local;
mod lock;
pub mod names;
mod record;
mod semaphore;
mod slot;
mod turn;

pub use client::LeaseClient;
pub use lock::LeaseLocks;
pub use semaphore::LeaseSemaphores;
