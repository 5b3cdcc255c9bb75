//! What can go wrong in a reconciliation. Every error is tried again; its label is for the metrics.

use holdfast_core::BackendError;

/// Why a reconciliation did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("could not {what}")]
    Api {
        /// What was attempted, with the object in quotes.
        what: String,
        /// What the API server said.
        #[source]
        source: kube::Error,
    },
    /// A store refused or did not answer.
    #[error("could not {what}")]
    Store {
        /// What was attempted.
        what: String,
        /// What the store said.
        #[source]
        source: BackendError,
    },
    /// Somebody else's write came first: what was decided on is stale.
    #[error("\"{0}\" changed meanwhile")]
    Conflict(String),
    /// What is to be written does not fit.
    #[error("{0}")]
    TooLarge(String),
}

impl Error {
    /// An error of the API server.
    pub fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
        let what = what.into();
        move |source| match source {
            kube::Error::Api(status) if status.code == 409 => Error::Conflict(what),
            source => Error::Api { what, source },
        }
    }

    /// An error of a store.
    pub fn store(what: impl Into<String>) -> impl FnOnce(BackendError) -> Error {
        let what = what.into();
        move |source| Error::Store { what, source }
    }

    /// A word for metric labels.
    pub const fn label(&self) -> &'static str {
        match self {
            Error::Api { .. } => "api",
            Error::Store { .. } => "store",
            Error::Conflict(_) => "conflict",
            Error::TooLarge(_) => "too_large",
        }
    }

    /// The error and all that led to it, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    }
}
