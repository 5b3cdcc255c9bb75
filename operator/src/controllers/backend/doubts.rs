//! What others than the Backend's own look have found lost.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
};

use crate::context::lock;

/// Numbers that an epoch must be raised above: somebody has found out that data was lost. By Backend,
/// and by server where it has several (the empty name where it has one).
#[derive(Default)]
pub struct Doubts(Mutex<HashMap<String, BTreeMap<String, u64>>>);

impl Doubts {
    /// The epoch of a Backend must be higher than this, because of a server.
    pub fn raise_above(&self, backend: &str, server: &str, number: u64) {
        let mut all = lock(&self.0);
        let of_backend = all.entry(backend.to_owned()).or_default();
        let above = of_backend.entry(server.to_owned()).or_insert(number);
        *above = number.max(*above);
    }

    /// What is doubted of a Backend, by server.
    pub fn of(&self, backend: &str) -> BTreeMap<String, u64> {
        lock(&self.0).get(backend).cloned().unwrap_or_default()
    }

    /// An epoch of this number is in force.
    pub fn settled(&self, backend: &str, number: u64) {
        if let Some(of_backend) = lock(&self.0).get_mut(backend) {
            of_backend.retain(|_, above| *above >= number);
        }
    }
}
