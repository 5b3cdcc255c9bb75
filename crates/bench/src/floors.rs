//! The floors F0 and F1: hyper and nothing else.

use std::{cell::RefCell, convert::Infallible, rc::Rc, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::LocalSet};

use crate::script::{self, By, Cycle};

/// As long as a grant.
const ANSWER: &str = r#"{"holdId":"0573fac4f78a4fbbb5355372f759983f","key":"default","fence":"1795454667405813","ttlMs":15000,"holdForMs":13499,"deadlineBoottimeNs":"13321739037408","guarantee":"BestEffort"}"#;

fn answer() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(ANSWER.as_bytes())));
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}

/// F0: a constant answer.
pub async fn constant(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service =
                service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(answer()) });
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// What F1 runs.
#[derive(Clone, Copy)]
pub enum Runs {
    /// Acquires and releases by turns.
    Cycles(By),
    /// The check of a rate limit.
    Checks,
}

/// F1: one script per request, over one shared connection.
pub async fn scripted(port: u16, redis: &str, runs: Runs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let epoch = script::open(redis).await?;
    let connection = script::connect(redis).await?;
    let (local, keys) = (LocalSet::new(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    local
        .run_until(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let key = keys.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let by = match runs {
                    Runs::Cycles(by) => by,
                    Runs::Checks => By::Function,
                };
                let cycle = Rc::new(RefCell::new(Cycle::new(key, epoch.clone(), by)?));
                let connection = connection.clone();
                tokio::task::spawn_local(async move {
                    let service = service_fn(move |_: Request<Incoming>| {
                        let command = match runs {
                            Runs::Cycles(_) => cycle.borrow_mut().next(),
                            Runs::Checks => script::check(key),
                        };
                        let mut connection = connection.clone();
                        async move {
                            let reply = connection.send_packed_command(&command).await;
                            reply.map(|_| answer()).map_err(|error| error.to_string())
                        }
                    });
                    drop(
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
                    );
                });
            }
        })
        .await
}
