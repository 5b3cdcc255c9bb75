//! Holdfast's Kubernetes API: the custom resources, their validation, and the bundle compiler.

pub mod bundle;
