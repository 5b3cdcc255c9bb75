//! Locks on a majority of several independent servers (Redlock).
//!
//! Each server is a [`RedisLocks`] of its own: the same transitions, epoch guard and pushes. What the
//! answers mean together is decided by [`holdfast_core::lock::redlock`]; here they are asked for.
//!
//! - `attempt`: one request for a lock, from the first vote to a fence that a majority stands at.
//! - `open`: requests whose outcome on a server is not known. That server has no vote for the same hold
//!   until it has been settled.
//! - `line`: who waits here. The servers have no queue, in which two requests could each be first on
//!   some and so hold each other up for ever.
//!
//! A server that may have lost what it knew is refused by its epoch guard and counts as absent,
//! whatever the consistency of a class is.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, ClassName, Clock, Fence, Guarantee, HoldId, Key, Kind, SessionId,
    Substrate,
    lock::{
        Acquire, Attempt, Beat, HolderView, LockBackend, LockConfig, LockView, Release, Renewal,
        Which,
        redlock::{self, Answers},
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use self::{line::Lines, open::Open, turns::Turns};
use super::{RedisLocks, client::Client, config::RedisConfig, epoch::KnownEpoch, pushes::Topics};
use crate::hub::Hub;

mod attempt;
mod line;
mod open;
mod turns;

/// The longest that answers are waited for when no time to live runs meanwhile: servers that have to be
/// connected to first among them.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long servers that are slower than most are waited for at the least, where all of them are wanted.
const LOOK_AROUND: Duration = Duration::from_millis(10);
/// A session that waits here has no ticket anywhere else; nothing is to be learnt from its beats.
const NEVER: Duration = Duration::from_secs(60);

/// Locks of one namespace on a majority of servers, for one session.
///
/// # Guarantees
/// Those of [`LockBackend`] while a majority of the servers answers and has not lost what it knew: so
/// fences are unique and in order whatever clocks do, and the same request again gets the same grant.
/// After servers have come and gone it may get a higher fence.
///
/// # Caveats
/// No order among waiters of different processes. The number of those who wait, and its bound, are
/// those of this process. A hold may be *told* lost when only some servers took it by force.
pub struct Redlocks {
    inner: Arc<Inner>,
    _dispatcher: AbortOnDropHandle<()>,
}

struct Inner {
    servers: Vec<Arc<RedisLocks>>,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
    open: Open,
    turns: Turns,
    lines: Lines,
}

/// Answers as they come in, each with the number of its server.
type Incoming<T> = mpsc::UnboundedReceiver<(usize, Result<T, BackendError>)>;

/// When enough is known.
#[derive(Clone, Copy, PartialEq)]
enum Until {
    /// As soon as there is a decision.
    Decided,
    /// As long again, so that all who are not slow have answered.
    Graced,
}

impl Redlocks {
    /// Locks of `namespace` for `session`, whose pushes go to `hub`. The servers are those at
    /// `addresses`, reached as `config` says, and have these names in the epoch's runs.
    ///
    /// # Errors
    /// When the servers are not an odd number from three up, or one cannot be used at all.
    pub fn connect(
        config: &RedisConfig,
        addresses: &[String],
        namespace: &str,
        (session, hub, clock): (SessionId, Arc<Hub>, Arc<dyn Clock>),
        epoch: &watch::Receiver<Option<KnownEpoch>>,
    ) -> Result<Arc<Self>, BackendError> {
        if addresses.len() < 3 || addresses.len().is_multiple_of(2) {
            let what = format!("Redlock needs 3 or 5 servers; got {}", addresses.len());
            return Err(BackendError::Unavailable(what));
        }
        let (wanted, _) = watch::channel(BTreeSet::new());
        let (heard, mut hearing) = mpsc::unbounded_channel();
        let mut servers = Vec::with_capacity(addresses.len());
        for (server, address) in addresses.iter().enumerate() {
            // A majority is what acknowledges a grant.
            let config = config.at(address)?.with_ack(None);
            let topics = Topics { wanted: wanted.subscribe(), heard: heard.clone(), server };
            let (client, voter) = (Arc::new(Client::new(config)), Some((address.clone(), topics)));
            let (session, hub, epoch) = (session.clone(), hub.clone(), epoch.clone());
            servers.push(RedisLocks::as_voter(client, namespace, session, hub, epoch, voter)?);
        }
        let lines = Lines::new(hub.clone(), servers.len(), wanted);
        let (open, turns) = (Open::default(), Turns::default());
        let inner = Arc::new(Inner { servers, hub, clock, open, turns, lines });
        let told = inner.clone();
        let dispatcher = tokio::spawn(async move {
            while let Some((server, channel)) = hearing.recv().await {
                told.lines.freed(server, &channel);
            }
        });
        Ok(Arc::new(Redlocks { inner, _dispatcher: AbortOnDropHandle::new(dispatcher) }))
    }

    /// Waits until pushes of all servers are heard, at most so long; whether they are.
    pub async fn subscribed(&self, within: Duration) -> bool {
        for server in &self.inner.servers {
            if !server.subscribed(within).await {
                return false;
            }
        }
        true
    }
}

impl Inner {
    /// Asks all servers at once. Who is not waited for any more goes on being asked.
    fn ask<T, F>(&self, ask: impl Fn(usize, Arc<RedisLocks>) -> F) -> Incoming<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, BackendError>> + Send + 'static,
    {
        let (answers, incoming) = mpsc::unbounded_channel();
        for (server, locks) in self.servers.iter().enumerate() {
            let (asked, answers) = (ask(server, locks.clone()), answers.clone());
            tokio::spawn(async move {
                // Nobody may be waiting any more.
                let _ = answers.send((server, asked.await));
            });
        }
        incoming
    }

    /// Waits for answers until they decide; `decide` is told when no more will come.
    async fn gather<T, R>(
        &self,
        mut incoming: Incoming<T>,
        until: Until,
        decide: impl Fn(&Answers<T>, bool) -> Option<Result<R, BackendError>>,
    ) -> Result<R, BackendError> {
        let began = Instant::now();
        let (mut over, mut is_graced) = (began + PATIENCE, false);
        let mut answers: Vec<_> = self.servers.iter().map(|_| None).collect();
        loop {
            match decide(&answers, false) {
                Some(decision) if until == Until::Decided => return decision,
                Some(_) if !is_graced => {
                    is_graced = true;
                    over = Instant::now() + began.elapsed().max(LOOK_AROUND);
                }
                _ => {}
            }
            match timeout_at(over, incoming.recv()).await {
                Ok(Some((server, answer))) => answers[server] = Some(answer),
                Ok(None) | Err(_) => break,
            }
        }
        decide(&answers, true).unwrap_or_else(|| Err(redlock::shortage(&answers)))
    }
}

#[async_trait]
impl LockBackend for Redlocks {
    fn substrate(&self) -> Substrate {
        Substrate::Redlock
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::Majority(u8::try_from(self.inner.servers.len()).unwrap_or(u8::MAX))
    }

    async fn acquire(&self, at: &Address, request: &Acquire) -> Result<Attempt, BackendError> {
        let Inner { lines, turns, .. } = &*self.inner;
        // Behind others of this process: the first of them asks for all.
        if request.enqueue
            && let Some(waiting) = lines.behind(at, request)
        {
            return Ok(waiting);
        }
        let turn = turns.take(&request.hold).await;
        let attempt = self.inner.attempt(at, request).await;
        drop(turn);
        match attempt {
            Ok(Attempt::Locked { retry_after, .. }) if request.enqueue => {
                Ok(lines.enter(&self.inner, at, request, retry_after))
            }
            // What is open is being settled, and whoever gives up settles the rest: it still waits.
            Err(BackendError::Unknown(_)) if request.enqueue => {
                Ok(lines.enter(&self.inner, at, request, redlock::patience(request.ttl)))
            }
            other => {
                let granted = match &other {
                    Ok(Attempt::Granted(grant)) => Some(grant.ttl),
                    _ => None,
                };
                lines.leave(at, &request.hold, granted);
                other
            }
        }
    }

    async fn renew(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        ttl: Duration,
    ) -> Result<Renewal, BackendError> {
        let what = Arc::new((at.clone(), config.clone(), hold.clone()));
        let incoming = self.inner.ask(|_, locks| {
            let what = what.clone();
            async move { locks.renew(&what.0, &what.1, &what.2, ttl).await }
        });
        let renewal = self.inner.gather(incoming, Until::Decided, redlock::renewal).await?;
        if renewal == Renewal::Lost {
            // What is left of it on some servers would only be in the way.
            drop(self.inner.ask(|_, locks| {
                let what = what.clone();
                async move { locks.release_and_tell(&what.0, &what.1, &what.2).await }
            }));
        }
        Ok(renewal)
    }

    async fn release(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<Release, BackendError> {
        let what = Arc::new((at.clone(), config.clone(), hold.clone()));
        let incoming = self.inner.ask(|server, locks| {
            let (what, inner) = (what.clone(), self.inner.clone());
            async move {
                let (at, config, hold) = &*what;
                // A request that may still arrive there must find that it came too late.
                if inner.open.is_open(hold, server) {
                    let settled = inner.settle_once(server, at, config, hold).await;
                    if settled.is_err() {
                        inner.settle(server, at, config, hold);
                    }
                    return settled.map(|()| Release::NotHeld);
                }
                locks.release_and_tell(at, config, hold).await
            }
        });
        self.inner.gather(incoming, Until::Decided, redlock::release).await
    }

    async fn cancel(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError> {
        self.inner.lines.leave(at, hold, None);
        let what = Arc::new((at.clone(), config.clone(), hold.clone()));
        let incoming = self.inner.ask(|server, _| {
            let (what, inner) = (what.clone(), self.inner.clone());
            async move {
                let (at, config, hold) = &*what;
                let settled = inner.settle_once(server, at, config, hold).await;
                if settled.is_err() && inner.open.is_open(hold, server) {
                    inner.settle(server, at, config, hold);
                }
                settled
            }
        });
        self.inner.gather(incoming, Until::Decided, redlock::done).await
    }

    async fn beat(&self, _: &Address, _: &LockConfig, _: &SessionId) -> Result<Beat, BackendError> {
        let (offered, last_fence) = (Vec::new(), Fence::new(0));
        Ok(Beat { offered, tickets: u32::MAX, next: NEVER, last_fence })
    }

    async fn query(&self, at: &Address, _: &LockConfig) -> Result<LockView, BackendError> {
        let place = Arc::new(at.clone());
        let incoming = self.inner.ask(|_, locks| {
            let at = place.clone();
            async move { locks.seen(&at).await }
        });
        let decide = |answers: &Answers<_>, is_over| {
            redlock::done(answers, is_over).map(|done| done.and_then(|()| redlock::view(answers)))
        };
        let mut view = self.inner.gather(incoming, Until::Graced, decide).await?;
        (view.waiters, view.queue) = self.inner.lines.waiting(at);
        Ok(view)
    }

    async fn newest_fence(&self, at: &Address, config: &LockConfig) -> Result<Fence, BackendError> {
        let what = Arc::new((at.clone(), config.clone()));
        let incoming = self.inner.ask(|_, locks| {
            let what = what.clone();
            async move { locks.standing(&what.0, &what.1).await }
        });
        let decide = |answers: &Answers<_>, is_over| {
            redlock::done(answers, is_over).map(|done| done.and_then(|()| redlock::newest(answers)))
        };
        self.inner.gather(incoming, Until::Graced, decide).await
    }

    /// A hold may have another fence on each server, until it is raised: none is named by it here.
    async fn force_release_holds(
        &self,
        at: &Address,
        config: &LockConfig,
        which: Which,
    ) -> Result<Vec<HolderView>, BackendError> {
        if which != Which::All {
            let what = format!("{at} has one hold at the most: take it without naming its fence");
            return Err(BackendError::NotFound(what));
        }
        let what = Arc::new((at.clone(), config.clone()));
        let incoming = self.inner.ask(|_, locks| {
            let what = what.clone();
            async move {
                let taken = locks.force_release(&what.0, &what.1).await?;
                if taken.is_some() {
                    locks.tell_freed(&what.0).await;
                }
                Ok(taken)
            }
        });
        let decide = |answers: &Answers<_>, is_over| {
            redlock::done(answers, is_over).map(|done| done.and_then(|()| redlock::forced(answers)))
        };
        let taken = self.inner.gather(incoming, Until::Graced, decide).await?;
        if let Some(holder) = &taken {
            // Past the fence of whom it was taken from, on servers too that did not have the hold.
            let to = Fence::new(holder.fence.get() + 1);
            let incoming = self.inner.ask(|_, locks| {
                let what = what.clone();
                async move { locks.raise(&what.0, &what.1, None, to).await }
            });
            // Not done where somebody has been granted meanwhile, with a fence of its own.
            let raised = self.inner.gather(incoming, Until::Decided, redlock::done).await;
            if let Err(error) = raised {
                tracing::debug!(%at, %error, "the fence is raised by the next grant only");
            }
        }
        Ok(taken.into_iter().collect())
    }

    async fn list(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
        config: &LockConfig,
        limit: usize,
    ) -> Result<Vec<(Key, LockView)>, BackendError> {
        let what = Arc::new((namespace.to_owned(), class.clone(), config.clone()));
        let incoming = self.inner.ask(|_, locks| {
            let what = what.clone();
            async move { locks.list(kind, &what.0, &what.1, &what.2, limit).await }
        });
        let keys = |answers: &Answers<Vec<(Key, LockView)>>| {
            let lists = answers.iter().flatten().flatten();
            lists.flatten().map(|(key, _)| key.clone()).collect::<BTreeSet<Key>>()
        };
        let decide = |answers: &Answers<_>, is_over| {
            redlock::done(answers, is_over).map(|done| done.map(|()| keys(answers)))
        };
        let keys = self.inner.gather(incoming, Until::Graced, decide).await?;
        let mut found = Vec::new();
        for key in keys {
            let (class, namespace) = (class.clone(), namespace.into());
            let at = Address { kind, namespace, class, key: key.clone() };
            let view = self.query(&at, config).await?;
            if view.holder.is_some() || view.waiters > 0 {
                found.push((key, view));
            }
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }
}
