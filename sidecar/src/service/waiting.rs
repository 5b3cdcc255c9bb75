//! How many requests may wait at once.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use prometheus::IntGauge;

use super::{MAX_WAITING, MAX_WAITING_PER_CLASS, Sidecar, answers::mk_too_many};
use crate::error::Failure;

impl Sidecar {
    /// A place among those who may wait.
    pub(super) fn wait_slot(
        &self,
        gauge: &IntGauge,
        wait: Duration,
    ) -> Result<Option<WaitSlot<'_>>, Failure> {
        if wait.is_zero() {
            return Ok(None);
        }
        if self.waiting.load(Relaxed) >= MAX_WAITING || gauge.get() >= MAX_WAITING_PER_CLASS {
            let why = format!(
                "as many requests of this pod wait as may: {MAX_WAITING_PER_CLASS} for a class, \
                 {MAX_WAITING} in all"
            );
            return Err(mk_too_many(why));
        }
        self.waiting.fetch_add(1, Relaxed);
        gauge.inc();
        Ok(Some(WaitSlot { all: &self.waiting, of_class: gauge.clone() }))
    }
}

/// Dropping it gives the place back.
pub(super) struct WaitSlot<'a> {
    all: &'a AtomicUsize,
    of_class: IntGauge,
}

impl Drop for WaitSlot<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Relaxed);
        self.of_class.dec();
    }
}
