//! What ends connections from outside: the server's stop, and a client that is silent too long.
//!
//! hyper times a client's headers with a timer that it makes and drops with every request. A timer
//! of the runtime is too dear for that, so [`Leash`] is a cheap one: a time in a cell, which the
//! server looks at every [`LOOK_EVERY`]. Time-outs here are generous, so that does not matter.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::task::AtomicWaker;
use hyper::rt::{Sleep, Timer};
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
    began: Instant,
    now_ms: AtomicU64,
}

/// One connection's.
#[derive(Clone)]
pub struct Leash(Arc<Inner>);

struct Inner {
    clock: Arc<Coarse>,
    /// Milliseconds after the clock began; zero once it has passed.
    due_ms: AtomicU64,
    stop: AtomicBool,
    waker: AtomicWaker,
}

impl Default for Leashes {
    fn default() -> Self {
        let clock = Coarse { began: Instant::now(), now_ms: AtomicU64::new(0) };
        Leashes { clock: Arc::new(clock), all: Mutex::default() }
    }
}

impl Leashes {
    /// One more.
    pub fn add(&self) -> Leash {
        self.clock.advance();
        let leash = Arc::new(Inner {
            clock: self.clock.clone(),
            due_ms: AtomicU64::new(NEVER),
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
}

#[allow(clippy::disallowed_types, reason = "hyper's trait; a time-out, not a hold's deadline")]
impl Timer for Leash {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn now(&self) -> std::time::Instant {
        let clock = &self.0.clock;
        (clock.began + Duration::from_millis(clock.now_ms.load(Relaxed))).into_std()
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        let due = Instant::from_std(deadline).saturating_duration_since(self.0.clock.began);
        self.0.due_ms.store((due.as_millis() as u64).max(1), Relaxed);
        Box::pin(Silence(self.0.clone()))
    }
}

/// Ready when the client has been silent too long.
struct Silence(Arc<Inner>);

impl Sleep for Silence {}

impl Future for Silence {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.0.due_ms.load(Relaxed) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.0.due_ms.store(NEVER, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, poll};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silence_ends_when_it_is_looked_at_after_its_time_and_not_before() {
        let leashes = Leashes::default();
        let leash = leashes.add();
        let mut silence = leash.sleep(Duration::from_secs(90));
        let mut task = std::future::poll_fn(|cx| {
            leash.tie(cx.waker());
            silence.as_mut().poll(cx)
        });
        assert!(poll!(&mut task).is_pending());
        tokio::time::advance(Duration::from_secs(89)).await;
        leashes.look();
        assert!(poll!(&mut task).is_pending());
        tokio::time::advance(Duration::from_secs(2)).await;
        leashes.look();
        assert!(task.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_that_was_broken_ends_nothing_and_leashes_are_forgotten() {
        let leashes = Leashes::default();
        let leash = leashes.add();
        drop(leash.sleep(Duration::from_secs(90)));
        tokio::time::advance(Duration::from_secs(100)).await;
        leashes.look();
        let mut later = leash.sleep(Duration::from_secs(90));
        assert!(poll!(later.as_mut()).is_pending());
        leashes.stop();
        assert!(leash.is_stopped());
        drop((later, leash));
        leashes.look();
        assert!(leashes.all().is_empty());
    }
}
