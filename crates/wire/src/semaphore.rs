//! Bodies of `/v1/semaphores/{name}`. Every field of a request may be a query parameter instead.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::lock::{AcquireRequest, Bind, Renew};

/// `POST /v1/semaphores/{name}/acquire`: that of a lock, with `permits`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PermitsRequest {
    /// How many permits; 1 when absent. All of them are granted at once, as one hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permits: Option<u32>,
    /// The key below the class; the class's one key when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Seconds the hold lasts without a renewal; the class's when absent, never more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<f64>,
    /// Seconds to wait for the permits, 0 to 60; 0 when absent.
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

impl PermitsRequest {
    /// What it asks for but for the permits.
    pub fn into_lock(self) -> AcquireRequest {
        AcquireRequest {
            key: self.key,
            ttl_seconds: self.ttl_seconds,
            wait_seconds: self.wait_seconds,
            request_id: self.request_id,
            renew: self.renew,
            bind: self.bind,
            heartbeat_seconds: self.heartbeat_seconds,
            max_hold_seconds: self.max_hold_seconds,
        }
    }
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PermitsResponse {
    /// Names the hold in `renew`, `release` and `events`. Whoever knows it may release.
    pub hold_id: String,
    /// The key.
    pub key: String,
    /// How many permits it has.
    pub permits: u32,
    /// The fencing token, a decimal number: send it with every read and write of the guarded
    /// resource. Holds of one semaphore have different ones.
    pub fence: String,
    /// What the store keeps the hold for without a renewal, milliseconds.
    pub ttl_ms: u64,
    /// How long the caller may act on it without a renewal, milliseconds from now.
    pub hold_for_ms: u64,
    /// When that is over on `CLOCK_BOOTTIME`, nanoseconds, a decimal number.
    pub deadline_boottime_ns: String,
    /// What the grant promises; see docs/guarantees.md.
    pub guarantee: String,
}

/// `POST /v1/semaphores/{name}/force-release`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ForcePermitsRequest {
    /// The key; the class's one key when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The fence of the one hold to take; every hold of the key when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<String>,
}

/// Whom permits were taken from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForcePermitsResponse {
    /// The key.
    pub key: String,
    /// The holders until now; empty when there was nothing to take.
    pub taken_from: Vec<PermitHolder>,
}

/// `GET /v1/semaphores/{name}`: stale the moment it is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SemaphoreState {
    /// The key.
    pub key: String,
    /// How many permits there are.
    pub permits: u32,
    /// How many are held; more than there are after the class was made smaller.
    pub used: u32,
    /// How many holds have them.
    pub holds: u32,
    /// The ten oldest holds.
    pub holders: Vec<PermitHolder>,
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
pub struct PermitHolder {
    /// Whose pod.
    pub pod: String,
    /// How many permits it has.
    pub permits: u32,
    /// Its fencing token.
    pub fence: String,
    /// What is left without a renewal, milliseconds.
    pub ttl_ms: u64,
    /// For how long it has been held, milliseconds.
    pub held_for_ms: u64,
}
