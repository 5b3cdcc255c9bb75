//! Lock: mutual exclusion with fencing tokens. Configuration, requests, outcomes, and the trait that
//! every substrate implements. The rules themselves are in [`state`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Address, BackendError, ClassName, Fence, Guarantee, HoldId, Holder, Key, Kind, SessionId,
    Stamp, Substrate, queue::Ticket,
};

mod config;
pub mod record;
pub mod redlock;
pub mod state;

pub use config::{Consistency, Fairness, Keys, LockConfig, Policy};

/// One attempt to acquire.
#[derive(Clone, Debug)]
pub struct Acquire {
    /// The class's configuration.
    pub config: Arc<LockConfig>,
    /// The hold to be. The same one again is a retry, and gets the same grant.
    pub hold: HoldId,
    /// Whose it is.
    pub session: SessionId,
    /// Who that is, for people.
    pub holder: Holder,
    /// How long the hold lasts without a renewal.
    pub ttl: Duration,
    /// The longest it may last; zero for no bound.
    pub max_hold: Duration,
    /// Whether to queue when it cannot be granted at once.
    pub enqueue: bool,
    /// How many permits it asks for; 1 of a lock.
    pub permits: u32,
}

impl Acquire {
    /// What it is in a queue.
    pub fn ticket(&self) -> Ticket {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Ticket {
            hold: self.hold.clone(),
            session: self.session.clone(),
            holder: self.holder.clone(),
            ttl_ms: ms(self.ttl),
            max_hold_ms: ms(self.max_hold),
            permits: self.permits,
        }
    }
}

/// What a grant says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The fencing token.
    pub fence: Fence,
    /// The store keeps the hold for so long, counted from a time after the request was sent.
    pub ttl: Duration,
    /// False for a hold that was offered to a waiter: it stands for [`Policy::claim_ms`] only, and
    /// the first renewal claims it.
    pub claimed: bool,
    /// A time at which the hold was known not to have been granted yet, where the store is of this
    /// process or asked by it. Without it the hold counts from when the request was sent, or from the
    /// last time that its ticket was known to be waiting.
    pub since: Option<Stamp>,
}

impl Grant {
    /// A grant to a waiter, as a store's push or beat tells it.
    pub const fn offered(fence: Fence, ttl: Duration) -> Self {
        Grant { fence, ttl, claimed: false, since: None }
    }
}

/// The outcome of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The hold is granted.
    Granted(Grant),
    /// In the queue; a [`Push`] tells when the turn has come.
    Queued {
        /// The place, counted from 1.
        position: u32,
    },
    /// Held by another, and the request did not want to queue.
    Locked {
        /// When it may be worth to try again: the rest of the current hold.
        retry_after: Duration,
        /// How many wait.
        waiters: u32,
    },
    /// Held by another, and as many wait as may.
    QueueFull {
        /// How many wait.
        waiters: u32,
    },
    /// More permits than one hold of the class can ever have.
    TooMany {
        /// The most that it can.
        most: u32,
    },
    /// This hold was cancelled before: the request came late.
    Cancelled,
}

/// The outcome of a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The store keeps the hold for so long, counted from a time after the request was sent.
    Renewed {
        /// The new time to live; shorter than asked for when the longest hold is near.
        ttl: Duration,
    },
    /// The hold is not there any more: it expired, was released or was taken by force.
    Lost,
}

/// The outcome of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It was held until now.
    Released,
    /// It was not held: it had expired, been released, or been taken by force.
    NotHeld,
}

/// What a session learns from a beat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The holds of this session that were offered and not claimed yet; of a lock, one at most.
    pub offered: Vec<(HoldId, Grant)>,
    /// How many tickets the session has in the queue. Fewer than it knows of means that the store
    /// dropped some: their owners ask again.
    pub tickets: u32,
    /// After how long something changes by itself (a hold expires, a delay ends): beat again then.
    pub next: Duration,
    /// The newest fence granted on this key. A grant with a higher one was made after this beat,
    /// so a waiter that is pushed it may count its hold from when this beat was sent.
    pub last_fence: Fence,
}

/// The holder as others see it. There is no [`HoldId`] in it: who knows that may release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderView {
    /// Who holds, for people.
    pub holder: Holder,
    /// The hold's fencing token.
    pub fence: Fence,
    /// What is left before it expires.
    pub ttl: Duration,
    /// For how long it has been held.
    pub held_for: Duration,
    /// How many permits it has; 1 of a lock.
    pub permits: u32,
}

/// The holds of a key that a release by force takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every one.
    All,
    /// The one with this fence.
    One(Fence),
    /// Those that are as old as this fence, or older.
    UpTo(Fence),
}

impl Which {
    /// Whether it takes the hold with this fence.
    pub fn takes(self, fence: Fence) -> bool {
        match self {
            Which::All => true,
            Which::One(one) => fence == one,
            Which::UpTo(newest) => fence <= newest,
        }
    }
}

/// The state of one key, for people and dashboards. Stale the moment it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockView {
    /// Who holds it, if anybody does: of a semaphore, the oldest hold.
    pub holder: Option<HolderView>,
    /// The next nine of a semaphore's holds, oldest first.
    pub others: Vec<HolderView>,
    /// How many holds there are in all.
    pub holds: u32,
    /// How many permits they have.
    pub used: u32,
    /// How many wait.
    pub waiters: u32,
    /// The first ten of them.
    pub queue: Vec<Holder>,
    /// The newest fence ever granted on this key, if any was.
    pub last_fence: Option<Fence>,
}

