//! Messages and services of the gRPC APIs of other projects that the sidecar also speaks.
//!
//! Generated from the subset in `proto/`; a crate of its own, so that what it needs to be built holds
//! nobody else up. It has no code but that.

#![allow(missing_docs, clippy::all, unused_qualifications, reason = "generated")]

pub use prost;
pub use prost_types;
pub use tonic;

/// Envoy's rate limit service.
pub mod rls {
    pub use super::envoy::{
        config::core::v3::HeaderValue,
        extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor},
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse, rate_limit_response, rate_limit_service_client,
            rate_limit_service_server,
        },
    };
}

/// The lock calls of Dapr.
pub mod dapr {
    tonic::include_proto!("dapr.proto.runtime.v1");
}

/// The modules are nested as the packages are: the generated code counts on that.
mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    pub mod extensions {
        pub mod common {
            pub mod ratelimit {
                pub mod v3 {
                    tonic::include_proto!("envoy.extensions.common.ratelimit.v3");
                }
            }
        }
    }
    pub mod service {
        pub mod ratelimit {
            pub mod v3 {
                tonic::include_proto!("envoy.service.ratelimit.v3");
            }
        }
    }
}
