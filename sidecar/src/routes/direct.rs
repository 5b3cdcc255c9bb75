//! The requests that come thousands of times a second, answered without the router.
//!
//! Routing, boxed handlers and boxed bodies cost more than a lock in memory does. What is plain
//! enough is therefore read here; everything else (a body, another method, an escaped name) goes to
//! the router, which has every route, these too. Both read and write the same fields.

use std::{convert::Infallible, future::Future, ops::Range, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{
        HeaderMap, HeaderValue, Method, Request, Response, Uri, header::CONTENT_TYPE,
        request::Parts,
    },
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
    uri: Uri,
    /// Where in its path the class is named.
    class: Range<usize>,
    /// Emptied, for the answer: hyper reads the next request into what an answer leaves, so that no
    /// request makes a map of its own.
    headers: HeaderMap,
}

impl Head {
    fn class(&self) -> &str {
        self.uri.path().get(self.class.clone()).unwrap_or_default()
    }
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
                Plan::Acquire(head, Fields(request)) => {
                    let granted = self.sidecar.acquire(head.class(), &request).await;
                    let body = |view| lock::write_granted(&view);
                    granted.map_or_else(fail, |view| mk_answer(head.headers, body(view)))
                }
                Plan::Release(head, Fields(request)) => {
                    let hold = request.hold_id.as_deref();
                    let released = self.sidecar.release(Kind::Lock, head.class(), hold).await;
                    let body = || lock::write_released(hold.unwrap_or_default());
                    released.map_or_else(fail, |()| mk_answer(head.headers, body()))
                }
                Plan::Check(head, Fields(request)) => {
                    let checked = self.sidecar.check(head.class(), &request).await;
                    checked.map_or_else(fail, |checked| ratelimit::answer(head.headers, &checked))
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
            Some((Kind::Lock, Verb::Acquire, class)) => fields(class, parts, Plan::Acquire),
            Some((Kind::Lock, Verb::Release, class)) => fields(class, parts, Plan::Release),
            Some((Kind::RateLimit, Verb::Check, class)) => fields(class, parts, Plan::Check),
            Some(_) | None => {
                let request = Request::from_parts(parts, Body::new(body));
                let answer = self.router.clone().oneshot(request);
                Plan::Router(answer.map(|Ok(answer)| answer.map(Either::Right)).boxed())
            }
        }
    }
}

fn fields<T>(class: Range<usize>, parts: Parts, plan: fn(Head, Fields<T>) -> Plan) -> Plan
where
    T: Plain,
{
    let Parts { uri, mut headers, .. } = parts;
    headers.clear();
    match Fields::of_plain_query(&uri) {
        Ok(fields) => plan(Head { uri, class, headers }, fields),
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

/// `POST /v1/{kind}/{name}/{verb}`, if it is one of these, and where the name is.
fn read(method: &Method, uri: &Uri) -> Option<(Kind, Verb, Range<usize>)> {
    if *method != Method::POST {
        return None;
    }
    const ROOT: &str = "/v1/";
    let (route, rest) = cut(uri.path().strip_prefix(ROOT)?, b'/')?;
    let (name, verb) = cut(rest, b'/')?;
    let verb = match verb {
        "acquire" => Verb::Acquire,
        "release" => Verb::Release,
        "check" => Verb::Check,
        _ => return None,
    };
    let kind = *Kind::ALL.iter().find(|kind| kind.route() == route)?;
    let start = ROOT.len() + route.len() + 1;
    let is_plain = !name.is_empty() && !name.bytes().any(|byte| byte == b'%');
    is_plain.then_some((kind, verb, start..start + name.len()))
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
        let read_named = |uri: &Uri| {
            let (kind, verb, class) = read(&Method::POST, uri)?;
            Some((kind, verb, uri.path()[class].to_owned()))
        };
        assert_eq!(read_named(&acquire), Some((Kind::Lock, Verb::Acquire, "a".into())));
        assert_eq!(read_named(&release), Some((Kind::Lock, Verb::Release, "a-b".into())));
        let check = uri("/v1/ratelimits/a/check?cost=2");
        assert_eq!(read_named(&check), Some((Kind::RateLimit, Verb::Check, "a".into())));
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
