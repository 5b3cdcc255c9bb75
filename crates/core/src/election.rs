//! LeaderElection: who leads. A term of leadership is a hold of the class's one key; its rules are
//! those of [`lock`](crate::lock), under the configuration that [`ElectionConfig::lock`] compiles.
//!
//! What is particular to elections is who asks (a candidate that never stops asking) and what the
//! app is told; both are the sidecar's.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Fence, Holder, Key, Substrate,
    lock::{Consistency, Fairness, Keys, LockConfig},
};

/// How many candidates may stand by. More than any Deployment has replicas.
const MAX_CANDIDATES: u32 = 10_000;

/// Whether candidates that know nothing of Holdfast may contest the same Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Interop {
    /// They may not: the API server refuses their writes.
    #[default]
    None,
    /// They may, as client-go's leader election does. They write no fence, so a term's fence is
    /// above every version of the Lease in earlier terms, and nothing more.
    ClientGo,
}

/// A validated LeaderElection class. Durations are whole milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ElectionConfig {
    /// The class's `metadata.generation`: of two configurations a store keeps the newer.
    pub generation: i64,
    /// How long a term lasts without a renewal. A crashed leader is replaced after it at the latest.
    pub lease_duration_ms: u64,
    /// How long after its last renewal that succeeded a leader stops; absent: see
    /// [`ElectionConfig::renew_deadline`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_deadline_ms: Option<u64>,
    /// How long a leader that resigned stands back before it is a candidate again, and how long a
    /// candidate whose attempt failed waits before the next.
    pub retry_period_ms: u64,
    /// Who else may contest.
    pub interop: Interop,
    /// Fences of this class are greater than this one: what a deleted class of the same name left.
    pub fence_floor: Fence,
    /// The pod that is to lead: another leader hands over, other candidates stand back for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer_to: Option<Holder>,
}

impl ElectionConfig {
    /// How long after its last renewal that succeeded a leader stops: two thirds of the lease
    /// duration if nothing else is said, as with client-go's defaults. It never leads longer than its
    /// hold may be trusted ([`crate::clock::trusted_for`]), whatever this says.
    pub fn renew_deadline(&self) -> Duration {
        let ms = self.renew_deadline_ms.unwrap_or(self.lease_duration_ms * 2 / 3);
        Duration::from_millis(ms)
    }

    /// The lock that a term is a hold of, on a substrate.
    pub fn lock(&self, on: Substrate) -> LockConfig {
        LockConfig {
            generation: self.generation,
            ttl_ms: self.lease_duration_ms,
            max_hold_ms: 0,
            min_hold_ms: 0,
            // A stale leader is kept out by fences; its time to live is the delay.
            lock_delay_ms: 0,
            permits: 1,
            max_per_holder: 0,
            keys: Keys::Fixed(vec![Key::default_key()]),
            max_waiters: MAX_CANDIDATES,
            fairness: match on {
                Substrate::Memory | Substrate::Redis => Fairness::Fifo,
                Substrate::Lease => Fairness::None,
            },
            consistency: Consistency::Strict,
            fence_floor: self.fence_floor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_config(renew_deadline_ms: Option<u64>) -> ElectionConfig {
        ElectionConfig {
            generation: 3,
            lease_duration_ms: 15_000,
            renew_deadline_ms,
            retry_period_ms: 2_000,
            interop: Interop::None,
            fence_floor: Fence::new(9),
            transfer_to: None,
        }
    }

    #[test]
    fn a_leader_stops_after_two_thirds_of_its_lease_unless_told_otherwise() {
        assert_eq!(mk_config(None).renew_deadline(), Duration::from_secs(10));
        assert_eq!(mk_config(Some(4_000)).renew_deadline(), Duration::from_secs(4));
    }

    #[test]
    fn a_term_is_a_hold_of_one_key_without_an_end_of_its_own() {
        let config = mk_config(None);
        let lock = config.lock(Substrate::Redis);
        assert_eq!((lock.ttl_ms, lock.max_hold_ms, lock.lock_delay_ms), (15_000, 0, 0));
        assert_eq!(lock.keys, Keys::Fixed(vec![Key::default_key()]));
        assert_eq!((lock.generation, lock.fence_floor), (3, Fence::new(9)));
        assert_eq!(lock.fairness, Fairness::Fifo);
        assert_eq!(config.lock(Substrate::Lease).fairness, Fairness::None);
    }
}
