//! Calls of a sidecar's API, over TCP or its Unix socket.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use holdfast_wire::Problem;
use http::{Method, Request, header::HOST};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// Which sidecar.
#[derive(Clone, Debug, clap::Args)]
pub struct SidecarArgs {
    /// The sidecar's address: http://127.0.0.1:4140, or unix:/path.
    #[arg(long, env = "HOLDFAST_URL", default_value = "http://127.0.0.1:4140")]
    pub url: String,
}

/// A sidecar.
#[derive(Clone, Debug)]
pub struct Sidecar {
    at: At,
    url: String,
}

#[derive(Clone, Debug)]
enum At {
    Tcp(String),
    Unix(PathBuf),
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The sidecar said why.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// No answer: nobody knows what became of the request.
    #[error("the sidecar at {url} does not answer: {why}")]
    Silent {
        /// Which.
        url: String,
        /// Why.
        why: String,
    },
}

impl SidecarArgs {
    /// The sidecar at that address.
    ///
    /// # Errors
    /// When it is not an address.
    pub fn sidecar(&self) -> anyhow::Result<Sidecar> {
        let at = if let Some(path) = self.url.strip_prefix("unix:") {
            At::Unix(path.into())
        } else if let Some(rest) = self.url.strip_prefix("http://") {
            let authority = rest.trim_end_matches('/');
            if authority.is_empty() || authority.contains('/') {
                bail!("--url is http://HOST:PORT or unix:/path; got \"{}\"", self.url);
            }
            let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
            At::Tcp(if has_port { authority.into() } else { format!("{authority}:80") })
        } else {
            bail!("--url is http://HOST:PORT or unix:/path; got \"{}\"", self.url);
        };
        Ok(Sidecar { at, url: self.url.clone() })
    }
}

impl Sidecar {
    /// `GET path`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        self.call(Method::GET, path, Duration::from_secs(10)).await
    }

    /// `POST path`, whose fields are in its query.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        within: Duration,
    ) -> Result<T, CallError> {
        self.call(Method::POST, path, within).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        within: Duration,
    ) -> Result<T, CallError> {
        let silent = |why: String| CallError::Silent { url: self.url.clone(), why };
        let answer = timeout(within, self.exchange(method, path)).await;
        let (status, body) = answer
            .map_err(|_| silent(format!("no answer within {within:?}")))?
            .map_err(|error| silent(format!("{error:#}")))?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| silent(format!("an answer that is not understood: {error}")));
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(CallError::Problem(problem.into())),
            Err(_) => Err(silent(format!("HTTP {status} from something that is not a sidecar"))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
    ) -> anyhow::Result<(http::StatusCode, Bytes)> {
        match &self.at {
            At::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                exchange(stream, authority, method, path).await
            }
            At::Unix(socket) => {
                exchange(UnixStream::connect(socket).await?, "localhost", method, path).await
            }
        }
    }
}

async fn exchange<S>(
    stream: S,
    host: &str,
    method: Method,
    path: &str,
) -> anyhow::Result<(http::StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .body(Empty::<Bytes>::new())
        .context("not a path")?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    Ok((status, body))
}

/// A text as part of a query.
pub fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
