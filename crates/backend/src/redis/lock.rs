//! Locks in Redis: encodes a transition's arguments, runs it, decodes its reply. The rules are in
//! `lua/`.

use std::{
    future::Future,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, ClassName, Fence, Guarantee, HoldId, Key, Kind, SessionId, Substrate,
    lock::{
        Acquire, Attempt, Beat, Grant, HolderView, LockBackend, LockConfig, LockView, Passed,
        Policy, Push, Release, Renewal, Which,
    },
    queue::Ticket,
};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{
    acked::Acked,
    client::Client,
    config::RedisConfig,
    epoch::KnownEpoch,
    keys::{self, ObjectKeys},
    policy::{MAX_MS, Policies, ms_of},
    pushes::{Listener, PushCounts, Topics},
    reply::{Reply, unexpected},
    scripts::Transition,
};
use crate::hub::Hub;

mod epoch;
mod read;

pub(super) use read::{forced_args, read_fence, read_grant, read_holders};
use read::{read_first, read_offer, read_release};

/// Locks of one namespace in one Redis, for one session.
///
/// # Guarantees
/// Those of [`LockBackend`], as long as the store loses nothing. When it has (a restart, a failover,
/// a flush), the first transition finds its epoch in doubt and does nothing.
///
/// # Caveats
/// [`LockBackend::list`] needs SCAN, which a tenant's user may not run: it would show the keys of
/// others.
pub struct RedisLocks {
    pub(super) client: Arc<Client>,
    pub(super) acked: Option<Acked>,
    hub: Arc<Hub>,
    session: SessionId,
    pub(super) namespace: Arc<str>,
    marker: String,
    pub(super) channel_prefix: String,
    epoch: watch::Receiver<Option<KnownEpoch>>,
    policies: Policies<Policy>,
    in_doubt: AtomicBool,
    /// Its name among several servers that vote: in doubt it has no vote, whatever its class says.
    voter: Option<String>,
    counts: Arc<PushCounts>,
    subscribed: watch::Receiver<bool>,
    _listener: AbortOnDropHandle<()>,
}

impl RedisLocks {
    /// Locks of `namespace` for `session`, whose pushes go to `hub`. Connects in the background and
    /// whenever it must: a store that is down now may be up later.
    ///
    /// # Errors
    /// When the configuration cannot be used at all.
    pub fn connect(
        config: RedisConfig,
        namespace: &str,
        session: SessionId,
        hub: Arc<Hub>,
        epoch: watch::Receiver<Option<KnownEpoch>>,
    ) -> Result<Arc<Self>, BackendError> {
        Self::with_client(Arc::new(Client::new(config)), namespace, session, hub, epoch)
    }

    /// As [`RedisLocks::connect`], on a client that others use as well.
    ///
    /// # Errors
    /// When its configuration cannot be used at all.
    pub fn with_client(
        client: Arc<Client>,
        namespace: &str,
        session: SessionId,
        hub: Arc<Hub>,
        epoch: watch::Receiver<Option<KnownEpoch>>,
    ) -> Result<Arc<Self>, BackendError> {
        Self::as_voter(client, namespace, session, hub, epoch, None)
    }

    /// As [`RedisLocks::with_client`]; as one of several servers that vote, if it has a name among them.
    pub(super) fn as_voter(
        client: Arc<Client>,
        namespace: &str,
        session: SessionId,
        hub: Arc<Hub>,
        epoch: watch::Receiver<Option<KnownEpoch>>,
        voter: Option<(String, Topics)>,
    ) -> Result<Arc<Self>, BackendError> {
        client.config().open()?;
        let (voter, topics) = voter.unzip();
        if client.config().ack.is_some() && client.config().seeds().is_some() {
            let why = "grants on a cluster cannot wait for replicas: leave ack out";
            return Err(BackendError::Unavailable(why.into()));
        }
        let counts = Arc::new(PushCounts::default());
        let (sender, subscribed) = watch::channel(false);
        let listener = Listener {
            config: client.config().clone(),
            channel: keys::channel(namespace, &session),
            hub: hub.clone(),
            counts: counts.clone(),
            subscribed: sender,
            topics,
        };
        let acked = client.config().ack;
        let acked = acked.map(|ack| Acked::start(client.config(), client.scripts(), ack));
        Ok(Arc::new(RedisLocks {
            client,
            acked,
            hub,
            session,
            namespace: namespace.into(),
            marker: keys::marker(namespace),
            channel_prefix: keys::channel_prefix(namespace),
            epoch,
            policies: Policies::default(),
            in_doubt: AtomicBool::new(false),
            voter,
            counts,
            subscribed,
            _listener: AbortOnDropHandle::new(tokio::spawn(listener.run())),
        }))
    }

