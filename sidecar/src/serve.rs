//! The server: TCP on the loopback interface, or a Unix socket. Bounded in everything a client can
//! make grow.

use std::{
    fmt,
    future::{Future, poll_fn},
    mem,
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    str::FromStr,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use anyhow::{Context, bail};
use futures::TryFutureExt;
use http_body_util::Either;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    leash::{LOOK_EVERY, Leash, Leashes},
    routes::direct::App,
};

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
                if UnixStream::connect(path).await.is_ok() {
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
    app: Arc<App>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = tokio_util::task::TaskTracker::new();
    let (leashes, mut look) = (Leashes::new(HEADERS_WITHIN), interval(LOOK_EVERY));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            _ = look.tick(), if !connections.is_empty() => {
                leashes.look();
                continue;
            }
            accepted = accept(&listener, &permits) => accepted,
        };
        let app = app.clone();
        match accepted {
            Ok((Io::Tcp(io), permit)) => {
                connections.spawn(connection(io, app, leashes.add(), permit))
            }
            Ok((Io::Unix(io), permit)) => {
                connections.spawn(connection(io, app, leashes.add(), permit))
            }
            Err(error) => {
                // Out of descriptors, or a client that has gone already: not a reason to end.
                tracing::debug!(%error, "accept failed");
                sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
    }
    if let Listener::Unix(_, path) = &listener {
        drop(std::fs::remove_file(path));
    }
    leashes.stop();
    connections.close();
    drop(tokio::time::timeout(DRAIN, connections.wait()).await);
    Ok(())
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn accept(
    listener: &Listener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(Io, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let io = match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Io::Tcp(stream)
        }
        Listener::Unix(listener, _) => Io::Unix(listener.accept().await?.0),
    };
    Ok((io, permit))
}

async fn connection(
    io: impl AsyncRead + AsyncWrite + Unpin,
    app: Arc<App>,
    leash: Leash,
    _permit: OwnedSemaphorePermit,
) {
    let service = service_fn(|request: Request<Incoming>| {
        leash.begin();
        app.answer(request).map_ok(|mut answer| {
            match answer.body_mut() {
                // Written at once.
                Either::Left(_) => leash.end(),
                Either::Right(body) => *body = leash.watch(mem::take(body)),
            }
            answer
        })
    });
    let serving = http1::Builder::new()
        // The leash does it.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEADERS)
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(io), service);
    let (mut serving, mut tied, mut ending) = (pin!(serving), false, false);
    let ended = poll_fn(|cx| {
        if !tied {
            leash.tie(cx.waker());
            tied = true;
        }
        if leash.is_overdue() {
            return Poll::Ready(Ok(()));
        }
        if !ending && leash.is_stopped() {
            serving.as_mut().graceful_shutdown();
            ending = true;
        }
        let ended = serving.as_mut().poll(cx);
        if ended.is_pending() {
            leash.wait();
        }
        ended
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection broke");
    }
}
