//! The way to the leader's pod: a label on it and on no other, and one EndpointSlice of a Service.
//!
//! Both follow the store, not the pods: readiness never encodes leadership, or a rolling update would
//! wait for ever. A route may be behind by the time it takes to see a change and to write it, so what
//! arrives at a pod that leads no more must still be refused by its fence.

use std::{collections::HashMap, sync::Mutex};

use holdfast_api::{
    names::{FIELD_MANAGER, LABEL_CLASS, LABEL_KIND, LABEL_MANAGED},
    v1alpha1::{LeaderElection, election::LeaderStatus},
};
use holdfast_core::Kind;
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use tokio::time::Instant;

use crate::{
    apply,
    context::{Context, lock},
    error::Error,
    pipeline::{RESYNC, Valid},
};

/// Says that kube-proxy and friends may use a slice for this Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Says who looks after a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// What a term promises; a Lease that others contest is a Lease all the same.
pub fn guarantee(valid: &Valid) -> String {
    let shared = if valid.is_shared() { " (shared with client-go)" } else { "" };
    format!("{}{shared}", valid.guarantee)
}

/// The routes that are as they should be: what was routed, and when it was seen last.
#[derive(Default)]
pub struct Routes(Mutex<HashMap<String, (Wanted, Instant)>>);

/// What a route depends on: the spec, and the term.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    generation: Option<i64>,
    leader: Option<LeaderStatus>,
}

impl Routes {
    fn are(&self, uid: &str, wanted: &Wanted) -> bool {
        let all = lock(&self.0);
        all.get(uid).is_some_and(|(known, at)| known == wanted && at.elapsed() < RESYNC)
    }

    fn note(&self, uid: String, wanted: Wanted) {
        let mut all = lock(&self.0);
        // What has not been looked at for so long is gone.
        all.retain(|_, (_, at)| at.elapsed() < 2 * RESYNC);
        all.insert(uid, (wanted, Instant::now()));
    }
}

/// Makes label and slice name this leader's pod and no other. Asks nothing while nothing changes.
///
/// # Errors
/// Whatever the API server says; trying again goes on from there.
pub async fn follow(
    ctx: &Context,
    election: &LeaderElection,
    leader: Option<&LeaderStatus>,
) -> Result<(), Error> {
    let (label, service) = (&election.spec.leader_label, &election.spec.service);
    if label.is_none() && service.is_none() {
        return Ok(());
    }
    let generation = election.metadata.generation;
    let (uid, wanted) =
        (election.uid().unwrap_or_default(), Wanted { generation, leader: leader.cloned() });
    if ctx.routes.are(&uid, &wanted) {
        return Ok(());
    }
    // Whoever shares the Lease may call itself anything.
    let leader = leader.map(|leader| leader.pod.as_str()).filter(|name| is_pod_name(name));
    let namespace = election.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), &namespace);
    let pod = match leader {
        None => None,
        Some(name) => {
            let what = format!("read pod \"{name}\"");
            pods.get_opt(name).await.map_err(Error::api(what))?
        }
    };
    if let Some(label) = label {
        mark(ctx, &pods, &label.name, &label.value, pod.as_ref()).await?;
    }
    let mut is_whole = leader.is_some() == pod.is_some();
    if let Some(service) = service {
        is_whole &= publish(ctx, election, &namespace, &service.name, pod.as_ref()).await?;
    }
    if is_whole {
        ctx.routes.note(uid, wanted);
    }
    Ok(())
}

/// Whether a pod can be called so.
fn is_pod_name(name: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=253).contains(&name.len())
        && name.bytes().all(ok)
        && name
            .split('.')
            .all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
}

/// Takes the label off every other pod first: two leaders are worse than none.
async fn mark(
    ctx: &Context,
    pods: &Api<Pod>,
    label: &str,
    value: &str,
    leader: Option<&Pod>,
) -> Result<(), Error> {
    let what = format!("list the pods with label {label}={value}");
    let params = ListParams::default().labels(&format!("{label}={value}"));
    let marked = pods.list_metadata(&params).await.map_err(Error::api(what))?;
    let name = leader.map(|pod| pod.name_any());
    let mut is_marked = false;
    for pod in marked {
        if Some(pod.name_any()) == name {
            is_marked = true;
        } else {
            write_label(ctx, pods, &pod.name_any(), label, None).await?;
        }
    }
    match name {
        Some(name) if !is_marked => write_label(ctx, pods, &name, label, Some(value)).await,
        _ => Ok(()),
    }
}

