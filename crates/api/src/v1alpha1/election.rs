//! LeaderElection: one leader at a time.

use holdfast_core::{
    ClassName, Fence, Holder,
    election::{self, ElectionConfig},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lock::AccessSpec;
use crate::names::ANNOTATION_TRANSFER_TO;
use crate::validate::{FieldError, Resolved, Validate, check_access};

/// An election of one leader among the pods that stand for it through their sidecars.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "holdfast.dev",
    version = "v1alpha1",
    kind = "LeaderElection",
    plural = "leaderelections",
    shortname = "le",
    category = "holdfast",
    namespaced,
    status = "LeaderElectionStatus",
    derive = "PartialEq",
    doc = "An election of one leader among the pods that stand for it through their sidecars. Each term carries a fencing token that only grows; a resource that checks it accepts no stale leader.",
    printcolumn(json_path = r#".status.conditions[?(@.type=="Ready")].status"#, name = "Ready", type_ = "string"),
    printcolumn(json_path = ".status.leader.pod", name = "Leader", type_ = "string"),
    printcolumn(json_path = ".status.leader.term", name = "Term", type_ = "string"),
    printcolumn(json_path = ".status.candidates", name = "Candidates", type_ = "integer", priority = 1),
    printcolumn(json_path = ".spec.backend", name = "Backend", type_ = "string"),
    printcolumn(json_path = ".status.guarantee", name = "Guarantee", type_ = "string"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$')")
        .message("metadata.name must have at most 52 characters of a-z, 0-9 and '-'")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.retryPeriodSeconds < self.leaseDurationSeconds")
        .message("retryPeriodSeconds must be less than leaseDurationSeconds"),
    validation = Rule::new("!has(self.renewDeadlineSeconds) || self.renewDeadlineSeconds < self.leaseDurationSeconds")
        .message("renewDeadlineSeconds must be less than leaseDurationSeconds"),
    validation = Rule::new("!has(self.renewDeadlineSeconds) || self.retryPeriodSeconds < self.renewDeadlineSeconds")
        .message("retryPeriodSeconds must be less than renewDeadlineSeconds"),
    validation = Rule::new("self.backend == 'lease' || !has(self.interop) || self.interop != 'ClientGo'")
        .message("interop ClientGo is about Leases: set backend to lease, or leave interop out"),
    validation = Rule::new("(has(self.interop) ? self.interop : 'None') == (has(oldSelf.interop) ? oldSelf.interop : 'None')")
        .message("interop cannot be changed: who contests a Lease must agree on it; create a new LeaderElection"),
    validation = Rule::new("self.backend != 'memory'")
        .message("the memory backend exists in `holdfast dev` only: use lease, or the name of a Backend")
)]
pub struct LeaderElectionSpec {
    /// Where the election lives: `lease` (the API server's etcd; the default), or the name of a
    /// Backend. Cannot be changed, because fences of two stores are not comparable.
    #[serde(default = "default_backend")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("backend cannot be changed: fences of two stores are not comparable; create a new LeaderElection"))]
    #[schemars(length(min = 1, max = 63))]
    pub backend: String,
    /// Seconds a term lasts without a renewal. A crashed leader is replaced after it at the latest;
    /// the leader itself stops earlier, see renewDeadlineSeconds.
    #[serde(default = "default_lease_duration")]
    #[schemars(range(min = 1, max = 3600))]
    pub lease_duration_seconds: u32,
    /// Seconds after its last renewal that succeeded at which a leader stops to lead. Absent: two
    /// thirds of leaseDurationSeconds (10 of 15). It stops a tenth before the lease ends in any case. A
    /// change is for terms that begin after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub renew_deadline_seconds: Option<u32>,
    /// Seconds a leader that resigned stands back before it is a candidate again, and after which a
    /// failed attempt is repeated.
    #[serde(default = "default_retry_period")]
    #[schemars(range(min = 1, max = 600))]
    pub retry_period_seconds: u32,
    /// `ClientGo`: candidates that use client-go's leader election may contest the same Lease. They
    /// write no fence, so the admission policy leaves the Lease alone. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interop: Option<Interop>,
    /// A label that the operator keeps on the leader's pod and on no other, such as
    /// `example.com/role: leader`. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_label: Option<LeaderLabel>,
    /// A Service without a selector, of this namespace: the operator keeps an EndpointSlice of it
    /// that names the leader's pod and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// Who may do what. Empty: every ServiceAccount of the namespace may stand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub access: Vec<AccessSpec>,
}

/// Who else may contest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Interop {
    /// Nobody.
    None,
    /// Candidates that use client-go's leader election.
    ClientGo,
}

