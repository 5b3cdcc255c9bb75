//! Holdfast on a real Kubernetes, as its users see it.

mod admission;
mod lock;
mod operator;
