//! A sidecar on a free port, and a client of it.

use std::{net::SocketAddr, time::Duration};

use holdfast_api::{
    bundle::{Bundle, BundleBackend, MEMORY_BACKEND},
    compile::{Class, Environment, compile},
    load::{Object, load},
};
use holdfast_core::{Holder, Substrate};
use holdfast_sidecar::{Listen, Local, Serving};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A sidecar that serves.
pub struct App {
    pub serving: Serving,
    pub address: SocketAddr,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: header::HeaderMap,
    pub body: Value,
}

/// Classes for most tests: `job` with a short time to live, `slow` with a long one. The short ones
/// are renewed in time on a machine that stands still for a second, too.
pub const CLASSES: &str = r#"
apiVersion: holdfast.dev/v1alpha1
kind: Lock
metadata: {name: job}
spec: {backend: main, ttlSeconds: 4}
---
apiVersion: holdfast.dev/v1alpha1
kind: Lock
metadata: {name: slow}
spec: {backend: main, ttlSeconds: 30, queue: {maxWaiters: 2}}
---
apiVersion: holdfast.dev/v1alpha1
kind: LeaderElection
metadata: {name: boss}
spec: {backend: main, leaseDurationSeconds: 8, retryPeriodSeconds: 1}
---
apiVersion: holdfast.dev/v1alpha1
kind: Lock
metadata: {name: guarded}
spec:
  access:
  - serviceAccounts: [default]
    verbs: [Acquire]
"#;

pub fn mk_bundle(yaml: &str) -> Bundle {
    mk_bundle_on(MEMORY_BACKEND, Substrate::Memory, yaml)
}

pub fn mk_bundle_on(name: &str, substrate: Substrate, yaml: &str) -> Bundle {
    mk_bundle_with(name, BundleBackend::of(substrate), yaml)
}

pub fn mk_bundle_with(name: &str, backend: BundleBackend, yaml: &str) -> Bundle {
    let classes: Vec<Class> = load(yaml)
        .unwrap()
        .into_iter()
        .filter_map(|located| match located.object {
            Object::Class(class) => Some(class),
            Object::Backend(_) => None,
        })
        .collect();
    let environment = Environment {
        backends: [(name.to_owned(), backend)].into(),
        all_on: Some(name.into()),
        ..Environment::default()
    };
    let (bundle, problems) = compile("default", &classes, &environment);
    assert_eq!(problems, []);
    bundle
}

pub async fn start() -> App {
    start_with(CLASSES).await
}

pub async fn start_with(yaml: &str) -> App {
    let local = Local {
        namespace: "default".into(),
        holder: Holder::new("pod-a").unwrap(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        page: true,
    };
    let (serving, _) = local.start(&mk_bundle(yaml), None).await.unwrap();
    let Listen::Tcp(address) = serving.listens[0].clone() else { unreachable!() };
    App { serving, address }
}

impl App {
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn post(&self, path: &str) -> Answer {
        self.send(Method::POST, path, &[], "").await
    }

    pub async fn post_json(&self, path: &str, body: &str) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body).await
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "localhost");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// Acquires what must be free; the grant.
    pub async fn hold(&self, lock: &str, query: &str) -> Value {
        let answer = self.post(&format!("/v1/locks/{lock}/acquire?{query}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    pub async fn release(&self, lock: &str, hold: &Value) -> Answer {
        let id = hold["holdId"].as_str().unwrap();
        self.post(&format!("/v1/locks/{lock}/release?holdId={id}")).await
    }
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// Fails unless it is this problem, as a problem document.
    pub fn is_problem(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code()), (status, code), "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert!(self.body["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{self:?}");
    }
}

/// An open event stream.
pub struct Stream {
    body: hyper::body::Incoming,
    text: String,
    /// When anything came last.
    pub last: tokio::time::Instant,
    /// How many comments came between events.
    pub comments: usize,
}

impl App {
    pub async fn stream(&self, hold: &Value) -> Stream {
        self.follow(&format!("/v1/holds/{}/events", hold["holdId"].as_str().unwrap())).await
    }

    pub async fn follow(&self, path: &str) -> Stream {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "localhost");
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let last = tokio::time::Instant::now();
        Stream { body: response.into_body(), text: String::new(), last, comments: 0 }
    }
}

impl Stream {
    /// The next event: its name and data; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name).map(str::trim))
                };
                match (field("event:"), field("data:")) {
                    (Some(event), Some(data)) => {
                        return Some((event.to_owned(), serde_json::from_str(data).unwrap()));
                    }
                    _ => self.comments += 1,
                }
                continue;
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await;
            let frame = frame.expect("the stream is silent")?;
            self.last = tokio::time::Instant::now();
            if let Some(data) = frame.ok()?.data_ref() {
                self.text.push_str(std::str::from_utf8(data).unwrap());
            }
        }
    }
}
