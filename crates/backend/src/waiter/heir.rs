//! Whom a hold is passed on to, decided once.

use std::sync::{Arc, Mutex, MutexGuard};

use holdfast_core::queue::Ticket;

use crate::hub::lock;

/// Whom a hold is passed on to when it is released, if anybody. Whoever releases the hold shares it, and
/// the first to tell an heir decides: two heirs would have one fence.
#[derive(Default)]
pub struct Heir(Mutex<Named>);

/// What is decided.
#[derive(Default)]
pub(super) enum Named {
    /// Nothing: whoever releases the hold next decides.
    #[default]
    Open,
    /// The hold goes back to the store.
    Nobody,
    /// This waiter has been told that it has the hold.
    Told(Arc<Ticket>),
}

impl Heir {
    /// Of a hold that was just granted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of a hold that is passed on to nobody.
    pub fn nobody() -> Self {
        Heir(Mutex::new(Named::Nobody))
    }

    /// Nobody, unless an heir has been told.
    pub fn close(&self) {
        let mut named = self.named();
        if matches!(*named, Named::Open) {
            *named = Named::Nobody;
        }
    }

    /// Who has been told.
    pub fn told(&self) -> Option<Arc<Ticket>> {
        match &*self.named() {
            Named::Told(heir) => Some(heir.clone()),
            Named::Open | Named::Nobody => None,
        }
    }

    pub(super) fn named(&self) -> MutexGuard<'_, Named> {
        lock(&self.0)
    }
}
