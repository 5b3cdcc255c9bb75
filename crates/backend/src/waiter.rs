//! Acquire with patience: from single attempts to "wait at most so long", on any substrate.
//!
//! One order of events, whatever the store: enter the hub, send the attempt, stand in line, be
//! pushed. A request that nobody waits for any more (time-out, caller gone, unknown outcome) is
//! *settled*: cancelled in the store until the store answers, so that no ghost keeps the lock.
//!
//! Waiters do not poll. [`beats`] sends one beat per key for all of a session's waiters on it; the
//! beat is also the safety net for pushes that were lost.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use holdfast_core::{
    Address, BackendError, Clock, Deadline, Fence, Guarantee, SessionId, Stamp,
    clock::Backoff,
    lock::{Acquire, Attempt, Grant, LockBackend, Push, Renewal},
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::hub::{Hub, Inbox};

mod beats;
mod heir;
mod release;
mod settling;

use beats::{Lines, Place};
pub use heir::Heir;
pub use release::Done;
use settling::{Outcome, Settling};

/// A hold as its holder has it.
pub struct HeldLock {
    /// The fencing token.
    pub fence: Fence,
    /// What the store granted it for.
    pub ttl: Duration,
    /// Until when it may be trusted without a renewal.
    pub deadline: Deadline,
    /// Whether the store knows that the holder knows. An unclaimed hold is renewed soon.
    pub claimed: bool,
    /// Tells when it is lost. Keep it as long as the hold: a retry of the same request that is
    /// given up must not take the hold with it.
    pub inbox: Inbox,
}

/// What became of a request.
pub enum Acquisition {
    /// It is held.
    Held(HeldLock),
    /// Another holds it, and the wait (if any) is over.
    Locked {
        /// When it may be worth to try again.
        retry_after: Duration,
        /// How many wait.
        waiters: u32,
    },
    /// As many wait as may.
    QueueFull {
        /// How many wait.
        waiters: u32,
    },
    /// More permits than one hold of the class can ever have.
    TooMany {
        /// The most that it can.
        most: u32,
    },
    /// The same hold was cancelled before. A new request needs a new hold.
    Cancelled,
}

/// Acquires locks of one backend on behalf of one session.
pub struct LockClient {
    backend: Arc<dyn LockBackend>,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    lines: Arc<Lines>,
    settling: Arc<Settling>,
}

impl LockClient {
    /// A client of `backend` for `session`.
    pub fn new(
        backend: Arc<dyn LockBackend>,
        hub: Arc<Hub>,
        clock: Arc<dyn Clock>,
        session: SessionId,
    ) -> Arc<Self> {
        let lines = Lines::new(backend.clone(), hub.clone(), clock.clone(), session);
        let settling = Settling::new(backend.clone());
        Arc::new(LockClient { backend, hub, clock, lines, settling })
    }

    /// The backend, for renewals, releases and queries.
    pub fn backend(&self) -> &Arc<dyn LockBackend> {
        &self.backend
    }

    /// Acquires, waiting at most `wait`. With `claim`, an offered hold is renewed before it is
    /// returned, so that it has its whole time to live.
    ///
    /// Dropping the future withdraws the request in the background.
    ///
    /// # Errors
    /// Those of [`LockBackend::acquire`]. After any but [`BackendError::Unknown`] the request
    /// certainly holds nothing; an unknown outcome goes on being settled in the background.
    pub async fn acquire(
        &self,
        at: &Address,
        mut request: Acquire,
        wait: Duration,
        claim: bool,
    ) -> Result<Acquisition, BackendError> {
        request.enqueue = !wait.is_zero();
        let until = request.enqueue.then(|| Instant::now() + wait);
        let request = request;
        self.settling.before(&request.hold, wait).await?;
        let inbox = Some(self.hub.register(&request.hold));
        let mut pending = Pending { client: self, at, request: &request, inbox };
        let mut backoff = Backoff::new(Duration::from_millis(50), retry_cap(request.ttl));
        loop {
            let sent = self.clock.now();
            let attempt = match self.backend.acquire_now(at, &request, sent) {
                Some(attempt) => Ok(attempt),
                None => self.backend.acquire(at, &request).await,
            };
            match attempt {
                Ok(Attempt::Granted(grant)) => {
                    let since = grant.since.unwrap_or(sent);
                    return Ok(pending.held(grant, since));
                }
                Ok(Attempt::Queued { position }) => {
                    let place = self.lines.join(at, &request, position, sent);
                    // Few requests wait; the others need not carry the room for it.
                    let turn = Box::pin(self.stand(&mut pending, &request, &place, until, claim));
                    match turn.await? {
                        Turn::Held(held) => return Ok(held),
                        Turn::AskAgain => {}
                        Turn::TimedOut => {
                            drop(place);
                            Box::pin(pending.settle()).await?;
                            let retry_after = Duration::from_millis(request.config.ttl_ms);
                            return Ok(Acquisition::Locked { retry_after, waiters: position - 1 });
                        }
                    }
                }
                Ok(Attempt::Locked { retry_after, waiters }) => {
                    pending.forget();
                    return Ok(Acquisition::Locked { retry_after, waiters });
                }
                Ok(Attempt::QueueFull { waiters }) => {
                    pending.forget();
                    return Ok(Acquisition::QueueFull { waiters });
                }
                Ok(Attempt::TooMany { most }) => {
                    pending.forget();
                    return Ok(Acquisition::TooMany { most });
                }
                Ok(Attempt::Cancelled) => {
                    pending.forget();
                    return Ok(Acquisition::Cancelled);
                }
                Err(error @ BackendError::Unknown(_)) => {
                    Box::pin(pending.settle()).await?;
                    let what = format!("{error}; settled: nothing is held");
                    return Err(BackendError::Unavailable(what));
                }
                Err(error) => {
                    // Nothing was done. A waiter has time to see whether the store comes back.
                    let delay = backoff.next_delay();
                    let too_late = until.is_none_or(|until| Instant::now() + delay >= until);
                    if !error.is_retryable() || too_late {
                        // An earlier round may have left a ticket, or another try of the same request.
                        if request.enqueue {
                            drop(pending)
                        } else {
                            pending.forget()
                        }
                        return Err(error);
                    }
                    sleep(delay).await;
                }
            }
        }
    }

