//! The requests that come thousands of times a second, answered without the router.
//!
//! Routing, boxed handlers and boxed bodies cost more than a lock in memory does. What is plain
//! enough is therefore read here; everything else (a body, another method, an escaped name) goes to
//! the router, which has every route, these too. Both read and write the same fields.

use std::{convert::Infallible, future::Future, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, Request, Response, Uri, header::CONTENT_TYPE},
    response::IntoResponse,
};
use futures::{FutureExt, future::BoxFuture};
use holdfast_core::Kind;
use holdfast_wire::{AcquireRequest, Code, ReleaseRequest, headers};
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use serde::{Serialize, de::DeserializeOwned};
use tower::ServiceExt;

use super::{fields::Fields, lock};
use crate::{error::Failure, guard, service::Sidecar};

/// An answer: in one piece, or whatever the router makes.
pub type Answer = Response<Either<Full<Bytes>, Body>>;

/// What most answers need.
const ROOM: usize = 320;

/// What is served.
pub struct App {
    /// Answers.
    pub sidecar: Arc<Sidecar>,
    /// Every route.
    pub router: Router,
}

/// A request that was read: what is to be done. Kept small, it is moved with every request.
enum Plan {
    Acquire(String, Fields<AcquireRequest>),
    Release(String, Fields<ReleaseRequest>),
    Ready(Box<Answer>),
    Router(BoxFuture<'static, Answer>),
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
                Plan::Acquire(name, Fields(request)) => {
                    let granted = self.sidecar.acquire(&name, &request).await;
                    render(granted.map(|view| lock::mk_granted(&view)))
                }
                Plan::Release(name, Fields(request)) => {
                    let released =
                        self.sidecar.release(Kind::Lock, &name, request.hold_id.as_deref()).await;
                    render(released.map(|()| lock::mk_released(request)))
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
        let uri = request.uri();
        // A body takes time to arrive: the router's handlers wait for it.
        let plain = if request.body().is_end_stream() { read(request.method(), uri) } else { None };
        match plain {
            Some((Kind::Lock, Verb::Acquire, name)) => fields(name, uri, Plan::Acquire),
            Some((Kind::Lock, Verb::Release, name)) => fields(name, uri, Plan::Release),
            Some((Kind::LeaderElection | Kind::RateLimit | Kind::Semaphore, ..)) | None => {
                let answer = self.router.clone().oneshot(request.map(Body::new));
                Plan::Router(answer.map(|Ok(answer)| answer.map(Either::Right)).boxed())
            }
        }
    }
}

fn fields<T>(name: &str, uri: &Uri, plan: fn(String, Fields<T>) -> Plan) -> Plan
where
    T: Default + Serialize + DeserializeOwned,
{
    match Fields::of_query(uri) {
        Ok(fields) => plan(name.to_owned(), fields),
        Err(failure) => refuse(failure),
    }
}

/// What a POST to a class asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Acquire,
    Release,
}

/// `POST /v1/{kind}/{name}/{verb}`, if it is one of these.
fn read<'a>(method: &Method, uri: &'a Uri) -> Option<(Kind, Verb, &'a str)> {
    if *method != Method::POST {
        return None;
    }
    let (route, rest) = uri.path().strip_prefix("/v1/")?.split_once('/')?;
    let (name, verb) = rest.split_once('/')?;
    let verb = match verb {
        "acquire" => Verb::Acquire,
        "release" => Verb::Release,
        _ => return None,
    };
    let kind = *Kind::ALL.iter().find(|kind| kind.route() == route)?;
    (!name.is_empty() && !name.contains('%')).then_some((kind, verb, name))
}

fn render<T: Serialize>(outcome: Result<T, Failure>) -> Answer {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(failure) => return failure.into_response().map(Either::Right),
    };
    let mut body = Vec::with_capacity(ROOM);
    if let Err(error) = serde_json::to_writer(&mut body, &answer) {
        let failure = Failure::new(Code::Internal, error.to_string());
        return failure.into_response().map(Either::Right);
    }
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(headers::JSON));
    response
}

fn refuse(failure: Failure) -> Plan {
    Plan::Ready(Box::new(failure.into_response().map(Either::Right)))
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
