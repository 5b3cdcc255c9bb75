//! Load: keep-alive connections that send the next request when the last one is answered. As lean as
//! it can be, because it shares the machine with what it measures.

use std::{ops::Range, path::Path};

use anyhow::{Context, bail};
use memchr::memmem;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

const OK: &[u8] = b"HTTP/1.1 200";

/// One connection.
pub struct Connection<S = TcpStream> {
    stream: S,
    /// The request, then its answer.
    buffer: Vec<u8>,
}

impl Connection<TcpStream> {
    /// Connects.
    pub async fn open(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::with_capacity(4_096) })
    }
}

impl Connection<UnixStream> {
    /// Connects to a Unix socket.
    pub async fn open_unix(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        Ok(Connection { stream, buffer: Vec::with_capacity(4_096) })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Sends a request and returns the answer's body. Anything but 200 is an error.
    pub async fn call(&mut self, method: &str, path: &str) -> anyhow::Result<&str> {
        self.buffer.clear();
        for part in [method, " ", path, " HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
            self.buffer.extend_from_slice(part.as_bytes());
        }
        self.stream.write_all(&self.buffer).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server closed the connection");
            }
            let Some(body) = answer(&self.buffer)? else { continue };
            if self.buffer.len() < body.end {
                continue;
            }
            let is_ok = self.buffer.starts_with(OK);
            let body = std::str::from_utf8(self.buffer.get(body).unwrap_or_default())?;
            anyhow::ensure!(is_ok, "{method} {path}: {body}");
            return Ok(body);
        }
    }

    /// Sends so many requests at once, and waits for the answers of all. Anything but 200 is an error.
    pub async fn pipeline(&mut self, method: &str, path: &str, many: usize) -> anyhow::Result<()> {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").repeat(many);
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.clear();
        let (mut answered, mut at) = (0, 0);
        while answered < many {
            let rest = &self.buffer[at..];
            match answer(rest)? {
                Some(body) if body.end <= rest.len() => {
                    anyhow::ensure!(rest.starts_with(OK), "{}", String::from_utf8_lossy(rest));
                    (answered, at) = (answered + 1, at + body.end);
                }
                _ if self.stream.read_buf(&mut self.buffer).await? == 0 => {
                    bail!("the server closed the connection");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Acquires; the hold.
    pub async fn acquire(&mut self, query: &str) -> anyhow::Result<String> {
        let path = format!("/v1/locks/bench/acquire?{query}");
        let body = self.call("POST", &path).await?;
        const FIELD: &str = "\"holdId\":\"";
        let start = memmem::find(body.as_bytes(), FIELD.as_bytes()).context("no holdId")?;
        let rest = body.get(start + FIELD.len()..).unwrap_or_default();
        Ok(rest.split('"').next().unwrap_or_default().to_owned())
    }

    /// Releases.
    pub async fn release(&mut self, hold: &str) -> anyhow::Result<()> {
        self.call("POST", &format!("/v1/locks/bench/release?holdId={hold}")).await.map(drop)
    }
}

/// Where the body of the first answer lies, once all of its head is there.
fn answer(buffer: &[u8]) -> anyhow::Result<Option<Range<usize>>> {
    let Some(end) = memmem::find(buffer, b"\r\n\r\n") else { return Ok(None) };
    const FIELD: &[u8] = b"content-length: ";
    let head = &buffer[..end];
    let at = memmem::find(head, FIELD).context("no content-length")? + FIELD.len();
    let digits = head[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |length, digit| 10 * length + usize::from(digit - b'0'));
    Ok(Some(end + 4..end + 4 + length))
}
