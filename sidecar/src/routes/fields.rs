//! A request's fields: from the JSON body, the query, or both, and never the same one from both.

use std::time::Duration;

use axum::{
    body::{Body, Bytes, HttpBody, to_bytes},
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{Uri, request::Parts},
};
use holdfast_wire::Code;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::error::Failure;

/// Larger bodies are refused.
pub const MAX_BODY: usize = 64 * 1024;
/// A body that is not complete by then is refused.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// The fields of a POST.
pub struct Fields<T>(pub T);

impl<S, T> FromRequest<S> for Fields<T>
where
    S: Send + Sync,
    T: Default + Serialize + DeserializeOwned,
{
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let body = whole(body).await?;
        let has_query = parts.uri.query().is_some_and(|query| !query.is_empty());
        match (body.is_empty(), has_query) {
            (true, _) => Fields::of_query(&parts.uri),
            (false, false) => from_body(&body).map(Fields),
            (false, true) => merge(&from_body::<T>(&body)?, &from_query::<T>(&parts.uri)?),
        }
    }
}

impl<T: Default + DeserializeOwned> Fields<T> {
    /// The fields of a request that has no body.
    pub fn of_query(uri: &Uri) -> Result<Self, Failure> {
        match uri.query() {
            None | Some("") => Ok(Fields(T::default())),
            Some(_) => from_query(uri).map(Fields),
        }
    }
}

/// The fields of a GET.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        from_query(&parts.uri).map(Params)
    }
}

/// The one variable part of a route.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Name(name)),
            Err(error) => Err(Failure::new(Code::BadRequest, error.body_text())),
        }
    }
}

async fn whole(body: Body) -> Result<Bytes, Failure> {
    // Most requests have none: no timer for them.
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    match tokio::time::timeout(BODY_WITHIN, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(unreadable(&error)),
        Err(_) => Err(Failure::new(Code::BadRequest, "the body took too long")),
    }
}

fn unreadable(error: &axum::Error) -> Failure {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        if inner.is::<http_body_util::LengthLimitError>() {
            let why = format!("a body has at most {MAX_BODY} bytes");
            return Failure::new(Code::TooLarge, why);
        }
        cause = inner.source();
    }
    Failure::new(Code::BadRequest, format!("the body cannot be read: {error}"))
}

fn from_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Failure> {
    if let Ok(fields) = serde_urlencoded::from_str(uri.query().unwrap_or_default()) {
        return Ok(fields);
    }
    // The same again, slower, for an error that names the field.
    let Query(fields) = Query::try_from_uri(uri)
        .map_err(|error| Failure::new(Code::InvalidField, error.body_text()))?;
    Ok(fields)
}

fn from_body<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        let code = if error.is_data() { Code::InvalidField } else { Code::BadRequest };
        Failure::new(code, format!("the body is not as expected: {error}"))
    })
}

fn merge<T: Default + Serialize + DeserializeOwned>(a: &T, b: &T) -> Result<Fields<T>, Failure> {
    let object = |fields: &T| match serde_json::to_value(fields) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(Failure::new(Code::Internal, "fields are not an object")),
    };
    let mut merged = object(a)?;
    for (field, value) in object(b)? {
        if merged.contains_key(&field) {
            let why = format!("{field} is in both the body and the query; send it once");
            return Err(Failure::new(Code::InvalidField, why));
        }
        merged.insert(field, value);
    }
    serde_json::from_value(Value::Object(merged))
        .map(Fields)
        .map_err(|error| Failure::new(Code::InvalidField, error.to_string()))
}
