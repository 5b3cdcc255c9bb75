//! Reads the values of a transition's reply, one by one.
//!
//! A reply that no version of ours sends leaves the outcome *unknown*: the transition did run.

use std::{fmt::Display, time::Duration};

use holdfast_core::{BackendError, Holder};
use redis::{FromRedisValue, Value};

/// A reply of which some values have been read.
pub(super) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub(super) fn new(values: Vec<Value>) -> Self {
        Reply(values.into_iter())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    fn next<T: FromRedisValue>(&mut self) -> Result<T, BackendError> {
        let value = self.0.next().ok_or_else(|| unexpected("too short"))?;
        redis::from_redis_value(value).map_err(unexpected)
    }

    pub(super) fn number(&mut self) -> Result<u64, BackendError> {
        self.next()
    }

    pub(super) fn signed(&mut self) -> Result<i64, BackendError> {
        self.next()
    }

    pub(super) fn count(&mut self) -> Result<u32, BackendError> {
        self.next()
    }

    pub(super) fn millis(&mut self) -> Result<Duration, BackendError> {
        self.number().map(Duration::from_millis)
    }

    pub(super) fn text(&mut self) -> Result<String, BackendError> {
        self.next()
    }

    pub(super) fn name(&mut self) -> Result<Holder, BackendError> {
        Holder::new(self.text()?).map_err(unexpected)
    }

    pub(super) fn names(&mut self) -> Result<Vec<Holder>, BackendError> {
        let names: Vec<String> = self.next()?;
        names.iter().map(|name| Holder::new(name).map_err(unexpected)).collect()
    }
}

pub(super) fn unexpected(what: impl Display) -> BackendError {
    BackendError::Unknown(format!("an unexpected reply: {what}"))
}
