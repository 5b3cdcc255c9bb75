//! A hold after it was granted: its state and its events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/holds/{holdId}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldInfo {
    /// Its name.
    pub hold_id: String,
    /// The lock's class.
    pub name: String,
    /// The key.
    pub key: String,
    /// The fencing token, a decimal number.
    pub fence: String,
    /// `held` or `suspended`.
    pub state: HoldState,
    /// What the store keeps it for without a renewal, milliseconds, as of the last one.
    #[serde(default)]
    pub ttl_ms: u64,
    /// How much longer it may be trusted, milliseconds, unless it is renewed.
    pub hold_for_ms: u64,
    /// When that is over on `CLOCK_BOOTTIME`, nanoseconds, a decimal number.
    pub deadline_boottime_ns: String,
}

/// How a hold stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HoldState {
    /// Held, and renewals succeed.
    Held,
    /// A renewal is uncertain: wind down, or be ready to.
    Suspended,
}

/// What `GET /v1/holds/{holdId}/events` streams: the SSE event's name is `event`, its data this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldEvent {
    /// What happened.
    pub event: HoldEventKind,
    /// The hold.
    pub hold_id: String,
    /// Its fencing token.
    pub fence: String,
    /// How much longer it may be trusted, milliseconds.
    pub hold_for_ms: u64,
}

/// What can happen to a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HoldEventKind {
    /// It is held; sent first, and again when a suspended hold has recovered.
    Granted,
    /// A renewal is uncertain. Comes before the hold ends.
    Suspended,
    /// It is over and was not released: stop now.
    Lost,
    /// It was released.
    Released,
}

impl HoldEventKind {
    /// The name of the SSE event.
    pub const fn as_str(self) -> &'static str {
        match self {
            HoldEventKind::Granted => "granted",
            HoldEventKind::Suspended => "suspended",
            HoldEventKind::Lost => "lost",
            HoldEventKind::Released => "released",
        }
    }
}
