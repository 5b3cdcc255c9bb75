//! What is still missing before requests can be served.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// The set of what is missing; ready when it is empty.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

impl Readiness {
    /// Ready unless something is missing from the start.
    pub fn waiting_for(missing: impl IntoIterator<Item = &'static str>) -> Self {
        let readiness = Readiness::default();
        missing.into_iter().for_each(|what| readiness.set(what, false));
        readiness
    }

    /// Notes whether something is there.
    pub fn set(&self, what: &'static str, there: bool) {
        let mut missing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if there {
            missing.remove(what)
        } else {
            missing.insert(what)
        };
    }

    /// What is missing.
    pub fn missing(&self) -> Vec<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
