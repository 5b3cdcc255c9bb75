//! A request's fields: from the JSON body, the query, or both, and never the same one from both.

use std::{str::FromStr, time::Duration};

use axum::{
    body::{Body, Bytes, HttpBody, to_bytes},
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{Uri, request::Parts},
};
use holdfast_wire::{AcquireRequest, CheckRequest, Code};
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

/// Fields of requests that come so often that reading them must not cost more than answering.
pub trait Plain: Default + DeserializeOwned {
    /// Takes one field down; `false` for whatever is not plain, such as a name that is not known or
    /// that comes twice.
    fn set(&mut self, name: &str, value: &str) -> bool;
}

impl<T: Plain> Fields<T> {
    /// As [`Fields::of_query`], and faster where nothing is escaped. What is not plain goes the long
    /// way, so both take the same and refuse the same.
    pub fn of_plain_query(uri: &Uri) -> Result<Self, Failure> {
        match uri.query().and_then(plain) {
            Some(fields) => Ok(Fields(fields)),
            None => Fields::of_query(uri),
        }
    }
}

fn plain<T: Plain>(query: &str) -> Option<T> {
    if memchr::memchr2(b'%', b'+', query.as_bytes()).is_some() {
        return None;
    }
    let mut fields = T::default();
    let mut rest = Some(query);
    while let Some(pairs) = rest {
        let (pair, others) = cut(pairs, b'&').unzip();
        rest = others;
        let (name, value) = cut(pair.unwrap_or(pairs), b'=')?;
        if !fields.set(name, value) {
            return None;
        }
    }
    Some(fields)
}

/// The value of a query that has one field, this one, and nothing escaped.
pub(super) fn only<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let value = uri.query()?.strip_prefix(name)?.strip_prefix('=')?;
    memchr::memchr3(b'&', b'%', b'+', value.as_bytes()).is_none().then_some(value)
}

/// What is before and what is after the first of an ASCII character. As `split_once`, which searches
/// texts as short as these several times slower.
pub(super) fn cut(text: &str, at: u8) -> Option<(&str, &str)> {
    let found = memchr::memchr(at, text.as_bytes())?;
    Some((text.get(..found)?, text.get(found + 1..)?))
}

/// Takes down a value that is not there yet.
fn fill<V: FromStr>(field: &mut Option<V>, value: &str) -> bool {
    match value.parse() {
        Ok(value) if field.is_none() => {
            *field = Some(value);
            true
        }
        _ => false,
    }
}

impl Plain for AcquireRequest {
    fn set(&mut self, name: &str, value: &str) -> bool {
        match name {
            "key" => fill(&mut self.key, value),
            "waitSeconds" => fill(&mut self.wait_seconds, value),
            "ttlSeconds" => fill(&mut self.ttl_seconds, value),
            "requestId" => fill(&mut self.request_id, value),
            _ => false,
        }
    }
}

impl Plain for CheckRequest {
    fn set(&mut self, name: &str, value: &str) -> bool {
        match name {
            "key" => fill(&mut self.key, value),
            "cost" => fill(&mut self.cost, value),
            "waitSeconds" => fill(&mut self.wait_seconds, value),
            _ => false,
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

/// A body, if it is not too long and comes in time.
pub(crate) async fn whole(body: Body) -> Result<Bytes, Failure> {
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

#[cfg(test)]
mod tests {
    use holdfast_wire::ReleaseRequest;
    use proptest::prelude::*;

    use super::*;

    fn both<T: Plain + PartialEq + std::fmt::Debug>(query: &str) {
        let plain = plain::<T>(query);
        if let Some(fields) = plain {
            assert_eq!(serde_urlencoded::from_str::<T>(query).ok(), Some(fields), "{query}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_as_plain_is_what_serde_reads(query in
            "(key|cost|waitSeconds|ttlSeconds|requestId|holdId|other|)(=|)(a|1|-1|0.5|1e2|inf| ?|é|%61|a+b|)\
             (&|&&|)(key|cost|waitSeconds|ttlSeconds|requestId|holdId)(=|==)(a|7|\\+7|07|1\\.|\\.5|)")
        {
            both::<AcquireRequest>(&query);
            both::<CheckRequest>(&query);
            let uri = Uri::try_from(format!("/?{query}")).unwrap_or_default();
            if let Some(hold) = only(&uri, "holdId") {
                let Fields(request) = Fields::<ReleaseRequest>::of_query(&uri).unwrap();
                prop_assert_eq!(request.hold_id.as_deref(), Some(hold));
            }
        }
    }

    #[test]
    fn the_only_field_is_read_where_it_is() {
        let of = |query: &str| {
            let uri = Uri::try_from(format!("/?{query}")).unwrap();
            only(&uri, "key").map(str::to_owned)
        };
        assert_eq!(of("key=order/1").as_deref(), Some("order/1"));
        assert_eq!(of("key=a=b").as_deref(), Some("a=b"));
        for odd in ["", "key", "keys=a", "key=a&key=b", "key=a%20b", "key=a+b", "a=b&key=c"] {
            assert_eq!(of(odd), None, "{odd}");
        }
    }

    #[test]
    fn common_requests_are_plain_and_odd_ones_are_not() {
        let fields = plain::<AcquireRequest>("key=order/1&waitSeconds=2.5").unwrap();
        assert_eq!((fields.key.as_deref(), fields.wait_seconds), (Some("order/1"), Some(2.5)));
        for odd in
            ["", "key", "key=a&key=b", "key=a%20b", "key=a+b", "bind=process", "waitSeconds=x"]
        {
            assert!(plain::<AcquireRequest>(odd).is_none(), "{odd}");
        }
    }
}
