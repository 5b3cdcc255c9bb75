//! A TCP relay in front of the API server: holds a request back, loses a reply, swallows everything.
//! It forwards TLS records and cannot read them; what is as long as an acquiring write, or one by
//! force, is taken for one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

#[derive(Default)]
pub struct Faults {
    /// So many writes pass before the next one is held back.
    pub spare: AtomicU64,
    /// The next write goes on only after so many milliseconds, even if the client is gone.
    pub hold_request_ms: AtomicU64,
    /// Every reply is late by so many milliseconds.
    pub late_reply_ms: AtomicU64,
    /// The reply to the next write is lost, with its connection.
    pub lose_reply: AtomicU64,
    /// Non-zero: nothing passes in either direction.
    pub blackhole: AtomicU64,
    /// Ends every connection that there is.
    pub cut: Notify,
    /// How many faults have fired.
    pub fired: AtomicU64,
    /// How many held requests have been delivered.
    pub delivered: AtomicU64,
}

/// A handshake, a read, a renewal, a release: all are shorter than the write of a grant (over 800) or
/// of a release by force (over 600).
const WRITE: usize = 590;

pub struct Relay {
    pub port: u16,
    pub faults: Arc<Faults>,
}

impl Relay {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (faults, own) = (Arc::<Faults>::default(), listener.local_addr().unwrap().port());
        let shared = faults.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, port, shared.clone()));
            }
        });
        Relay { port: own, faults }
    }

    /// Waits until a request that was held back has been delivered.
    pub async fn delivery(&self) {
        until("no held request was delivered", &self.faults.delivered).await;
    }

    /// Waits until a fault has fired.
    pub async fn fault(&self) {
        until("no fault has fired", &self.faults.fired).await;
    }
}

async fn until(or_else: &str, counter: &AtomicU64) {
    for _ in 0..1_000 {
        if counter.load(SeqCst) > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{or_else}");
}

async fn serve(client: TcpStream, port: u16, faults: Arc<Faults>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let replies = faults.clone();
    let has_written = Arc::new(AtomicBool::new(false));
    let written = has_written.clone();
    let back = tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
            if replies.blackhole.load(SeqCst) > 0 {
                replies.fired.fetch_add(1, SeqCst);
                continue;
            }
            if written.load(SeqCst) && replies.lose_reply.swap(0, SeqCst) > 0 {
                replies.fired.fetch_add(1, SeqCst);
                return;
            }
            let late = replies.late_reply_ms.load(SeqCst);
            if late > 0 {
                replies.fired.fetch_add(1, SeqCst);
                tokio::time::sleep(Duration::from_millis(late)).await;
            }
            // A client that has gone away must not end what it has sent.
            if to_client.write_all(&buffer[..n]).await.is_err() {
                continue;
            }
        }
    });
    let mut buffer = vec![0; 65_536];
    let cut = faults.cut.notified();
    tokio::pin!(cut);
    loop {
        let n = tokio::select! {
            read = from_client.read(&mut buffer) => match read {
                Ok(n @ 1..) => n,
                _ => break,
            },
            () = &mut cut => break,
        };
        if faults.blackhole.load(SeqCst) > 0 {
            faults.fired.fetch_add(1, SeqCst);
            continue;
        }
        let is_write = n >= WRITE;
        has_written.fetch_or(is_write, SeqCst);
        let is_spared =
            || faults.spare.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        let is_meant = is_write && !is_spared();
        let held = if is_meant { faults.hold_request_ms.swap(0, SeqCst) } else { 0 };
        if held > 0 {
            faults.fired.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(held)).await;
        }
        if to_server.write_all(&buffer[..n]).await.is_err() {
            break;
        }
        if held > 0 {
            // Time for the server to carry it out before its client's going away is passed on.
            tokio::time::sleep(Duration::from_millis(200)).await;
            faults.delivered.fetch_add(1, SeqCst);
        }
    }
    drop(to_server);
    drop(back.await);
}
