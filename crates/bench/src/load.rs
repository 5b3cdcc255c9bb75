//! Load: keep-alive connections that send the next request when the last one is answered. As lean as
//! it can be, because it shares the machine with what it measures.

use std::path::Path;

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// One connection.
pub struct Connection<S = TcpStream> {
    stream: S,
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
        let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server closed the connection");
            }
            let Some(end) = find(&self.buffer, b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&self.buffer[..end])?;
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .context("no content-length")?
                .parse()?;
            let start = end + 4;
            while self.buffer.len() < start + length {
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    bail!("the server closed the connection");
                }
            }
            let body = std::str::from_utf8(&self.buffer[start..start + length])?;
            if !self.buffer.starts_with(b"HTTP/1.1 200") {
                bail!("{method} {path}: {body}");
            }
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
            if let Some(length) = answer(&self.buffer[at..])? {
                (answered, at) = (answered + 1, at + length);
            } else if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server closed the connection");
            }
        }
        Ok(())
    }

    /// Acquires; the hold.
    pub async fn acquire(&mut self, query: &str) -> anyhow::Result<String> {
        let path = format!("/v1/locks/bench/acquire?{query}");
        let body = self.call("POST", &path).await?;
        let (_, rest) = body.split_once("\"holdId\":\"").context("no holdId")?;
        Ok(rest.split('"').next().unwrap_or_default().to_owned())
    }

    /// Releases.
    pub async fn release(&mut self, hold: &str) -> anyhow::Result<()> {
        self.call("POST", &format!("/v1/locks/bench/release?holdId={hold}")).await.map(drop)
    }
}

/// The length of the first answer, once all of it is there.
fn answer(buffer: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(end) = find(buffer, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&buffer[..end])?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let whole = end + 4 + length.context("no content-length")?.parse::<usize>()?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok((buffer.len() >= whole).then_some(whole))
}

fn find(buffer: &[u8], what: &[u8]) -> Option<usize> {
    buffer.windows(what.len()).position(|window| window == what)
}
