//! Names of headers, media types and addresses that clients and the sidecar agree on.

/// Where the sidecar listens unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:4140";
/// Where its `/livez`, `/readyz` and `/metrics` are unless told otherwise.
pub const DEFAULT_ADMIN: &str = "127.0.0.1:4141";
/// The environment variable with the address of the API, `http://…` or `unix:/…`.
pub const ENV_URL: &str = "HOLDFAST_URL";
/// The media type of bodies.
pub const JSON: &str = "application/json";
/// The media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The media type of a hold's events.
pub const EVENT_STREAM: &str = "text/event-stream";
/// What is left of each limit: `"name";r=9;t=1` (draft-ietf-httpapi-ratelimit-headers-10).
pub const RATELIMIT: &str = "ratelimit";
/// What the limits are: `"name";q=10;w=1`.
pub const RATELIMIT_POLICY: &str = "ratelimit-policy";
/// Whole seconds, rounded up, after which it may be worth to try again; `retryAfterMs` of the
/// problem document is the finer value.
pub const RETRY_AFTER: &str = "retry-after";
