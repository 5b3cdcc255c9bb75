//! Bodies of `/v1/fences/{name}`. Every field of a request may be a query parameter instead.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Whose fences a resource is guarded by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum FenceOf {
    /// Those of a Lock.
    Lock,
    /// Those of a LeaderElection: its terms.
    Election,
}

/// `POST /v1/fences/{name}/check`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FenceCheckRequest {
    /// The fencing token that came with the request to the resource, a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<String>,
    /// The key that it was granted for; the class's one key when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The kind of the class, where a Lock and a LeaderElection have the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<FenceOf>,
}

/// The fence is not stale: nothing newer had been granted when the store was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FenceCheckResponse {
    /// The key.
    pub key: String,
    /// The fence that was checked.
    pub fence: String,
    /// The newest one that was granted, or the least that may be.
    pub newest: String,
}