/// A label of the leader's pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaderLabel {
    /// Its name, such as `example.com/role`.
    #[schemars(
        length(min = 1, max = 317),
        regex(
            pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
        )
    )]
    pub name: String,
    /// Its value.
    #[serde(default = "default_label_value")]
    #[schemars(
        length(max = 63),
        regex(pattern = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")
    )]
    pub value: String,
}

/// The Service whose endpoint is the leader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaderElectionStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: candidates can stand. Whether there is a leader does not matter to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// Who leads, if anybody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderStatus>,
    /// How many stand by. Absent on Leases: each sidecar alone knows whether its pod stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<u32>,
    /// What a term promises; see docs/guarantees.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<String>,
}

/// The leader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaderStatus {
    /// Whose pod.
    pub pod: String,
    /// The term: the fencing token of the leadership.
    pub term: String,
    /// Since when, by the operator's clock.
    pub since: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
}

fn default_backend() -> String {
    crate::bundle::LEASE_BACKEND.into()
}

fn default_lease_duration() -> u32 {
    15
}

fn default_retry_period() -> u32 {
    2
}

fn default_label_value() -> String {
    "true".into()
}

impl LeaderElection {
    /// The pod that the annotation `holdfast.dev/transfer-to` names, if a pod can be called so. Any
    /// other value is as none: it must not take the class from its candidates.
    pub fn transfer_to(&self) -> Option<Holder> {
        Holder::new(self.annotations().get(ANNOTATION_TRANSFER_TO)?).ok()
    }
}

impl Validate for LeaderElection {
    type Config = ElectionConfig;

    fn backend(&self) -> &str {
        &self.spec.backend
    }

    fn access(&self) -> &[AccessSpec] {
        &self.spec.access
    }

    fn validate(&self, on: &Resolved) -> Result<ElectionConfig, Vec<FieldError>> {
        let spec = &self.spec;
        let mut errors = check_access(&spec.access);
        let mut refuse = |field: &str, why: &str| errors.push(FieldError::new(field, why));
        if let Err(why) = ClassName::new(self.name_any()) {
            refuse("metadata.name", &why.to_string());
        }
        if !(1..=3_600).contains(&spec.lease_duration_seconds) {
            refuse("spec.leaseDurationSeconds", "must be 1 to 3600");
        }
        if !(1..=600).contains(&spec.retry_period_seconds) {
            refuse("spec.retryPeriodSeconds", "must be 1 to 600");
        }
        if spec.retry_period_seconds >= spec.lease_duration_seconds {
            refuse("spec.retryPeriodSeconds", "must be less than leaseDurationSeconds");
        }
        if let Some(renew) = spec.renew_deadline_seconds {
            if renew >= spec.lease_duration_seconds {
                refuse("spec.renewDeadlineSeconds", "must be less than leaseDurationSeconds");
            }
            if spec.retry_period_seconds >= renew {
                refuse("spec.retryPeriodSeconds", "must be less than renewDeadlineSeconds");
            }
        }
        let on_lease = spec.backend == crate::bundle::LEASE_BACKEND;
        if !on_lease && spec.interop == Some(Interop::ClientGo) {
            refuse(
                "spec.interop",
                "interop ClientGo is about Leases: set backend to lease, or leave interop out",
            );
        }
        if spec.backend == crate::bundle::MEMORY_BACKEND {
            refuse(
                "spec.backend",
                "the memory backend exists in `holdfast dev` only: use lease, or the name of a \
                 Backend",
            );
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(ElectionConfig {
            generation: self.metadata.generation.unwrap_or(1),
            lease_duration_ms: u64::from(spec.lease_duration_seconds) * 1_000,
            renew_deadline_ms: spec.renew_deadline_seconds.map(|s| u64::from(s) * 1_000),
            retry_period_ms: u64::from(spec.retry_period_seconds) * 1_000,
            interop: match spec.interop {
                None | Some(Interop::None) => election::Interop::None,
                Some(Interop::ClientGo) => election::Interop::ClientGo,
            },
            fence_floor: Fence::new(on.fence_floor),
            transfer_to: self.transfer_to(),
        })
    }
}