    /// Waits for a push, at a place in the line.
    async fn stand(
        &self,
        pending: &mut Pending<'_>,
        request: &Acquire,
        place: &Place,
        until: Option<Instant>,
        claim: bool,
    ) -> Result<Turn, BackendError> {
        // Who does not wait is never queued.
        let Some(until) = until else { return Ok(Turn::TimedOut) };
        let Ok(push) = timeout_at(until, pending.inbox().recv()).await else {
            return Ok(Turn::TimedOut);
        };
        let grant = match push {
            Push::Granted { grant } => grant,
            Push::Lost | Push::Requeue => return Ok(Turn::AskAgain),
        };
        // A grant that another's transition made began at some time after this ticket was last
        // known to be waiting.
        let since = grant.since.unwrap_or_else(|| place.last_waiting(grant.fence));
        // Nobody has waited for replicas yet: asking again does.
        if !grant.claimed && matches!(self.backend.guarantee(), Guarantee::PrimaryAck(_)) {
            return Ok(Turn::AskAgain);
        }
        let left = Deadline::new(since, grant.ttl).remaining(self.clock.now());
        if grant.claimed || (!claim && left >= grant.ttl / 3) {
            return Ok(Turn::Held(pending.held(grant, since)));
        }
        let sent = self.clock.now();
        let (at, config) = (pending.at, &request.config);
        match self.backend.renew(at, config, &request.hold, request.ttl).await? {
            Renewal::Renewed { ttl } => {
                let grant = Grant { ttl, claimed: true, ..grant };
                Ok(Turn::Held(pending.held(grant, sent)))
            }
            Renewal::Lost => {
                // What is asked next is answered anew: news of before do not count.
                while pending.inbox().recv().now_or_never().is_some() {}
                Ok(Turn::AskAgain)
            }
        }
    }
}

enum Turn {
    Held(Acquisition),
    AskAgain,
    TimedOut,
}

/// A request on its way. Unless it ends in a hold or is known to have left nothing, dropping it
/// settles it in the background.
struct Pending<'a> {
    client: &'a LockClient,
    at: &'a Address,
    request: &'a Acquire,
    inbox: Option<Inbox>,
}

impl Pending<'_> {
    fn inbox(&mut self) -> &mut Inbox {
        // Taken only by what ends the request.
        let Pending { client, request, .. } = *self;
        self.inbox.get_or_insert_with(|| client.hub.register(&request.hold))
    }

    fn held(&mut self, grant: Grant, since: Stamp) -> Acquisition {
        let register = || self.client.hub.register(&self.request.hold);
        let inbox = self.inbox.take().unwrap_or_else(register);
        Acquisition::Held(HeldLock {
            fence: grant.fence,
            ttl: grant.ttl,
            deadline: Deadline::new(since, grant.ttl),
            claimed: grant.claimed,
            inbox,
        })
    }

    /// Ends it without a trace in the store.
    fn forget(&mut self) {
        self.inbox = None;
    }

    /// Cancels in the store and waits for the answer; what takes longer goes on in the background.
    async fn settle(&mut self) -> Result<(), BackendError> {
        match self.settling() {
            Some(outcome) => Settling::in_call(outcome).await,
            None => Ok(()),
        }
    }

    /// Settles it in the background, unless somebody else in this process uses the hold.
    fn settling(&mut self) -> Option<Outcome> {
        let inbox = self.inbox.take()?;
        drop(inbox);
        let Pending { client, at, request, .. } = *self;
        if client.hub.users(&request.hold) > 0 {
            return None;
        }
        client.settling.begin(at, &request.config, &request.hold)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        drop(self.settling());
    }
}

/// The longest pause between two tries.
fn retry_cap(ttl: Duration) -> Duration {
    (ttl / 3).clamp(Duration::from_millis(100), Duration::from_secs(5))
}
