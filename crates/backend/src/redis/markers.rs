//! The markers of a namespace's epoch: what the operator writes, and every transition reads.

use holdfast_core::BackendError;

use super::{admin::RedisAdmin, errors::redirect, keys, reply::unexpected, request::Failure};

/// What is at one place of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// The number of an epoch.
    Found(u64),
    /// Nothing, or no number: the scripts refuse both.
    Missing,
    /// The place is on another server (by now, or until it has been moved).
    Elsewhere,
}

impl RedisAdmin {
    /// The epoch that a namespace is marked with, if it is.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn marker(&self, namespace: &str) -> Result<Option<u64>, BackendError> {
        let found = self.markers(namespace, &[]).await?;
        Ok(found.into_iter().find_map(|marker| match marker {
            Marker::Found(number) => Some(number),
            Marker::Missing | Marker::Elsewhere => None,
        }))
    }

    /// What is at each place of a namespace's marker on this server: at hash tags in its slots, or
    /// the plain one if there are none.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`].
    pub async fn markers(
        &self,
        namespace: &str,
        tags: &[String],
    ) -> Result<Vec<Marker>, BackendError> {
        let mut found = Vec::new();
        for name in names(namespace, tags) {
            found.push(match self.client.try_run(redis::cmd("GET").arg(name)).await {
                Ok(value) => read(value)?,
                Err(Failure::Sent(error)) if redirect(&error).is_some() => Marker::Elsewhere,
                Err(failure) => return Err(failure.into()),
            });
        }
        Ok(found)
    }

    /// Marks a namespace with an epoch: from now on transitions of that epoch, and of no other, are
    /// carried out. Never lowers a marker.
    ///
    /// # Errors
    /// See [`RedisAdmin::probe`]; [`BackendError::Epoch`] when a later epoch is marked already.
    pub async fn open_epoch(&self, namespace: &str, number: u64) -> Result<(), BackendError> {
        self.open_epoch_at(namespace, &[], number).await
    }

    /// As [`RedisAdmin::open_epoch`], at all of the given places.
    ///
    /// # Errors
    /// As of [`RedisAdmin::open_epoch`]; a part of the places may be marked then.
    pub async fn open_epoch_at(
        &self,
        namespace: &str,
        tags: &[String],
        number: u64,
    ) -> Result<(), BackendError> {
        const OPEN: &str = "\
            local now = tonumber(redis.call('GET', KEYS[1]) or '0') or 0\n\
            if now > tonumber(ARGV[1]) then return 0 end\n\
            redis.call('SET', KEYS[1], ARGV[1])\n\
            return 1";
        for name in names(namespace, tags) {
            let mut command = redis::cmd("EVAL");
            command.arg(OPEN).arg(1).arg(name).arg(number);
            if self.client.run::<u64>(&command).await? != 1 {
                return Err(BackendError::Epoch);
            }
        }
        Ok(())
    }
}

fn read(value: redis::Value) -> Result<Marker, BackendError> {
    let text: Option<String> = redis::from_redis_value(value).map_err(unexpected)?;
    let number = text.and_then(|text| text.parse().ok());
    Ok(number.map_or(Marker::Missing, Marker::Found))
}

fn names(namespace: &str, tags: &[String]) -> Vec<String> {
    match tags {
        [] => vec![keys::marker(namespace)],
        tags => tags.iter().map(|tag| keys::marker_at(namespace, tag)).collect(),
    }
}
