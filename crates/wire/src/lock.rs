//! Bodies of `/v1/locks/{name}`. Every field of a request may be a query parameter instead.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// `POST /v1/locks/{name}/acquire`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AcquireRequest {
    /// The key below the class; the class's one key when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Seconds the hold lasts without a renewal; the class's when absent, never more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<f64>,
    /// Seconds to wait for the lock, 0 to 60; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<f64>,
    /// Makes a retry get the same grant: 1 to 128 printable characters, chosen by the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Who renews: `auto` (the sidecar; the default) or `manual` (the caller).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew: Option<Renew>,
    /// What automatic renewal is bound to, so that a dead app loses its holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<Bind>,
    /// With `bind: heartbeat`: renewals stop when no heartbeat came for so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_seconds: Option<f64>,
    /// Seconds the hold may last at the most; the class's when absent, never more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hold_seconds: Option<f64>,
}

/// Who renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Renew {
    /// The sidecar, as long as the app lives.
    Auto,
    /// The caller, with `…/renew`.
    Manual,
}

/// What automatic renewal is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bind {
    /// The app's containers: a restart ends the hold. The default in a pod.
    Container,
    /// An open event stream of the hold.
    Stream,
    /// Heartbeats of the app.
    Heartbeat,
    /// Nothing but the sidecar itself. The default outside a pod.
    Process,
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcquireResponse {
    /// Names the hold in `renew`, `release` and `events`. Whoever knows it may release.
    pub hold_id: String,
    /// The key.
    pub key: String,
    /// The fencing token, a decimal number: send it with every read and write of the guarded
    /// resource.
    pub fence: String,
    /// What the store keeps the hold for without a renewal, milliseconds.
    pub ttl_ms: u64,
    /// How long the caller may act on it without a renewal, milliseconds from now.
    pub hold_for_ms: u64,
    /// When that is over on `CLOCK_BOOTTIME`, nanoseconds, a decimal number: containers of a pod
    /// share this clock, so an app can check by itself.
    pub deadline_boottime_ns: String,
    /// What the grant promises; see docs/guarantees.md.
    pub guarantee: String,
}

/// `POST /v1/locks/{name}/renew`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RenewRequest {
    /// The hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_id: Option<String>,
}

/// A renewed hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RenewResponse {
    /// The hold.
    pub hold_id: String,
    /// Its fencing token, unchanged.
    pub fence: String,
    /// What the store keeps it for, milliseconds.
    pub ttl_ms: u64,
    /// How long the caller may act on it, milliseconds from now.
    pub hold_for_ms: u64,
    /// When that is over on `CLOCK_BOOTTIME`, nanoseconds, a decimal number.
    pub deadline_boottime_ns: String,
}

/// `POST /v1/locks/{name}/release`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReleaseRequest {
    /// The hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_id: Option<String>,
}

/// A released hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseResponse {
    /// The hold.
    pub hold_id: String,
    /// Always true: a second release is no error.
    pub released: bool,
}

/// `POST /v1/locks/{name}/force-release`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ForceReleaseRequest {
    /// The key; the class's one key when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Whom the lock was taken from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForceReleaseResponse {
    /// The key.
    pub key: String,
    /// The holder until now; absent when nobody held it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_from: Option<HolderResponse>,
}

/// Which key `GET /v1/locks/{name}` is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LockQuery {
    /// The key; the class's one key when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// `GET /v1/locks/{name}`: stale the moment it is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LockState {
    /// The key.
    pub key: String,
    /// Whether it is held.
    pub held: bool,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<HolderResponse>,
    /// How many wait.
    pub waiters: u32,
    /// The pods of the first ten of them.
    pub queue: Vec<String>,
    /// The newest fence granted; absent when there never was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fence: Option<String>,
}

/// A holder as others see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HolderResponse {
    /// Whose pod.
    pub pod: String,
    /// Its fencing token.
    pub fence: String,
    /// What is left without a renewal, milliseconds.
    pub ttl_ms: u64,
    /// For how long it has been held, milliseconds.
    pub held_for_ms: u64,
}
