//! A hold as others give and see it.

use std::{sync::Arc, time::Duration};

use holdfast_backend::waiter::HeldLock;
use holdfast_core::{Address, Fence, HoldId, Stamp};
use holdfast_wire::HoldState;

use super::ended::End;
use crate::{liveness::Bound, snapshot::LockClass};

/// A hold to be added.
pub struct NewHold {
    /// Its class.
    pub class: Arc<LockClass>,
    /// What it holds.
    pub at: Address,
    /// As it was acquired.
    pub held: HeldLock,
    /// What each renewal asks for.
    pub ttl: Duration,
    /// The longest it may last; zero for no bound.
    pub max_hold: Duration,
    /// How many permits it has; 1 of a lock.
    pub permits: u32,
    /// What automatic renewal is bound to; `None` when the caller renews.
    pub bound: Option<Bound>,
}

/// A hold as it stands.
#[derive(Clone)]
pub struct View {
    /// Its name.
    pub hold: HoldId,
    /// Its class.
    pub class: Arc<LockClass>,
    /// What it holds.
    pub at: Address,
    /// Its fencing token.
    pub fence: Fence,
    /// How many permits it has; 1 of a lock.
    pub permits: u32,
    /// What the store granted last.
    pub ttl: Duration,
    /// What a renewal asks for.
    pub asked: Duration,
    /// How it stands.
    pub state: HoldState,
    /// How much longer it may be trusted.
    pub left: Duration,
    /// When that is over, boot time.
    pub deadline_boot_ns: u64,
    /// When it stood so.
    pub seen: Stamp,
}

/// What is known of a hold that somebody names.
pub enum Found {
    /// It is live.
    Live(View),
    /// It has ended.
    Ended(End),
    /// It was never here, or ended long ago.
    Unknown,
}
