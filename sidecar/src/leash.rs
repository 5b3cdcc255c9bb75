//! What ends connections from outside: the server's stop, and a client that is silent too long.
//!
//! A timer of the runtime for every request would cost as much as a lock in memory. A connection's
//! time-out is therefore a time in a cell, which the server looks at every [`LOOK_EVERY`]. Time-outs
//! here are generous, so that does not matter.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::body::{Body, HttpBody};
use futures::task::AtomicWaker;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::Instant;

/// How often [`Leashes::look`] is to be called while there are connections; time-outs may be off by as
/// much.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

const NEVER: u64 = u64::MAX;

/// The leashes of one server.
pub struct Leashes {
    clock: Arc<Coarse>,
    all: Mutex<Vec<Weak<Inner>>>,
}

/// A clock that says when it was last looked at: with every request a real one is too dear.
struct Coarse {
    /// How long a connection may be silent.
    patience_ms: u64,
    began: Instant,
    now_ms: AtomicU64,
}

/// One connection's.
pub struct Leash(Arc<Inner>);

struct Inner {
    clock: Arc<Coarse>,
    /// Milliseconds after the clock began; zero once it has passed.
    due_ms: AtomicU64,
    /// A request is being answered.
    busy: AtomicBool,
    stop: AtomicBool,
    waker: AtomicWaker,
}

impl Leashes {
    /// Leashes of connections that may be silent for so long, with no request being answered.
    pub fn new(patience: Duration) -> Self {
        let patience_ms = patience.as_millis() as u64;
        let clock = Coarse { patience_ms, began: Instant::now(), now_ms: AtomicU64::new(0) };
        Leashes { clock: Arc::new(clock), all: Mutex::default() }
    }

    /// One more.
    pub fn add(&self) -> Leash {
        self.clock.advance();
        let leash = Arc::new(Inner {
            clock: self.clock.clone(),
            due_ms: AtomicU64::new(NEVER),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        self.all().push(Arc::downgrade(&leash));
        Leash(leash)
    }

    /// Wakes the connections whose time-out has passed; forgets those that are no more.
    pub fn look(&self) {
        let now_ms = self.clock.advance();
        self.all().retain(|leash| {
            let Some(leash) = leash.upgrade() else { return false };
            if leash.due_ms.load(Relaxed) <= now_ms {
                leash.due_ms.store(0, Relaxed);
                leash.waker.wake();
            }
            true
        });
    }

    /// Tells every connection to end.
    pub fn stop(&self) {
        for leash in self.all().iter().filter_map(Weak::upgrade) {
            leash.stop.store(true, Relaxed);
            leash.waker.wake();
        }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Inner>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Coarse {
    fn advance(&self) -> u64 {
        let now_ms = self.began.elapsed().as_millis() as u64;
        self.now_ms.store(now_ms, Relaxed);
        now_ms
    }
}

impl Leash {
    /// Whom to wake: the connection's task. Once is enough.
    pub fn tie(&self, waker: &Waker) {
        self.0.waker.register(waker);
    }

    /// Whether the connection is to end.
    pub fn is_stopped(&self) -> bool {
        self.0.stop.load(Relaxed)
    }

    /// Whether the client has been silent too long.
    pub fn is_overdue(&self) -> bool {
        self.0.due_ms.load(Relaxed) == 0
    }

    /// A request has come.
    pub fn begin(&self) {
        self.0.busy.store(true, Relaxed);
        self.0.due_ms.store(NEVER, Relaxed);
    }

    /// It is answered, but for what [`Leash::watch`] sees to.
    pub fn end(&self) {
        self.0.busy.store(false, Relaxed);
    }

    /// An answer that takes time to send: until it is over, the request is being answered.
    pub fn watch(&self, body: Body) -> Body {
        Body::new(Watched { body, leash: Leash(self.0.clone()) })
    }

    /// There is nothing to do for the connection: the client is silent from now on, unless a request
    /// is being answered or it has been silent before.
    pub fn wait(&self) {
        let Inner { clock, due_ms, busy, .. } = &*self.0;
        if due_ms.load(Relaxed) == NEVER && !busy.load(Relaxed) {
            due_ms.store(clock.now_ms.load(Relaxed) + clock.patience_ms, Relaxed);
        }
    }
}

struct Watched {
    body: Body,
    leash: Leash,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.leash.end();
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(90);

    async fn later(leashes: &Leashes, seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        leashes.look();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_ends_when_it_is_looked_at_after_its_time_and_not_before() {
        let leashes = Leashes::new(PATIENCE);
        let leash = leashes.add();
        let woken = tied_flag(&leash);
        leash.wait();
        later(&leashes, 60).await;
        // A byte that is no whole request: the silence goes on.
        leash.wait();
        later(&leashes, 29).await;
        assert!(!leash.is_overdue() && !woken.load(Relaxed));
        later(&leashes, 2).await;
        assert!(leash.is_overdue() && woken.load(Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_longer_and_so_may_its_answer() {
        let leashes = Leashes::new(PATIENCE);
        let leash = leashes.add();
        leash.wait();
        leash.begin();
        leash.wait();
        later(&leashes, 100).await;
        let body = leash.watch(Body::empty());
        leash.wait();
        later(&leashes, 100).await;
        assert!(!leash.is_overdue());
        drop(body);
        leash.wait();
        later(&leashes, 89).await;
        assert!(!leash.is_overdue());
        later(&leashes, 2).await;
        assert!(leash.is_overdue());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_wakes_and_leashes_that_are_no_more_are_forgotten() {
        let leashes = Leashes::new(PATIENCE);
        let leash = leashes.add();
        let woken = tied_flag(&leash);
        leashes.stop();
        assert!(leash.is_stopped() && woken.load(Relaxed));
        drop(leash);
        leashes.look();
        assert!(leashes.all().is_empty());
    }

    /// Whether the connection has been woken.
    fn tied_flag(leash: &Leash) -> Arc<AtomicBool> {
        struct Flag(Arc<AtomicBool>);
        impl futures::task::ArcWake for Flag {
            fn wake_by_ref(flag: &Arc<Self>) {
                flag.0.store(true, Relaxed);
            }
        }
        let woken = Arc::<AtomicBool>::default();
        leash.tie(&futures::task::waker(Arc::new(Flag(woken.clone()))));
        woken
    }
}
