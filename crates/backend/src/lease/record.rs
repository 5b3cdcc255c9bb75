//! Between the Lease object and core's record, and the bodies of every write.
//!
//! Each write is one merge-patch with `uid` and `resourceVersion`: it applies to exactly the state
//! that was read, or not at all. The fence of a grant is that resourceVersion, stored by the same
//! write: known before it is sent, strictly increasing over grants *and* over deletion and
//! re-creation of the object, because the next grant's precondition is at least this write's result.

use std::time::Duration;

use holdfast_core::{BackendError, Fence, lock::record::Record};
use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use serde_json::{Value, json};

use super::names;

/// A Lease as it was read: what the rules care about, and what a write and a view need besides.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub record: Record,
    /// The precondition of the next write.
    pub basis: Basis,
    /// The mark of the session that holds, if the holder is one of ours.
    pub session: Option<String>,
    /// Nothing is granted on it after the hold that there is.
    pub closed: bool,
    /// Who holds, for people.
    pub holder: String,
    /// When the hold began by the holder's wall clock: for people, and for limits on hold times
    /// after a restart of this very machine's process.
    pub acquired: Option<Timestamp>,
    transitions: i32,
}

/// What a write is conditional on: this incarnation of the object, in this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Basis {
    pub uid: String,
    pub version: String,
}

/// A hold to be written.
pub(super) struct Claim<'a> {
    pub holder: &'a str,
    pub mark: &'a str,
    pub session: &'a str,
    pub ttl: Duration,
}

impl Snapshot {
    /// Decodes what the API server sent.
    ///
    /// # Errors
    /// For a Lease that cannot be written conditionally, or whose fence is no number.
    pub(super) fn of(lease: &Lease) -> Result<Self, BackendError> {
        let meta = &lease.metadata;
        let (Some(uid), Some(version)) = (meta.uid.clone(), meta.resource_version.clone()) else {
            return Err(BackendError::Internal("a Lease without uid or resourceVersion".into()));
        };
        let annotation =
            |name: &str| meta.annotations.as_ref().and_then(|all| all.get(name)).cloned();
        let fence = annotation(names::FENCE).map(|text| text.parse::<Fence>()).transpose();
        let fence = fence.map_err(|error| BackendError::Internal(error.to_string()))?;
        let spec = lease.spec.clone().unwrap_or_default();
        let identity = spec.holder_identity.unwrap_or_default();
        let seconds = spec.lease_duration_seconds.unwrap_or(1).max(1);
        let stamped = |time: &Option<MicroTime>| time.as_ref().map(|time| time.0);
        let renewal = stamped(&spec.renew_time).map(|t| t.to_string()).unwrap_or_default();
        // A holder that knows nothing of us (kubectl, client-go) left our annotation behind: what it
        // wrote counts, and it is nobody's hold here.
        let ours = annotation(names::HOLD).filter(|mark| names::is_identity_of(&identity, mark));
        let session = annotation(names::SESSION).filter(|_| ours.is_some());
        let mark = ours.unwrap_or_else(|| identity.clone());
        let holder = identity.rsplit_once('_').map_or(identity.as_str(), |(pod, _)| pod).to_owned();
        Ok(Snapshot {
            record: Record {
                uid: uid.clone(),
                mark: (!identity.is_empty()).then_some(mark),
                fence,
                duration: Duration::from_secs(seconds as u64),
                renewal,
                released: annotation(names::RELEASED).as_deref() == Some("true"),
                terminating: meta.deletion_timestamp.is_some(),
            },
            basis: Basis { uid, version },
            session,
            closed: annotation(names::CLOSED).as_deref() == Some("true"),
            holder,
            acquired: stamped(&spec.acquire_time),
            transitions: spec.lease_transitions.unwrap_or(0),
        })
    }

    /// The version as a number: versions of one resource type have one order.
    pub(super) fn version(&self) -> Option<u64> {
        self.basis.version.parse().ok()
    }

    /// Whether this is what [`Basis::force`] of an earlier state has made: unheld, with that state's
    /// version as its fence. A grant on that very state that was given back already looks the same:
    /// the hold of before is over all the same.
    pub(super) fn is_after_force_on(&self, earlier: &Snapshot) -> bool {
        self.basis.uid == earlier.basis.uid
            && self.record.mark.is_none()
            && self.record.fence.map(Fence::get) == earlier.version()
    }

    /// The fence that a grant on top of this state gets.
    ///
    /// # Errors
    /// When it would not be higher than every fence before it: an etcd that was restored without
    /// `--bump-revision` counts from an older number.
    pub(super) fn next_fence(&self, floor: Fence) -> Result<Fence, BackendError> {
        let version = &self.basis.version;
        let next: Fence = version.parse().map_err(|_| {
            BackendError::Internal(format!("resourceVersion \"{version}\" is not a number"))
        })?;
        match self.record.fence.max(Some(floor)) {
            Some(last) if next <= last => Err(BackendError::Unavailable(format!(
                "the API server's revision {next} is not above fence {last}: etcd was restored to \
                 an older state; restore it with --bump-revision"
            ))),
            _ => Ok(next),
        }
    }

