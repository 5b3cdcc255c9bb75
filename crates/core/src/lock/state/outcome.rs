//! What comes of a transition.

use crate::{HoldId, SessionId};

/// A hold that a transition granted to a waiter: its session is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Whom to tell.
    pub session: SessionId,
    /// Which of its waiters.
    pub hold: HoldId,
    /// The fence's sequence.
    pub seq: u64,
    /// For how long the offer stands.
    pub ttl_ms: u64,
}

/// The outcome of [`LockState::acquire`], and of a semaphore's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// Granted, or found granted by an earlier attempt of the same hold.
    Granted {
        /// The fence's sequence.
        seq: u64,
        /// The time to live from now.
        ttl_ms: u64,
    },
    /// In the queue, at this place counted from 1.
    Queued(u32),
    /// Held by another; of a semaphore, too few permits are free, or it is not this caller's turn.
    Locked {
        /// When that may change by itself.
        retry_after_ms: u64,
        /// How many wait.
        waiters: u32,
    },
    /// As many wait as may.
    QueueFull(u32),
    /// Of a semaphore: more permits than one hold can ever have; this is the most.
    TooMany(u32),
    /// Cancelled before it arrived.
    Cancelled,
}

/// The outcome of [`LockState::pass_on`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOn {
    /// Whether it was held until now.
    pub was_held: bool,
    /// Whether it is the heir's now, with the sequence that it was told.
    pub is_heirs: bool,
    /// Who is next then, if the queue is first come, first served.
    pub first: Option<HoldId>,
}

/// What a session learns from [`LockState::beat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beaten {
    /// An unclaimed hold of the session: hold, sequence, what is left of the offer.
    pub offered: Option<(HoldId, u64, u64)>,
    /// How many tickets it has in the queue.
    pub tickets: u32,
    /// When something changes by itself, at the earliest.
    pub next_ms: u64,
    /// The newest fence sequence granted.
    pub seq: u64,
}
