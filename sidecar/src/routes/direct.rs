//! The requests that come thousands of times a second, answered without the router.
//!
//! Routing, boxed handlers and boxed bodies cost more than a lock in memory does. What is plain
//! enough is therefore read here; everything else (a body, another method, an escaped name) goes to
//! the router, which has every route, these too. Both read and write the same fields.

use std::{convert::Infallible, future::Future, mem, sync::Arc};

use axum::{
    Json, Router,
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
    fields::{Fields, cut, only},
    lock, ratelimit,
};
use crate::{
    error::Failure,
    guard,
    service::{Releasing, Sidecar, Wanted},
    snapshot::RateLimitClass,
};

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
///
/// Nothing here refers to the request's own bytes: hyper could not read the next ones into their place
/// then, and would have a buffer of 8 KiB made and freed for each request.
enum Plan<'a> {
    Acquire(HeaderMap, Wanted<'a>),
    Release(HeaderMap, Releasing<'a>),
    Check(HeaderMap, Arc<RateLimitClass>, CheckRequest),
    Ready(Box<Answer>),
    Router(BoxFuture<'static, Answer>),
}

impl App {
    /// Answers one request.
    pub fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Answer, Infallible>> + Send {
        let plan =
            self.plan(request).unwrap_or_else(|failure| Plan::Ready(Box::new(fail(failure))));
        async move {
            Ok(match plan {
                Plan::Acquire(headers, wanted) => {
                    let granted = self.sidecar.acquire_wanted(wanted).await;
                    let body = |view| lock::write_granted(&view);
                    granted.map_or_else(fail, |view| mk_answer(headers, body(view)))
                }
                Plan::Release(headers, mut releasing) => {
                    let released = releasing.finish().await;
                    let body = || lock::write_released(releasing.hold());
                    released.map_or_else(fail, |()| mk_answer(headers, body()))
                }
                Plan::Check(headers, class, request) => {
                    let checked = self.sidecar.check_class(class, &request).await;
                    checked.map_or_else(fail, |checked| ratelimit::answer(headers, &checked))
                }
                Plan::Ready(answer) => *answer,
                Plan::Router(answer) => answer.await,
            })
        }
    }

    fn plan(&self, request: Request<Incoming>) -> Result<Plan<'_>, Failure> {
        guard::check(&request).inspect_err(|_| self.sidecar.metrics.refused.inc())?;
        let (mut parts, body) = request.into_parts();
        // A body takes time to arrive: the router's handlers wait for it.
        let plain = if body.is_end_stream() { read(&parts.method, &parts.uri) } else { None };
        let Some((verb, class)) = plain else {
            let request = Request::from_parts(parts, Body::new(body));
            let answer = self.router.clone().oneshot(request);
            return Ok(Plan::Router(answer.map(|Ok(answer)| answer.map(Either::Right)).boxed()));
        };
        // Emptied, for the answer: hyper reads the next request into what an answer leaves, so that
        // no request makes a map of its own.
        let mut headers = mem::take(&mut parts.headers);
        headers.clear();
        let (sidecar, uri) = (&self.sidecar, &parts.uri);
        Ok(match verb {
            Verb::Acquire => {
                let wanted = match only(uri, "key") {
                    Some(key) => sidecar.want(class, Some(key), &AcquireRequest::default())?,
                    None => {
                        let Fields(request) = Fields::<AcquireRequest>::of_plain_query(uri)?;
                        sidecar.want(class, request.key.as_deref(), &request)?
                    }
                };
                Plan::Acquire(headers, wanted)
            }
            Verb::Release => {
                let let_go = |hold| sidecar.let_go(Kind::Lock, class, hold);
                let releasing = match only(uri, "holdId") {
                    Some(hold) => let_go(Some(hold))?,
                    None => let_go(Fields::<ReleaseRequest>::of_query(uri)?.0.hold_id.as_deref())?,
                };
                match releasing {
                    Some(releasing) => Plan::Release(headers, releasing),
                    // Not for the first time.
                    None => {
                        let Fields(request) = Fields::of_query(uri)?;
                        let answer = Json(lock::mk_released(request)).into_response();
                        Plan::Ready(Box::new(answer.map(Either::Right)))
                    }
                }
            }
            Verb::Check => {
                let Fields(request) = Fields::of_plain_query(uri)?;
                let class = sidecar.snapshot.load().rate_limit(class)?.clone();
                Plan::Check(headers, class, request)
            }
        })
    }
}

/// What a plain request asks for: of a lock the first two, of a rate limit the third.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Acquire,
    Release,
    Check,
}

/// `POST /v1/{kind}/{name}/{verb}`, if it is one of these, and the name.
fn read<'a>(method: &Method, uri: &'a Uri) -> Option<(Verb, &'a str)> {
    if *method != Method::POST {
        return None;
    }
    let (route, rest) = cut(uri.path().strip_prefix("/v1/")?, b'/')?;
    let (name, verb) = cut(rest, b'/')?;
    let kind = *Kind::ALL.iter().find(|kind| kind.route() == route)?;
    let verb = match (kind, verb) {
        (Kind::Lock, "acquire") => Verb::Acquire,
        (Kind::Lock, "release") => Verb::Release,
        (Kind::RateLimit, "check") => Verb::Check,
        _ => return None,
    };
    let is_plain = !name.is_empty() && !name.bytes().any(|byte| byte == b'%');
    is_plain.then_some((verb, name))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_requests_of_these_routes_are_answered_here() {
        let uri = |path: &str| path.parse::<Uri>().unwrap();
        let acquire = uri("/v1/locks/a/acquire?key=b");
        let release = uri("/v1/locks/a-b/release");
        let post = |uri| read(&Method::POST, uri);
        assert_eq!(post(&acquire), Some((Verb::Acquire, "a")));
        assert_eq!(post(&release), Some((Verb::Release, "a-b")));
        let check = uri("/v1/ratelimits/a/check?cost=2");
        assert_eq!(post(&check), Some((Verb::Check, "a")));
        for path in [
            "/v1/locks/a",
            "/v1/locks//acquire",
            "/v1/locks/%61/acquire",
            "/v1/locks/a/acquire/",
            "/v1/locks/a/b/acquire",
            "/v1/lock/a/acquire",
            "/v1/locks/a/renew",
            "/v1/locks/a/check",
            "/v1/semaphores/a/acquire",
            "/v2/locks/a/acquire",
            "/",
        ] {
            assert_eq!(read(&Method::POST, &uri(path)), None, "{path}");
        }
        assert_eq!(read(&Method::GET, &acquire), None);
    }
}
