//! Errors as RFC 9457 problem documents with a stable `code`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong; stable, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// 409: another holds the lock, and the wait (if any) is over.
    Locked,
    /// 409: this pod does not lead.
    NotLeading,
    /// 429: a limit does not allow it now.
    QuotaExceeded,
    /// 422: it costs more than a limit ever has, or asks for more permits than one hold can have:
    /// trying again is of no use.
    CostTooLarge,
    /// 429: as many wait as may.
    QueueFull,
    /// 410: the hold expired, was taken by force, or was released before.
    HoldLost,
    /// 412: a fence is older than the newest that was granted: whoever sent it holds nothing any more.
    Fenced,
    /// 404: no such class here.
    ClassNotFound,
    /// 404: no such route.
    NotFound,
    /// 405: the route has no such method.
    MethodNotAllowed,
    /// 422: the class does not have this key.
    KeyNotAllowed,
    /// 400: the request cannot be read.
    BadRequest,
    /// 422: a field has a value that it cannot have.
    InvalidField,
    /// 413: the body is larger than the sidecar takes.
    TooLarge,
    /// 415: a body that is not JSON.
    NotJson,
    /// 403: the class's access rules do not permit it, or the request comes from a browser page.
    Forbidden,
    /// 421: the Host header names another host.
    Misdirected,
    /// 429: this pod has as many holds, waiters or connections as it may.
    TooMany,
    /// 503: the store's epoch is in doubt.
    Epoch,
    /// 503: the store did not take the request; nothing was done.
    BackendUnavailable,
    /// 503: the outcome is unknown and is being settled; the request will hold nothing.
    OutcomeUnknown,
    /// 503: the store does not permit it: a Role or an ACL user lacks a right.
    BackendForbidden,
    /// 503: the operator has not made what the class needs yet.
    NotProvisioned,
    /// 503: the sidecar is shutting down, or has no bundle yet.
    NotReady,
    /// 500: a rule of the sidecar's own was broken.
    Internal,
}

/// A problem document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `https://holdfast.dev/problems/<code>`: a name, not an address.
    #[serde(rename = "type")]
    pub type_: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong this time, and what to do.
    pub detail: String,
    /// The stable code.
    pub code: Code,
    /// When it may be worth to try again, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// How many wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiters: Option<u32>,
    /// The names of the limits that do not allow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "violated-policies")]
    pub violated_policies: Vec<String>,
}

impl Code {
    /// Every code there is.
    pub const ALL: &'static [Code] = &[
        Code::Locked,
        Code::NotLeading,
        Code::QuotaExceeded,
        Code::CostTooLarge,
        Code::QueueFull,
        Code::HoldLost,
        Code::Fenced,
        Code::ClassNotFound,
        Code::NotFound,
        Code::MethodNotAllowed,
        Code::KeyNotAllowed,
        Code::BadRequest,
        Code::InvalidField,
        Code::TooLarge,
        Code::NotJson,
        Code::Forbidden,
        Code::Misdirected,
        Code::TooMany,
        Code::Epoch,
        Code::BackendUnavailable,
        Code::OutcomeUnknown,
        Code::BackendForbidden,
        Code::NotProvisioned,
        Code::NotReady,
        Code::Internal,
    ];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::Locked => "locked",
            Code::NotLeading => "not_leading",
            Code::QuotaExceeded => "quota_exceeded",
            Code::CostTooLarge => "cost_too_large",
            Code::QueueFull => "queue_full",
            Code::HoldLost => "hold_lost",
            Code::Fenced => "fenced",
            Code::ClassNotFound => "class_not_found",
            Code::NotFound => "not_found",
            Code::MethodNotAllowed => "method_not_allowed",
            Code::KeyNotAllowed => "key_not_allowed",
            Code::BadRequest => "bad_request",
            Code::InvalidField => "invalid_field",
            Code::TooLarge => "too_large",
            Code::NotJson => "not_json",
            Code::Forbidden => "forbidden",
            Code::Misdirected => "misdirected",
            Code::TooMany => "too_many",
            Code::Epoch => "epoch",
            Code::BackendUnavailable => "backend_unavailable",
            Code::OutcomeUnknown => "outcome_unknown",
            Code::BackendForbidden => "backend_forbidden",
            Code::NotProvisioned => "not_provisioned",
            Code::NotReady => "not_ready",
            Code::Internal => "internal",
        }
    }

    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Code::BadRequest => 400,
            Code::Forbidden => 403,
            Code::ClassNotFound | Code::NotFound => 404,
            Code::MethodNotAllowed => 405,
            Code::Locked | Code::NotLeading => 409,
            Code::HoldLost => 410,
            Code::Fenced => 412,
            Code::TooLarge => 413,
            Code::NotJson => 415,
            Code::Misdirected => 421,
            Code::KeyNotAllowed | Code::InvalidField | Code::CostTooLarge => 422,
            Code::QueueFull | Code::TooMany | Code::QuotaExceeded => 429,
            Code::Internal => 500,
            Code::Epoch
            | Code::BackendUnavailable
            | Code::OutcomeUnknown
            | Code::BackendForbidden
            | Code::NotProvisioned
            | Code::NotReady => 503,
        }
    }
}

impl Problem {
    /// A problem with a sentence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Problem {
            type_: format!("https://holdfast.dev/problems/{}", code.as_str()),
            title: code.as_str().replace('_', " "),
            status: code.status(),
            detail: detail.into(),
            code,
            retry_after_ms: None,
            waiters: None,
            violated_policies: Vec::new(),
        }
    }

    /// With the time after which to try again.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// With the number of waiters.
    #[must_use]
    pub fn waiters(mut self, waiters: u32) -> Self {
        self.waiters = Some(waiters);
        self
    }
}
