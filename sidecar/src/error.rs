//! Problems as HTTP answers, and the one map from a backend's error to a problem.

use axum::{
    body::Body,
    http::{
        HeaderValue, Response, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::IntoResponse,
};
use holdfast_core::BackendError;
use holdfast_wire::{Code, Problem, headers::PROBLEM_JSON};

/// A [`Problem`] that can be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure(pub Box<Problem>);

impl Failure {
    /// A failure with a sentence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Failure(Box::new(Problem::new(code, detail)))
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure(Box::new(problem))
    }
}

/// After how long a client may try again when the store cannot say.
const RETRY_MS: u64 = 1_000;

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        let code = match &error {
            BackendError::Epoch => Code::Epoch,
            BackendError::Unavailable(_) => Code::BackendUnavailable,
            BackendError::Unknown(_) => Code::OutcomeUnknown,
            BackendError::Forbidden(_) => Code::BackendForbidden,
            BackendError::NotFound(_) => Code::NotProvisioned,
            BackendError::Internal(_) => Code::Internal,
        };
        let problem = Problem::new(code, error.to_string());
        Failure(Box::new(if error.is_retryable() {
            problem.retry_after_ms(RETRY_MS)
        } else {
            problem
        }))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response<Body> {
        let Failure(problem) = self;
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A problem has string keys only, so it always has a JSON form.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(ms) = problem.retry_after_ms {
            // Whole seconds, rounded up: earlier would be too early.
            headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000)));
        }
        response
    }
}
