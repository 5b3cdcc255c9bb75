//! The server of the gRPC adapters, bounded like the HTTP one; and what a failure is there.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use futures::stream::unfold;
use holdfast_peers::tonic::{
    Code as Grpc, Status,
    body::Body,
    server::NamedService,
    transport::{Server, server::Connected},
};
use holdfast_wire::Code;
use hyper::{Request, Response};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::taken;
use crate::error::Failure;

/// Larger messages are refused.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Connections at once; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 4_096;
/// Requests under way at once on one connection.
const MAX_STREAMS: u32 = 1_024;
/// Headers larger than this are refused.
const MAX_HEADERS: u32 = 16 * 1024;
/// A connection on which nothing came for so long is asked by the kernel whether it lives, three times
/// at this distance, and is closed without an answer. (HTTP/2's own pings make every frame dearer.)
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// Requests under way may go on for so long after the stop.
const DRAIN: Duration = Duration::from_secs(2);

/// Binds, and returns the address that was taken and what serves it until the token is cancelled.
///
/// # Errors
/// When the address is taken, with what to do about it.
pub(super) async fn serve<S>(
    word: &str,
    at: SocketAddr,
    service: S,
    stop: CancellationToken,
) -> anyhow::Result<(SocketAddr, impl Future<Output = anyhow::Result<()>> + use<S>)>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let listener =
        TcpListener::bind(at).await.with_context(|| format!("{} ({at})", taken(word)))?;
    let local = listener.local_addr()?;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let incoming = unfold((listener, permits), |(listener, permits)| async move {
        let accepted = accept(&listener, &permits).await;
        if let Err(error) = &accepted {
            // Out of descriptors, or a client that has gone already: not a reason to end.
            tracing::debug!(%error, "accept failed");
            sleep(Duration::from_millis(10)).await;
        }
        Some((accepted, (listener, permits)))
    });
    let serving = async move {
        let serving = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADERS)
            .serve_with_incoming_shutdown(service, incoming, stop.clone().cancelled_owned());
        tokio::select! {
            ended = serving => ended.context("a gRPC server ended"),
            () = async { stop.cancelled().await; sleep(DRAIN).await } => Ok(()),
        }
    };
    Ok((local, serving))
}

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<Counted> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
    SockRef::from(&stream).set_tcp_keepalive(&probes.with_retries(PROBES))?;
    Ok(Counted { stream, _permit: permit })
}

/// A connection that counts until it is closed.
struct Counted {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Counted {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A failure as gRPC says it: the nearest code, and the same sentence.
pub(super) fn status(failure: &Failure) -> Status {
    let problem = &failure.0;
    let code = match problem.code {
        Code::ClassNotFound | Code::NotFound => Grpc::NotFound,
        Code::Forbidden | Code::BackendForbidden => Grpc::PermissionDenied,
        Code::TooMany | Code::QueueFull | Code::QuotaExceeded => Grpc::ResourceExhausted,
        Code::BadRequest
        | Code::InvalidField
        | Code::KeyNotAllowed
        | Code::CostTooLarge
        | Code::TooLarge
        | Code::NotJson
        | Code::Misdirected
        | Code::MethodNotAllowed => Grpc::InvalidArgument,
        Code::Locked | Code::NotLeading | Code::HoldLost | Code::Fenced => Grpc::FailedPrecondition,
        Code::Epoch
        | Code::BackendUnavailable
        | Code::OutcomeUnknown
        | Code::NotProvisioned
        | Code::NotReady => Grpc::Unavailable,
        Code::Internal => Grpc::Internal,
    };
    Status::new(code, problem.detail.clone())
}