    /// What became of the pushes so far.
    pub fn pushes(&self) -> &PushCounts {
        &self.counts
    }

    /// How many command connections have been made so far.
    pub fn connects(&self) -> u64 {
        self.client.connects()
    }

    /// Waits until pushes are heard, at most so long; whether they are.
    pub async fn subscribed(&self, within: Duration) -> bool {
        let mut subscribed = self.subscribed.clone();
        let heard = tokio::time::timeout(within, subscribed.wait_for(|heard| *heard)).await;
        matches!(heard, Ok(Ok(_)))
    }

    /// Runs a transition that changes something; the reply without its doubt.
    pub(super) fn step<'a>(
        &'a self,
        transition: Transition,
        at: &'a Address,
        config: &LockConfig,
        tomb: Option<&HoldId>,
        args: &[&str],
    ) -> impl Future<Output = Result<Reply, BackendError>> + Send + use<'a> {
        let policy = self.policies.encode(at, config);
        let names = ObjectKeys::new(at).of(&keys::OF_LOCK, tomb);
        let mut room = [""; keys::MOST];
        let keys = names.list(&mut room);
        self.run((transition, config.consistency), at, &policy, keys, args)
    }

    /// Sends a request: the verdict, and what belongs to it.
    pub(super) fn ask<'a>(
        &'a self,
        at: &'a Address,
        request: &Acquire,
    ) -> impl Future<Output = Result<Reply, BackendError>> + Send + use<'a> {
        let mut room = [itoa::Buffer::new(); 2];
        let [ttl, max_hold] = &mut room;
        let args = [
            request.hold.as_str(),
            request.session.as_str(),
            ttl.format(ms_of(request.ttl)),
            max_hold.format(ms_of(request.max_hold)),
            if request.enqueue { "1" } else { "0" },
            request.holder.as_str(),
        ];
        let hold = Some(&request.hold);
        self.step(Transition::LockAcquire, at, &request.config, hold, &args)
    }

    /// Takes back a grant that nobody has been told of. Without a tombstone: the same request may be
    /// tried again.
    async fn undo(&self, at: &Address, request: &Acquire) -> Result<(), BackendError> {
        let args = [request.hold.as_str(), "u"];
        let undone = self.step(Transition::LockRelease, at, &request.config, None, &args).await;
        undone.map(drop).map_err(|error| {
            BackendError::Unknown(format!("a grant short of replicas could not be undone: {error}"))
        })
    }
}

#[async_trait]
impl LockBackend for RedisLocks {
    fn substrate(&self) -> Substrate {
        Substrate::Redis
    }

    fn guarantee(&self) -> Guarantee {
        match &self.acked {
            Some(acked) => Guarantee::PrimaryAck(acked.ack().replicas),
            None => Guarantee::BestEffort,
        }
    }

    async fn acquire(&self, at: &Address, request: &Acquire) -> Result<Attempt, BackendError> {
        let mut reply = self.ask(at, request).await?;
        Ok(match reply.text()?.as_str() {
            "G" => {
                let (grant, is_new) = read_grant(&mut reply)?;
                if let Some(acked) = &self.acked {
                    let (got, ack) = (reply.number()?, acked.ack());
                    if got < u64::from(ack.replicas) {
                        // A retry of a hold that its holder knows of must not take it away.
                        if is_new {
                            Box::pin(self.undo(at, request)).await?;
                        }
                        return Err(ack.short_of(got));
                    }
                }
                Attempt::Granted(grant)
            }
            "Q" => Attempt::Queued { position: reply.count()? },
            "L" => Attempt::Locked { retry_after: reply.millis()?, waiters: reply.count()? },
            "F" => Attempt::QueueFull { waiters: reply.count()? },
            "C" => Attempt::Cancelled,
            other => return Err(unexpected(other)),
        })
    }

