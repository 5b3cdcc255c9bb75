//! What travels between an app and its sidecar: bodies, problem codes, headers, events.
//!
//! Durations travel as numbers with the unit in the name, timestamps never do; fencing tokens are
//! strings. Requests refuse fields that they do not know.

pub mod election;
pub mod fence;
pub mod headers;
pub mod hold;
pub mod lock;
pub mod problem;
pub mod ratelimit;
pub mod semaphore;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use election::{
    CampaignRequest, ElectionState, LeaderResponse, ResignRequest, Standing, TermState,
};
pub use fence::{FenceCheckRequest, FenceCheckResponse, FenceOf};
pub use hold::{HoldEvent, HoldEventKind, HoldInfo, HoldState};
pub use lock::{
    AcquireRequest, AcquireResponse, Bind, ForceReleaseRequest, ForceReleaseResponse,
    HolderResponse, LockQuery, LockState, ReleaseRequest, ReleaseResponse, Renew, RenewRequest,
    RenewResponse,
};
pub use problem::{Code, Problem};
pub use ratelimit::{
    CheckRequest, CheckResponse, LimitState, OverAdmission, PeekQuery, PermitReleaseRequest,
    PermitReleaseResponse, RefundRequest, RefundResponse,
};
pub use semaphore::{
    ForcePermitsRequest, ForcePermitsResponse, PermitHolder, PermitsRequest, PermitsResponse,
    SemaphoreState,
};

/// `GET /v1`: what this pod may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Catalogue {
    /// The namespace of the classes.
    pub namespace: String,
    /// The pod's name, as others see it when it holds or waits.
    pub holder: String,
    /// The classes.
    pub classes: Vec<ClassInfo>,
}

/// One class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClassInfo {
    /// Such as `Lock`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub backend: String,
    /// What its grants promise.
    pub guarantee: String,
    /// Where to call it.
    pub path: String,
}

/// `GET /v1/status`: everything at a glance, for the status page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// One row per key that is held or waited for, at most 100 per class.
    pub locks: Vec<StatusRow>,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusRow {
    /// The kind of the class, such as `Lock`.
    pub kind: String,
    /// The class.
    pub name: String,
    /// The key and its state.
    #[serde(flatten)]
    pub state: LockState,
}
