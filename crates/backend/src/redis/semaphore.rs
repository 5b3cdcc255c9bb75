//! Semaphores in Redis: encodes a transition's arguments, runs it, decodes its reply. The rules are in
//! `lua/`; connection, pushes and epoch are those of the locks on the same store.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_core::{
    Address, BackendError, ClassName, Guarantee, HoldId, Key, Kind, SessionId, Substrate,
    lock::{
        Acquire, Attempt, Beat, Grant, HolderView, LockBackend, LockConfig, LockView, Release,
        Renewal, Which,
    },
    semaphore::{NAMED, Policy},
};

use super::{
    RedisLocks,
    keys::{self, ObjectKeys},
    lock::{forced_args, read_fence, read_grant, read_holders},
    look::NAMES_IN_VIEW,
    policy::{Policies, ms_of},
    reply::{Reply, unexpected},
    scripts::Transition,
};

/// Semaphores of one namespace in one Redis, for one session. Guarantees and caveats are those of
/// [`RedisLocks`].
pub struct RedisSemaphores {
    store: Arc<RedisLocks>,
    policies: Policies<Policy>,
}

impl RedisSemaphores {
    /// Semaphores beside the locks of a store, on the same connections.
    pub fn beside(store: Arc<RedisLocks>) -> Arc<Self> {
        Arc::new(RedisSemaphores { store, policies: Policies::default() })
    }

    /// Runs a transition that changes something; the reply without its doubt.
    fn step<'a>(
        &'a self,
        transition: Transition,
        at: &'a Address,
        config: &LockConfig,
        tomb: Option<&HoldId>,
        args: &[&str],
    ) -> impl Future<Output = Result<Reply, BackendError>> + Send + use<'a> {
        let policy = self.policies.encode(at, config);
        let names = ObjectKeys::new(at).of(&keys::OF_SEMAPHORE, tomb);
        let mut room = [""; keys::MOST];
        let keys = names.list(&mut room);
        self.store.run((transition, config.consistency), at, &policy, keys, args)
    }

    async fn view(&self, at: &Address) -> Result<LockView, BackendError> {
        let names = ObjectKeys::new(at).of(&keys::OF_SEMAPHORE, None);
        let mut room = [""; keys::MOST];
        let args = [NAMES_IN_VIEW, &NAMED.to_string()];
        let call = self.store.client.call(Transition::SemaphoreQuery, names.list(&mut room), &args);
        let reply = call.await?;
        let mut reply = Reply::new(reply);
        let last_fence = read_fence(&mut reply)?;
        let (waiters, queue) = (reply.count()?, reply.names()?);
        let (holds, used) = (reply.count()?, reply.count()?);
        let mut named = read_holders(&mut reply)?.into_iter();
        Ok(LockView {
            holder: named.next(),
            others: named.collect(),
            holds,
            used,
            waiters,
            queue,
            last_fence: Some(last_fence).filter(|fence| fence.sequence() > 0),
        })
    }

    /// A grant, as long as enough replicas have it: else it is taken back.
    async fn granted(
        &self,
        at: &Address,
        request: &Acquire,
        mut reply: Reply,
    ) -> Result<Attempt, BackendError> {
        let (grant, is_new) = read_grant(&mut reply)?;
        if let Some(acked) = &self.store.acked {
            let (got, ack) = (reply.number()?, acked.ack());
            if got < u64::from(ack.replicas) {
                // A retry of a hold that its holder knows of must not take it away.
                if is_new {
                    let undone = self.release(at, &request.config, &request.hold).await;
                    undone.map_err(|error| {
                        let what =
                            format!("a grant short of replicas could not be undone: {error}");
                        BackendError::Unknown(what)
                    })?;
                }
                return Err(ack.short_of(got));
            }
        }
        Ok(Attempt::Granted(grant))
    }
}

#[async_trait]
impl LockBackend for RedisSemaphores {
    fn substrate(&self) -> Substrate {
        Substrate::Redis
    }

    fn guarantee(&self) -> Guarantee {
        self.store.guarantee()
    }

    async fn acquire(&self, at: &Address, request: &Acquire) -> Result<Attempt, BackendError> {
        let mut room = [itoa::Buffer::new(); 3];
        let [ttl, max_hold, permits] = &mut room;
        let args = [
            request.hold.as_str(),
            request.session.as_str(),
            ttl.format(ms_of(request.ttl)),
            max_hold.format(ms_of(request.max_hold)),
            if request.enqueue { "1" } else { "0" },
            permits.format(request.permits),
            request.holder.as_str(),
        ];
        let hold = Some(&request.hold);
        let mut reply =
            self.step(Transition::SemaphoreAcquire, at, &request.config, hold, &args).await?;
        Ok(match reply.text()?.as_str() {
            "G" => return self.granted(at, request, reply).await,
            "Q" => Attempt::Queued { position: reply.count()? },
            "L" => Attempt::Locked { retry_after: reply.millis()?, waiters: reply.count()? },
            "F" => Attempt::QueueFull { waiters: reply.count()? },
            "M" => Attempt::TooMany { most: reply.count()? },
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
        let mut reply = self.step(Transition::SemaphoreRenew, at, config, None, &args).await?;
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
        let args = [hold.as_str()];
        let mut reply = self.step(Transition::SemaphoreRelease, at, config, None, &args).await?;
        Ok(if reply.number()? == 1 { Release::Released } else { Release::NotHeld })
    }

    async fn cancel(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError> {
        let mut room = itoa::Buffer::new();
        let args = [hold.as_str(), room.format(ms_of(Duration::from_millis(config.ttl_ms)))];
        self.step(Transition::SemaphoreCancel, at, config, Some(hold), &args).await.map(drop)
    }

    async fn beat(
        &self,
        at: &Address,
        config: &LockConfig,
        session: &SessionId,
    ) -> Result<Beat, BackendError> {
        let args = [session.as_str()];
        let mut reply = self.step(Transition::SemaphoreBeat, at, config, None, &args).await?;
        let (tickets, next) = (reply.count()?, reply.millis()?);
        let last_fence = read_fence(&mut reply)?;
        let mut offered = Vec::new();
        while !reply.is_empty() {
            let hold = HoldId::new(reply.text()?).map_err(unexpected)?;
            let (fence, ttl) = (read_fence(&mut reply)?, reply.millis()?);
            offered.push((hold, Grant::offered(fence, ttl)));
        }
        Ok(Beat { offered, tickets, next, last_fence })
    }

    async fn query(&self, at: &Address, _: &LockConfig) -> Result<LockView, BackendError> {
        self.view(at).await
    }

    async fn force_release_holds(
        &self,
        at: &Address,
        config: &LockConfig,
        which: Which,
    ) -> Result<Vec<HolderView>, BackendError> {
        let [word, seq, epoch] = forced_args(which);
        let args = [word.as_str(), &seq, &epoch];
        let step = self.step(Transition::SemaphoreForceRelease, at, config, None, &args);
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
        let view = |at: Address| async move { self.view(&at).await };
        self.store.look(kind, namespace, class, limit, view).await
    }
}
