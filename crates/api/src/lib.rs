//! Holdfast's Kubernetes API: the custom resources, their validation, and the bundle compiler.
//!
//! One direction: YAML → [`load`] (or the API server) → [`v1alpha1`] types → [`validate`] →
//! [`compile`] → [`bundle`]. No clients here; both the operator and `holdfast dev` go this way.

pub mod bundle;
pub mod compat;
pub mod compile;
pub mod conditions;
pub mod crd;
pub mod hold;
pub mod load;
pub mod names;
pub mod v1alpha1;
pub mod validate;
