//! What can go wrong between a rule and its store, sorted by what the caller must do about it.

/// Why a transition was not carried out, or is not known to have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The store may have lost data since the epoch we know: nothing was done. Strict classes stay
    /// closed until the operator has opened a new epoch.
    #[error("the store's epoch is in doubt; the operator opens a new one after a quarantine")]
    Epoch,
    /// The store refused or could not be reached: certainly nothing was done.
    #[error("the store did not take the request: {0}")]
    Unavailable(String),
    /// No answer in time, or the connection broke: the request may still be carried out. It must
    /// be settled (`cancel`) before anybody is told that it was not.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The store does not let us: a Role or an ACL user lacks a right.
    #[error("the store does not permit this: {0}")]
    Forbidden(String),
    /// The object is not there (a Lease that the operator has not created yet, or a deleted class).
    #[error("not there: {0}")]
    NotFound(String),
    /// A rule of ours was broken: a reply that no version of ours sends.
    #[error("internal: {0}")]
    Internal(String),
}

impl BackendError {
    /// A stable word for problem documents and metric labels.
    pub const fn code(&self) -> &'static str {
        match self {
            BackendError::Epoch => "epoch",
            BackendError::Unavailable(_) => "backend_unavailable",
            BackendError::Unknown(_) => "outcome_unknown",
            BackendError::Forbidden(_) => "backend_forbidden",
            BackendError::NotFound(_) => "not_provisioned",
            BackendError::Internal(_) => "internal",
        }
    }

    /// Whether the same request may succeed later, with nothing changed by people.
    pub const fn is_retryable(&self) -> bool {
        match self {
            BackendError::Epoch
            | BackendError::Unavailable(_)
            | BackendError::Unknown(_)
            | BackendError::NotFound(_) => true,
            BackendError::Forbidden(_) | BackendError::Internal(_) => false,
        }
    }
}
