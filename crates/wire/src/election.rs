//! Bodies of `/v1/elections/{name}`. Every field of a request may be a query parameter instead.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How this pod stands in an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// It does not stand: `POST …/campaign` makes it a candidate.
    NotCandidate,
    /// It is a candidate, and another leads or nobody does.
    Standby,
    /// It leads.
    Leading,
    /// It leads, and a renewal is uncertain: begin nothing new, be ready to stop.
    Suspended,
}

impl Standing {
    /// The name of the SSE event.
    pub const fn as_str(self) -> &'static str {
        match self {
            Standing::NotCandidate => "notCandidate",
            Standing::Standby => "standby",
            Standing::Leading => "leading",
            Standing::Suspended => "suspended",
        }
    }
}

/// `GET /v1/elections/{name}`; stale the moment it is read, but for this pod's own term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ElectionState {
    /// The class.
    pub name: String,
    /// Who leads, as the store says; absent when nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderResponse>,
    /// Whether this pod leads, with certainty until `holdForMs` from now.
    pub leading: bool,
    /// This pod's own state and term.
    #[serde(flatten)]
    pub own: TermState,
}

/// The leader as others see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaderResponse {
    /// Whose pod.
    pub pod: String,
    /// The term: the fencing token of the leadership, a decimal number.
    pub term: String,
}

/// This pod's own state in an election; also what `…/events` streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TermState {
    /// How it stands. The name of the SSE event.
    pub state: Standing,
    /// The term it leads or led last: its fencing token, a decimal number. Send it as the fence with
    /// every read and write of the resource that the leader guards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
    /// The hold that the term is, while it lasts: for `/v1/holds/{holdId}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_id: Option<String>,
    /// How long the leader may act without a renewal, milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_for_ms: Option<u64>,
    /// When that is over on `CLOCK_BOOTTIME`, nanoseconds, a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_boottime_ns: Option<String>,
    /// Why it does not lead any more, or why it cannot stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST /v1/elections/{name}/campaign`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CampaignRequest {
    /// Seconds to wait for the leadership before answering, 0 to 60; 0 when absent. The candidacy
    /// goes on whatever the answer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<f64>,
}

/// `POST /v1/elections/{name}/resign`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ResignRequest {
    /// Seconds to stand back before being a candidate again, 0 to 3600; the class's
    /// retryPeriodSeconds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_seconds: Option<f64>,
    /// Not to be a candidate any more, until the next `campaign`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdraw: Option<bool>,
}
