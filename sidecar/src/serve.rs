//! The server: TCP on the loopback interface, or a Unix socket. Bounded in everything a client can
//! make grow.

use std::{
    convert::Infallible, fmt, net::SocketAddr, path::PathBuf, pin::pin, str::FromStr, sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use axum::{Router, body::Body, extract::Request, http::Response, response::IntoResponse};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::guard;

/// Connections at once; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16_384;
/// A client that has not sent its headers by then is cut off. The time begins with the connection, or
/// with the last answer on it, so it is also how long a connection may be idle: longer than clients
/// keep theirs, lest a request meets a connection that is just being closed.
const HEADERS_WITHIN: Duration = Duration::from_secs(90);
/// Headers larger than this are refused.
const MAX_HEADERS: usize = 16 * 1024;
/// Requests under way may go on for so long after the stop.
const DRAIN: Duration = Duration::from_secs(2);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address of the loopback interface.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Listen::Unix(path.into()));
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("\"{text}\" is neither an address such as 127.0.0.1:4140 nor unix:/path")
        })?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{address} is not on the loopback interface: anybody could call it"
            ));
        }
        Ok(Listen::Tcp(address))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "http://{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound listener.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket; its file is removed at the end.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds.
    ///
    /// # Errors
    /// When the address is taken, with what to do about it.
    pub async fn bind(listen: &Listen) -> anyhow::Result<Self> {
        match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).await.with_context(|| {
                    format!("cannot listen on {address}: choose another with --listen")
                })?;
                Ok(Listener::Tcp(listener))
            }
            Listen::Unix(path) => {
                // A socket file outlives its process; a living one still answers.
                if tokio::net::UnixStream::connect(path).await.is_ok() {
                    bail!("another process listens on {}", path.display());
                }
                drop(std::fs::remove_file(path));
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("cannot listen on {}", path.display()))?;
                Ok(Listener::Unix(listener, path.clone()))
            }
        }
    }

    /// Where it listens, with the port that was really taken.
    pub fn local(&self) -> anyhow::Result<Listen> {
        Ok(match self {
            Listener::Tcp(listener) => Listen::Tcp(listener.local_addr()?),
            Listener::Unix(_, path) => Listen::Unix(path.clone()),
        })
    }
}

/// Serves until the token is cancelled, then lets requests under way end.
pub async fn serve(
    listener: Listener,
    app: Router,
    refused: IntCounter,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let permit = permits.clone().acquire_owned().await.context("the server was closed")?;
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener) => accepted,
        };
        let io = match accepted {
            Ok(io) => io,
            Err(error) => {
                // Out of descriptors, or a client that has gone already: not a reason to end.
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let (app, refused, stop) = (app.clone(), refused.clone(), stop.clone());
        connections.spawn(async move {
            connection(io, app, refused, stop).await;
            drop(permit);
        });
    }
    if let Listener::Unix(_, path) = &listener {
        drop(std::fs::remove_file(path));
    }
    connections.close();
    drop(tokio::time::timeout(DRAIN, connections.wait()).await);
    Ok(())
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn accept(listener: &Listener) -> std::io::Result<Box<dyn Io>> {
    Ok(match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Listener::Unix(listener, _) => Box::new(listener.accept().await?.0),
    })
}

async fn connection(io: Box<dyn Io>, app: Router, refused: IntCounter, stop: CancellationToken) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (app, refused) = (app.clone(), refused.clone());
        async move { Ok::<_, Infallible>(answer(app, &refused, request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(MAX_HEADERS)
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(io), service);
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn answer(app: Router, refused: &IntCounter, request: Request<Incoming>) -> Response<Body> {
    if let Err(failure) = guard::check(&request) {
        refused.inc();
        return failure.into_response();
    }
    match app.oneshot(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
