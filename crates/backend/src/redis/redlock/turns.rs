//! Requests for one hold go one after another: what one of them takes back, another could have counted
//! on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use holdfast_core::HoldId;
use tokio::sync::OwnedMutexGuard;

use crate::hub::lock;

type Gate = Arc<tokio::sync::Mutex<()>>;

/// The gates of all holds that are being asked for.
#[derive(Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<HoldId, Gate>>>);

/// A turn; dropping it lets the next one in.
pub(super) struct Turn {
    turns: Arc<Mutex<HashMap<HoldId, Gate>>>,
    hold: HoldId,
    _guard: OwnedMutexGuard<()>,
}

impl Turns {
    /// Waits for a turn.
    pub(super) async fn take(&self, hold: &HoldId) -> Turn {
        let gate = lock(&self.0).entry(hold.clone()).or_default().clone();
        let guard = gate.lock_owned().await;
        Turn { turns: self.0.clone(), hold: hold.clone(), _guard: guard }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = lock(&self.turns);
        // The table's and this guard's: nobody else waits.
        if turns.get(&self.hold).is_some_and(|gate| Arc::strong_count(gate) <= 2) {
            turns.remove(&self.hold);
        }
    }
}