/// What has become of a hold that was passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Whether it was held until now.
    pub release: Release,
    /// Whether its heir has it, with the fence that it was told.
    pub is_heirs: bool,
    /// Who is next then, if the heir has it and the queue is first come, first served.
    pub first: Option<HoldId>,
}

/// What a store tells a session unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// A waiter's turn has come.
    Granted {
        /// The grant.
        grant: Grant,
    },
    /// A hold was taken by force or has been lost otherwise.
    Lost,
    /// The store has lost the ticket: ask again.
    Requeue,
}

/// What keeps the holds of locks.
///
/// # Guarantees
/// - Each call is one atomic transition of [`state::LockState`], or has no effect.
/// - Fences of one [`Address`] strictly increase from grant to grant, over expiry, force release,
///   deletion and re-creation of the class, and restart of the store.
/// - The time to live of a reply counts from after the request was sent.
/// - The same [`HoldId`] again is the same request: it gets the same grant, or keeps its place.
///
/// # Assumptions
/// - A caller whose attempt ended in [`BackendError::Unknown`], or who no longer wants its answer,
///   calls [`cancel`](LockBackend::cancel) until that answers. After it, no grant of that hold
///   exists or will.
/// - Sessions with queued tickets call [`beat`](LockBackend::beat) at [`LockConfig::beat_ms`].
///
/// # Caveats
/// A hold does not stop its holder from acting late. Only a resource that checks fences does.
///
/// # Errors
/// [`BackendError`]; every call is bounded in time by the backend.
#[async_trait]
pub trait LockBackend: Send + Sync + 'static {
    /// Which substrate this is.
    fn substrate(&self) -> Substrate;
    /// What its grants promise.
    fn guarantee(&self) -> Guarantee;
    /// Grants, queues, or refuses.
    async fn acquire(&self, at: &Address, request: &Acquire) -> Result<Attempt, BackendError>;
    /// As [`acquire`](LockBackend::acquire), at once and by a reading of the clocks that the caller
    /// has just taken: what stores in this process can do. `None` of all others.
    fn acquire_now(&self, _: &Address, _: &Acquire, _now: Stamp) -> Option<Attempt> {
        None
    }
    /// Extends a hold (and claims an offered one). Never brings an expired hold back.
    async fn renew(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        ttl: Duration,
    ) -> Result<Renewal, BackendError>;
    /// Ends a hold and hands over to the first who waits.
    async fn release(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<Release, BackendError>;
    /// As [`release`](LockBackend::release); and if a waiter of this session has it now, who is next
    /// then, where a store tells that and the queue is first come, first served.
    async fn release_and_look(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(Release, Option<HoldId>), BackendError> {
        Ok((self.release(at, config, hold).await?, None))
    }
    /// As [`release`](LockBackend::release), like [`acquire_now`](LockBackend::acquire_now).
    fn release_now(&self, _: &Address, _: &LockConfig, _: &HoldId, _now: Stamp) -> Option<Release> {
        None
    }
    /// The fence of the waiter that the holder with this fence may pass its hold on to before the store
    /// knows; `None` where holds are not passed on. See [`pass_on`](LockBackend::pass_on).
    fn fence_of_heir(&self, _: &Address, _: Fence) -> Option<Fence> {
        None
    }
    /// Ends a hold, which had this fence, and which its holder has passed on to a waiter of its own
    /// session, with [`fence_of_heir`](LockBackend::fence_of_heir). The store makes that true if the
    /// hold is still there and the heir was not cancelled; else it cancels the heir. The same again is
    /// the same as long as the heir has it.
    async fn pass_on(
        &self,
        at: &Address,
        _: &LockConfig,
        _hold: &HoldId,
        _: Fence,
        _heir: Arc<Ticket>,
    ) -> Result<Passed, BackendError> {
        Err(BackendError::Internal(format!("{at} has no fences for heirs")))
    }
    /// Withdraws a request whatever became of it: takes its ticket out, frees its hold, and refuses
    /// it should it still arrive.
    async fn cancel(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<(), BackendError>;
    /// Says that a session still waits, and asks what it missed.
    async fn beat(
        &self,
        at: &Address,
        config: &LockConfig,
        session: &SessionId,
    ) -> Result<Beat, BackendError>;
    /// Reads the state of a key. Changes nothing.
    async fn query(&self, at: &Address, config: &LockConfig) -> Result<LockView, BackendError>;
    /// The fence below which nobody holds this key any more: the newest granted, or the least that may
    /// be. Read after the call began, and only while the store is sure to have lost nothing.
    ///
    /// # Errors
    /// Where a key has many holders, as a semaphore has.
    async fn newest_fence(&self, at: &Address, _: &LockConfig) -> Result<Fence, BackendError> {
        Err(BackendError::Internal(format!("{at} has many holders, and so no newest fence")))
    }
    /// Takes holds of the key from whoever has them: the next fence is higher, the holder is told, the
    /// first who waits is granted. Returns whom they were taken from, oldest first.
    async fn force_release_holds(
        &self,
        at: &Address,
        config: &LockConfig,
        which: Which,
    ) -> Result<Vec<HolderView>, BackendError>;
    /// Takes every hold of the key. Returns whom it was taken from, of a semaphore the oldest one.
    async fn force_release(
        &self,
        at: &Address,
        config: &LockConfig,
    ) -> Result<Option<HolderView>, BackendError> {
        Ok(self.force_release_holds(at, config, Which::All).await?.into_iter().next())
    }

    /// The keys of a class that are held or waited for, at most `limit` of them.
    async fn list(
        &self,
        kind: Kind,
        namespace: &str,
        class: &ClassName,
        config: &LockConfig,
        limit: usize,
    ) -> Result<Vec<(Key, LockView)>, BackendError>;
}