    /// Grants: a new holder, and the fence in the same write.
    pub(super) fn grant(&self, claim: &Claim<'_>) -> Value {
        let now = now();
        json!({
            "metadata": self.basis.metadata(json!({
                names::FENCE: self.basis.version,
                names::HOLD: claim.mark,
                names::SESSION: claim.session,
                names::RELEASED: null,
            })),
            "spec": {
                "holderIdentity": names::identity(claim.holder, claim.mark),
                "leaseDurationSeconds": whole_seconds(claim.ttl),
                "acquireTime": now,
                "renewTime": now,
                // For tools that know client-go's records. Not a fence: it starts again at 0.
                "leaseTransitions": self.transitions.saturating_add(1),
            },
        })
    }
}

impl Basis {
    /// Extends the hold.
    pub(super) fn renewal(&self, ttl: Duration) -> Value {
        json!({
            "metadata": self.metadata(json!({})),
            "spec": { "leaseDurationSeconds": whole_seconds(ttl), "renewTime": now() },
        })
    }

    /// Ends the hold. The fence stays.
    pub(super) fn release(&self) -> Value {
        self.clear(json!({ names::HOLD: null, names::SESSION: null, names::RELEASED: null }))
    }

    /// Ends the hold by force, and raises the fence: what the old holder still does is stale from
    /// now on, not only from the next grant on.
    pub(super) fn force(&self) -> Value {
        self.clear(json!({
            names::HOLD: null,
            names::SESSION: null,
            names::RELEASED: null,
            names::FENCE: self.version,
        }))
    }

    fn clear(&self, annotations: Value) -> Value {
        json!({
            "metadata": self.metadata(annotations),
            // As client-go releases: an empty holder, one second.
            "spec": { "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now() },
        })
    }

    /// Ends the hold early: the record stands for the rest of its minimal time, and no longer.
    pub(super) fn stand(&self, rest: Duration) -> Value {
        json!({
            "metadata": self.metadata(json!({ names::RELEASED: "true" })),
            "spec": { "leaseDurationSeconds": whole_seconds(rest), "renewTime": now() },
        })
    }

    /// Changes nothing but the version, so that no other write on this basis can apply any more.
    /// The value is new each time: a patch that changes nothing would not move the version.
    pub(super) fn settlement(&self) -> Value {
        let nonce = format!("{:016x}", rand::random::<u64>());
        json!({ "metadata": self.metadata(json!({ names::SETTLED: nonce })) })
    }

    fn metadata(&self, annotations: Value) -> Value {
        json!({
            "uid": self.uid,
            "resourceVersion": self.version,
            "annotations": annotations,
        })
    }
}

/// Rounded up: a record must not expire before the hold it stands for.
fn whole_seconds(duration: Duration) -> i32 {
    let seconds = duration.as_millis().div_ceil(1_000).max(1);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// With six digits, as the API server insists.
fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::lease) fn mk_snapshot(version: u64) -> Snapshot {
        let mut lease = mk_lease("", json!({}));
        lease.metadata.resource_version = Some(version.to_string());
        Snapshot::of(&lease).unwrap()
    }

    fn mk_lease(holder: &str, annotations: Value) -> Lease {
        serde_json::from_value(json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "uid": "u", "resourceVersion": "41", "annotations": annotations },
            "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15 },
        }))
        .unwrap()
    }

    #[test]
    fn a_grant_carries_its_precondition_as_its_fence() {
        let seen = Snapshot::of(&mk_lease("", json!({ names::FENCE: "17" }))).unwrap();
        assert_eq!(seen.record.mark, None);
        assert_eq!(seen.next_fence(Fence::new(0)).unwrap(), Fence::new(41));
        let mark = names::mark("secret");
        let claim =
            Claim { holder: "pod-1", mark: &mark, session: "s", ttl: Duration::from_millis(1_001) };
        let body = seen.grant(&claim);
        assert_eq!(body["metadata"]["resourceVersion"], "41");
        assert_eq!(body["metadata"]["annotations"][names::FENCE], "41");
        assert_eq!(body["spec"]["leaseDurationSeconds"], 2);
        assert!(!body.to_string().contains("secret"));
        let time = body["spec"]["renewTime"].as_str().unwrap();
        assert_eq!(time.rsplit_once('.').unwrap().1.len(), 7, "six digits and Z: {time}");
    }

    #[test]
    fn an_older_revision_than_the_last_fence_grants_nothing() {
        let seen = Snapshot::of(&mk_lease("", json!({ names::FENCE: "41" }))).unwrap();
        assert!(matches!(seen.next_fence(Fence::new(0)), Err(BackendError::Unavailable(_))));
        let seen = Snapshot::of(&mk_lease("", json!({}))).unwrap();
        assert!(matches!(seen.next_fence(Fence::new(41)), Err(BackendError::Unavailable(_))));
        assert!(seen.next_fence(Fence::new(40)).is_ok());
    }

    #[test]
    fn a_foreign_holder_is_not_taken_for_the_hold_whose_annotation_it_left() {
        let mark = names::mark("h");
        let ours = mk_lease(&names::identity("pod", &mark), json!({ names::HOLD: mark }));
        let ours = Snapshot::of(&ours).unwrap();
        assert_eq!((ours.record.mark.as_deref(), &*ours.holder), (Some(&*mark), "pod"));
        let foreign = mk_lease("go-candidate", json!({ names::HOLD: mark }));
        let foreign = Snapshot::of(&foreign).unwrap();
        assert_eq!(foreign.record.mark.as_deref(), Some("go-candidate"));
        assert_eq!(foreign.holder, "go-candidate");
    }
}
