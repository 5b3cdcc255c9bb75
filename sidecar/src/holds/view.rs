//! A hold as others give and see it.

use std::{ops::Deref, sync::Arc, time::Duration};

use holdfast_backend::waiter::{Done, Heir, HeldLock};
use holdfast_core::{Address, Deadline, Fence, HoldId, Kind, Stamp};
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
    /// Whether it may be a retry of what has ended; a name made for this request is not.
    pub is_retry: bool,
    /// Whom it is passed on to, where that is decided.
    pub heir: Heir,
}

/// What of a hold never changes. Whoever looks at the hold shares it: to copy it would be five counts
/// of users for each look.
pub struct Facts {
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
    /// Whom it is passed on to when it is released.
    pub heir: Heir,
}

impl Facts {
    /// Whether it is a hold of this class.
    pub fn is_of(&self, kind: Kind, class: &str) -> bool {
        self.at.kind == kind && self.class.name.as_str() == class
    }
}

/// A hold as it stands.
#[derive(Clone)]
pub struct View {
    /// What never changes.
    pub facts: Arc<Facts>,
    /// What the store granted last.
    pub ttl: Duration,
    /// What a renewal that is sent now asks for.
    pub asks: Duration,
    /// How it stands.
    pub state: HoldState,
    /// Its holder has said that it is done: it is not to be used any more.
    pub is_releasing: bool,
    /// How much longer it may be trusted.
    pub left: Duration,
    /// Until when.
    pub deadline: Deadline,
    /// When it stood so.
    pub seen: Stamp,
}

impl Deref for View {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.facts
    }
}

impl View {
    /// It, when its app is done with it.
    pub fn done(&self) -> Done<'_> {
        let Facts { hold, class, at, fence, heir, .. } = &*self.facts;
        let (config, ttl, deadline) = (&class.config, self.ttl, self.deadline);
        Done { at, config, hold, fence: *fence, ttl, deadline, heir }
    }
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
