//! Bodies of `/v1/ratelimits/{name}`. Every field of a request may be a query parameter instead.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// `POST /v1/ratelimits/{name}/check`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CheckRequest {
    /// The key below the class; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How much; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
    /// Seconds to wait for a slot, 0 to 60; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<f64>,
}

/// `GET /v1/ratelimits/{name}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PeekQuery {
    /// The key below the class; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How much the check would cost; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
}

/// `POST /v1/ratelimits/{name}/refund`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RefundRequest {
    /// The key below the class; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How much; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
}

/// `POST /v1/ratelimits/{name}/release`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PermitReleaseRequest {
    /// The key below the class; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The `permit` that the check answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<String>,
}

/// A decision. A check that is not allowed is answered by 429 with a problem instead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckResponse {
    /// Whether it may go on; always true with `shadow`.
    pub allowed: bool,
    /// What is left of the tightest limit.
    pub remaining: u64,
    /// How long the sidecar waited for the slot, milliseconds.
    pub waited_ms: u64,
    /// What the limits really said, when the class only shadows and they said no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub would_be_limited: bool,
    /// Whether this pod decided alone, because the store did not answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
    /// Names what is to be released, where a limit is a Concurrency one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<String>,
    /// Each limit.
    pub limits: Vec<LimitState>,
}

/// How one limit stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitState {
    /// Its name.
    pub name: String,
    /// What is left.
    pub remaining: u64,
    /// When all of it is back, or the window ends, milliseconds.
    pub reset_ms: u64,
}

/// What a refund answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefundResponse {
    /// How much was given back at the most.
    pub refunded: u64,
}

/// What a release answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PermitReleaseResponse {
    /// Whether it was still held.
    pub released: bool,
}