async fn write_label(
    ctx: &Context,
    pods: &Api<Pod>,
    name: &str,
    label: &str,
    value: Option<&str>,
) -> Result<(), Error> {
    ctx.metrics.wrote("label");
    let body = Patch::Merge(json!({ "metadata": { "labels": { label: value } } }));
    match pods.patch_metadata(name, &PatchParams::default(), &body).await {
        Ok(_) => Ok(()),
        // It has ended meanwhile, and its label with it.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Error::api(format!("label pod \"{name}\""))(error)),
    }
}

/// Returns whether there is a Service to route for.
async fn publish(
    ctx: &Context,
    election: &LeaderElection,
    namespace: &str,
    service: &str,
    leader: Option<&Pod>,
) -> Result<bool, Error> {
    let services: Api<Service> = Api::namespaced(ctx.client.clone(), namespace);
    let what = format!("read Service \"{service}\"");
    let found = services.get_opt(service).await.map_err(Error::api(what))?;
    let Some(found) = found else { return Ok(false) };
    let slice = mk_slice(election, namespace, &found, leader);
    let slices: Api<EndpointSlice> = Api::namespaced(ctx.client.clone(), namespace);
    let what = format!("read the EndpointSlice of \"{service}\"");
    let there = slices.get_opt(&slice.name_any()).await.map_err(Error::api(what))?;
    let is_same = there.as_ref().is_some_and(|there| {
        there.endpoints == slice.endpoints
            && there.ports == slice.ports
            && there.address_type == slice.address_type
            && slice.labels().iter().all(|(name, value)| there.labels().get(name) == Some(value))
    });
    if is_same {
        return Ok(true);
    }
    // The family of a slice cannot be changed.
    if let Some(there) = there.filter(|there| there.address_type != slice.address_type) {
        apply::delete_exactly(ctx, &slices, &there).await?;
    }
    apply::child(ctx, "endpointslice", &slice).await?;
    Ok(true)
}

/// The slice that names this pod, or none. Pure.
fn mk_slice(
    election: &LeaderElection,
    namespace: &str,
    service: &Service,
    leader: Option<&Pod>,
) -> EndpointSlice {
    let class = election.name_any();
    let address = leader.and_then(|pod| pod.status.as_ref()?.pod_ip.clone());
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default();
    let ports = ports.iter().filter_map(|port| mk_port(port, leader)).collect();
    let labels = [
        (SERVICE_NAME.to_owned(), service.name_any()),
        (MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned()),
        (LABEL_MANAGED.to_owned(), "true".to_owned()),
        (LABEL_KIND.to_owned(), Kind::LeaderElection.singular().to_owned()),
        (LABEL_CLASS.to_owned(), class.clone()),
    ];
    let is_v6 = address.as_ref().is_some_and(|address| address.contains(':'));
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("holdfast-{class}")),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels.into()),
            owner_references: election.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: if is_v6 { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: leader
            .zip(address)
            .map(|(pod, address)| mk_endpoint(pod, address))
            .into_iter()
            .collect(),
        ports: Some(ports),
    }
}

fn mk_endpoint(pod: &Pod, address: String) -> Endpoint {
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(true),
            serving: Some(true),
            terminating: Some(pod.metadata.deletion_timestamp.is_some()),
        }),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            name: Some(pod.name_any()),
            namespace: pod.namespace(),
            uid: pod.uid(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// A Service's port as the pod serves it: a name is looked up among the pod's containers.
fn mk_port(port: &ServicePort, leader: Option<&Pod>) -> Option<EndpointPort> {
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let spec = leader?.spec.as_ref()?;
            let ports =
                spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
            ports.into_iter().find(|there| there.name.as_ref() == Some(name))?.container_port
        }
    };
    Some(EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(number),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: port.app_protocol.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_pod_can_be_called_is_asked_for() {
        for good in ["a", "web-0", "web.x-1"] {
            assert!(is_pod_name(good), "{good}");
        }
        for bad in ["", "a/b", "../x", "A", "a_b", "-a", "a-", "a..b", "a?b", &"a".repeat(254)] {
            assert!(!is_pod_name(bad), "{bad}");
        }
    }
}
