//! The rules of coordination, with no I/O: what a lock, a fence, a deadline and a queue *are*.
//!
//! # The model in one page
//! A **class** (a custom resource) is addressed by namespace and name; a dynamic **key** hangs below
//! it ([`Address`]). A **hold** is a time-bounded grant named by its [`HoldId`]; it belongs to a
//! [`SessionId`], one incarnation of one container. Every grant carries a **fencing token**
//! ([`Fence`]) that never goes back on its key. A **substrate** stores the state; each transition on
//! it is one atomic step of the state machine in [`lock::state`], which the memory substrate runs as
//! it is, Redis runs as Lua, and Lease runs as a conditional write.
//!
//! Rules about time take the time as an argument, so that every one of them is tested without
//! waiting. What a store's clock says is `now_ms`; what this machine's clocks say is a
//! [`clock::Stamp`]; the two are never compared.
//!
//! This crate knows no Kubernetes, Redis or HTTP. Callers do: `backend` stores, `sidecar` serves.

pub mod clock;
pub mod election;
pub mod error;
pub mod fence;
pub mod id;
pub mod kind;
pub mod lock;
pub mod queue;
pub mod ratelimit;
pub mod semaphore;
pub mod substrate;

pub use clock::{Clock, Deadline, Stamp, SystemClock};
pub use error::BackendError;
pub use fence::Fence;
pub use id::{Address, ClassName, HoldId, Holder, InvalidId, Key, RequestId, SessionId};
pub use kind::Kind;
pub use substrate::{Guarantee, Substrate, supports};