    async fn renew(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        ttl: Duration,
    ) -> Result<Renewal, BackendError> {
        let mut room = itoa::Buffer::new();
        let args = [hold.as_str(), room.format(ms_of(ttl))];
        let mut reply = self.step(Transition::LockRenew, at, config, None, &args).await?;
        Ok(match reply.signed()? {
            left if left < 0 => Renewal::Lost,
            left => Renewal::Renewed { ttl: Duration::from_millis(left.unsigned_abs()) },
        })
    }

    async fn release(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<Release, BackendError> {
        Ok(self.release_and_look(at, config, hold).await?.0)
    }

    async fn release_and_look(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(Release, Option<HoldId>), BackendError> {
        let args = [hold.as_str(), "", self.session.as_str()];
        let mut reply = self.step(Transition::LockRelease, at, config, None, &args).await?;
        let released = read_release(&mut reply)?;
        let Some((next, grant)) = read_offer(&mut reply)? else { return Ok((released, None)) };
        self.hub.send(&next, Push::Granted { grant });
        // Whoever waits is answered before whoever is done.
        tokio::task::yield_now().await;
        Ok((released, read_first(&mut reply)?))
    }

    fn fence_of_heir(&self, at: &Address, own: Fence) -> Option<Fence> {
        // It is the store's to name who leads. A grant that waits for replicas is none before they have
        // it; nor is one vote of several.
        let may = at.kind == Kind::Lock && self.acked.is_none() && self.voter.is_none();
        may.then(|| Fence::compose(own.epoch(), own.sequence() + 1).ok())?
    }

    async fn pass_on(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        fence: Fence,
        heir: Arc<Ticket>,
    ) -> Result<Passed, BackendError> {
        let mut room = [itoa::Buffer::new(); 3];
        let [seq, ttl, max_hold] = &mut room;
        let args = [
            hold.as_str(),
            seq.format(fence.sequence()),
            heir.hold.as_str(),
            heir.session.as_str(),
            ttl.format(heir.ttl_ms.min(MAX_MS)),
            max_hold.format(heir.max_hold_ms.min(MAX_MS)),
            heir.holder.as_str(),
        ];
        let tomb = Some(&heir.hold);
        let mut reply = self.step(Transition::LockPassOn, at, config, tomb, &args).await?;
        let release = read_release(&mut reply)?;
        let (is_heirs, first) = (reply.number()? == 1, read_first(&mut reply)?);
        Ok(Passed { release, is_heirs, first })
    }

    async fn cancel(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError> {
        let mut room = itoa::Buffer::new();
        let args = [hold.as_str(), room.format(ms_of(Duration::from_millis(config.ttl_ms)))];
        self.step(Transition::LockCancel, at, config, Some(hold), &args).await.map(drop)
    }

    async fn beat(
        &self,
        at: &Address,
        config: &LockConfig,
        session: &SessionId,
    ) -> Result<Beat, BackendError> {
        let args = [session.as_str()];
        let mut reply = self.step(Transition::LockBeat, at, config, None, &args).await?;
        let (tickets, next) = (reply.count()?, reply.millis()?);
        let (seq, epoch) = (reply.number()?, reply.number()?);
        let last_fence = Fence::compose(epoch, seq).map_err(unexpected)?;
        let mut offered = Vec::new();
        if !reply.is_empty() {
            let hold = HoldId::new(reply.text()?).map_err(unexpected)?;
            offered.push((hold, Grant::offered(last_fence, reply.millis()?)));
        }
        Ok(Beat { offered, tickets, next, last_fence })
    }

    async fn query(&self, at: &Address, _: &LockConfig) -> Result<LockView, BackendError> {
        self.view(at).await
    }

    async fn newest_fence(&self, at: &Address, config: &LockConfig) -> Result<Fence, BackendError> {
        Ok(self.standing(at, config).await?.fence)
    }

    async fn force_release_holds(
        &self,
        at: &Address,
        config: &LockConfig,
        which: Which,
    ) -> Result<Vec<HolderView>, BackendError> {
        let [word, seq, epoch] = forced_args(which);
        let args = [word.as_str(), &seq, &epoch];
        let step = self.step(Transition::LockForceRelease, at, config, None, &args);
        read_holders(&mut step.await?)
    }

    async fn list(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
        _: &LockConfig,
        limit: usize,
    ) -> Result<Vec<(Key, LockView)>, BackendError> {
        self.look(kind, namespace, class, limit, |at| async move { self.view(&at).await }).await
    }
}
