//! The requests that come thousands of times a second, answered without the router.
//!
//! Routing, boxed handlers and boxed bodies cost more than a lock in memory does. What is plain
//! enough is therefore read here; everything else (a body, another method, an escaped name) goes to
//! the router, which has every route, these too. Both read and write the same fields.

use std::{convert::Infallible, future::Future, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header::CONTENT_TYPE},
    response::IntoResponse,
};
use futures::{FutureExt, future::BoxFuture};
use holdfast_core::Kind;
use holdfast_wire::{AcquireRequest, CheckRequest, ReleaseRequest, headers::JSON};
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use tower::ServiceExt;

use super::{
    fields::{Fields, Plain, cut},
    lock, ratelimit,
};
use crate::{error::Failure, guard, service::Sidecar};

/// An answer: in one piece, or whatever the router makes.
pub type Answer = Response<Either<Full<Bytes>, Body>>;

/// What is served.
pub struct App {
    /// Answers.
    pub sidecar: Arc<Sidecar>,
    /// Every route.
    pub router: Router,
}

/// A request that was read: what is to be done. Kept small, it is moved with every request.
enum Plan {
    Acquire(Head, Fields<AcquireRequest>),
    Release(Head, Fields<ReleaseRequest>),
    Check(Head, Fields<CheckRequest>),
    Ready(Box<Answer>),
    Router(BoxFuture<'static, Answer>),
}

/// What is left of a request besides its fields.
struct Head {
    class: String,
    /// Emptied, for the answer: hyper reads the next request into what an answer leaves, so that no
    /// request makes a map of its own.
    headers: HeaderMap,
}

impl App {
    /// Answers one request.
    pub fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Answer, Infallible>> + Send {
        let plan = self.plan(request);
        async move {
            Ok(match plan {
                Plan::Acquire(Head { class, headers }, Fields(request)) => {
                    let granted = self.sidecar.acquire(&class, &request).await;
                    granted.map_or_else(fail, |view| mk_answer(headers, lock::write_granted(&view)))
                }
                Plan::Release(Head { class, headers }, Fields(request)) => {
                    let hold = request.hold_id.as_deref();
                    let released = self.sidecar.release(Kind::Lock, &class, hold).await;
                    let body = || lock::write_released(hold.unwrap_or_default());
                    released.map_or_else(fail, |()| mk_answer(headers, body()))
                }
                Plan::Check(Head { class, headers }, Fields(request)) => {
                    let checked = self.sidecar.check(&class, &request).await;
                    checked.map_or_else(fail, |checked| ratelimit::answer(headers, &checked))
                }
                Plan::Ready(answer) => *answer,
                Plan::Router(answer) => answer.await,
            })
        }
    }

    fn plan(&self, request: Request<Incoming>) -> Plan {
        if let Err(failure) = guard::check(&request) {
            self.sidecar.metrics.refused.inc();
            return refuse(failure);
        }
        // A body takes time to arrive: the router's handlers wait for it.
        let (parts, body) = request.into_parts();
        let plain = if body.is_end_stream() { read(&parts.method, &parts.uri) } else { None };
        match plain {
            Some((Kind::Lock, Verb::Acquire, class)) => {
                fields(class, &parts.uri, parts.headers, Plan::Acquire)
            }
            Some((Kind::Lock, Verb::Release, class)) => {
                fields(class, &parts.uri, parts.headers, Plan::Release)
            }
            Some((Kind::RateLimit, Verb::Check, class)) => {
                fields(class, &parts.uri, parts.headers, Plan::Check)
            }
            Some(_) | None => {
                let request = Request::from_parts(parts, Body::new(body));
                let answer = self.router.clone().oneshot(request);
                Plan::Router(answer.map(|Ok(answer)| answer.map(Either::Right)).boxed())
            }
        }
    }
}

fn fields<T>(
    class: &str,
    uri: &Uri,
    mut headers: HeaderMap,
    plan: fn(Head, Fields<T>) -> Plan,
) -> Plan
where
    T: Plain,
{
    headers.clear();
    match Fields::of_plain_query(uri) {
        Ok(fields) => plan(Head { class: class.to_owned(), headers }, fields),
        Err(failure) => refuse(failure),
    }
}

/// What a POST to a class asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Acquire,
    Release,
    Check,
}

/// `POST /v1/{kind}/{name}/{verb}`, if it is one of these.
fn read<'a>(method: &Method, uri: &'a Uri) -> Option<(Kind, Verb, &'a str)> {
    if *method != Method::POST {
        return None;
    }
    let (route, rest) = cut(uri.path().strip_prefix("/v1/")?, b'/')?;
    let (name, verb) = cut(rest, b'/')?;
    let verb = match verb {
        "acquire" => Verb::Acquire,
        "release" => Verb::Release,
        "check" => Verb::Check,
        _ => return None,
    };
    let kind = *Kind::ALL.iter().find(|kind| kind.route() == route)?;
    (!name.is_empty() && !name.bytes().any(|byte| byte == b'%')).then_some((kind, verb, name))
}

/// An answer with a body of JSON.
pub(super) fn mk_answer(mut headers: HeaderMap, body: Bytes) -> Answer {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.headers_mut() = headers;
    response
}

pub(super) fn fail(failure: Failure) -> Answer {
    failure.into_response().map(Either::Right)
}

fn refuse(failure: Failure) -> Plan {
    Plan::Ready(Box::new(fail(failure)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_requests_of_these_routes_are_answered_here() {
        let uri = |path: &str| path.parse::<Uri>().unwrap();
        let acquire = uri("/v1/locks/a/acquire?key=b");
        let release = uri("/v1/locks/a-b/release");
        assert_eq!(read(&Method::POST, &acquire), Some((Kind::Lock, Verb::Acquire, "a")));
        assert_eq!(read(&Method::POST, &release), Some((Kind::Lock, Verb::Release, "a-b")));
        let check = uri("/v1/ratelimits/a/check?cost=2");
        assert_eq!(read(&Method::POST, &check), Some((Kind::RateLimit, Verb::Check, "a")));
        for path in [
            "/v1/locks/a",
            "/v1/locks//acquire",
            "/v1/locks/%61/acquire",
            "/v1/locks/a/acquire/",
            "/v1/locks/a/b/acquire",
            "/v1/lock/a/acquire",
            "/v1/locks/a/renew",
            "/v2/locks/a/acquire",
            "/",
        ] {
            assert_eq!(read(&Method::POST, &uri(path)), None, "{path}");
        }
        assert_eq!(read(&Method::GET, &acquire), None);
    }
}
