//! The sidecar: the classes of a namespace, served to one pod on localhost.
//!
//! One direction: request → [`guard`] → [`routes`] (parse) → [`service`] (authorise, decide) →
//! backend → answer. [`snapshot`] holds what the bundle says, read without locks; [`holds`] keeps
//! what this pod holds alive and says when it ends. `holdfast dev` is this library with a bundle
//! compiled from files: see [`run`].

pub mod args;
pub mod authz;
pub mod config;
pub mod connect;
pub mod elections;
pub mod error;
pub mod guard;
pub mod holds;
pub mod leash;
pub mod liveness;
pub mod metrics;
pub mod routes;
pub mod run;
pub mod serve;
pub mod service;
pub mod snapshot;

pub use run::{Local, Serving};
pub use serve::{Listen, Listener};
pub use service::{Identity, Sidecar};
