//! Condition types, their reasons, and the one way to set one.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// The object can be used. Never "held": contention must not turn a dashboard red.
pub const READY: &str = "Ready";
/// The store refuses writes rather than to evict locks.
pub const EVICTION_SAFE: &str = "EvictionSafe";
/// The store keeps its data over a restart.
pub const PERSISTENT: &str = "Persistent";
/// The store has a replica.
pub const REPLICATED: &str = "Replicated";

/// All is well.
pub const REASON_RECONCILED: &str = "Reconciled";
/// The spec breaks a rule.
pub const REASON_INVALID: &str = "Invalid";
/// The backend that a class names is not there.
pub const REASON_BACKEND_MISSING: &str = "BackendNotFound";
/// The backend cannot be reached.
pub const REASON_BACKEND_UNAVAILABLE: &str = "BackendUnavailable";
/// A new epoch waits for the holds of the old one to run out.
pub const REASON_QUARANTINE: &str = "Quarantine";
/// The operator is at it.
pub const REASON_PENDING: &str = "Pending";
/// The store may drop or refuse what a lock needs; the other conditions say what.
pub const REASON_UNSAFE: &str = "Unsafe";
/// What the store said.
pub const REASON_PROBED: &str = "Probed";

/// A condition to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The condition's type.
    pub type_: &'static str,
    /// True or false.
    pub status: bool,
    /// One of the reasons above.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

impl Verdict {
    /// A verdict.
    pub fn new(
        type_: &'static str,
        status: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Verdict { type_, status, reason, message: message.into() }
    }
}

/// Puts verdicts into a list of conditions: in their order, and with the transition time kept where
/// the status has not changed.
pub fn set_conditions(
    conditions: &[Condition],
    verdicts: &[Verdict],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    verdicts
        .iter()
        .map(|verdict| {
            let status = if verdict.status { "True" } else { "False" };
            let before = conditions.iter().find(|c| c.type_ == verdict.type_);
            let since = match before {
                Some(before) if before.status == status => before.last_transition_time.clone(),
                _ => Time(now),
            };
            Condition {
                type_: verdict.type_.into(),
                status: status.into(),
                reason: verdict.reason.into(),
                message: verdict.message.clone(),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let (t0, t1) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(100).unwrap());
        let verdict = |ok| [Verdict::new(READY, ok, REASON_RECONCILED, "m")];
        let first = set_conditions(&[], &verdict(true), Some(1), t0);
        let same = set_conditions(&first, &verdict(true), Some(2), t1);
        assert_eq!(same[0].last_transition_time, Time(t0));
        assert_eq!(same[0].observed_generation, Some(2));
        let other = set_conditions(&same, &verdict(false), Some(2), t1);
        assert_eq!(other[0].last_transition_time, Time(t1));
    }
}
