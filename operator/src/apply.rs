//! The only writer of children, finalizers and annotations. Every write is the same when it is sent
//! twice, or is conditional on what was read; none takes anything from a holder.
//!
//! - Leases are *created* when they are missing, never applied: that would release them.
//! - A Lease is deleted only as the version that was seen to be unheld.
//! - Everything else is applied server-side under one field manager.

use std::fmt::Debug;

use holdfast_api::names::{FIELD_MANAGER, FINALIZER, LABEL_CLASS, LABEL_KIND, LABEL_MANAGED};
use holdfast_backend::lease::names;
use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope,
    api::{
        coordination::v1::Lease,
        core::v1::{Pod, Secret},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::Request,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    context::Context,
    error::Error,
    pipeline::{Applied, Planned, Valid},
};

/// Phase 4 of a class: its Leases.
///
/// # Errors
/// Whatever the API server says; the rest of the plan is made anew then.
pub async fn leases(ctx: &Context, valid: &Valid, planned: Planned) -> Result<Applied, Error> {
    let api: Api<Lease> = Api::namespaced(ctx.client.clone(), &valid.namespace);
    let mut applied = Applied { complete: true, again: planned.again, ..Applied::default() };
    // Something that is waited for is not there.
    applied.complete &= planned.again.is_none() || planned.free.is_empty();
    // First what stops grants, last what lets them go on.
    for lease in &planned.close {
        annotate(ctx, &**lease, json!({ names::CLOSED: "true" })).await?;
    }
    for lease in &planned.create {
        if let Some(name) = create_lease(ctx, &api, lease).await? {
            applied.complete = false;
            applied.in_the_way = Some(name);
        }
    }
    for lease in &planned.adopt {
        let body = json!({ "metadata": {
            "uid": lease.uid(), "resourceVersion": lease.resource_version(),
            "ownerReferences": planned.owner().map(|owner| vec![owner]),
        }});
        merge(ctx, &api, &lease.name_any(), &body).await?;
    }
    for lease in &planned.delete {
        delete_exactly(ctx, &api, &**lease).await?;
    }
    for lease in &planned.free {
        remove_finalizer(ctx, &**lease).await?;
    }
    for lease in &planned.open {
        annotate(ctx, &**lease, json!({ names::CLOSED: null })).await?;
    }
    Ok(applied)
}

/// Creates a Lease, held by nobody. One that is there already is as good if it is ours; otherwise
/// its name is returned.
async fn create_lease(
    ctx: &Context,
    api: &Api<Lease>,
    lease: &Lease,
) -> Result<Option<String>, Error> {
    let name = lease.name_any();
    let what = format!("create Lease \"{name}\"");
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    ctx.metrics.wrote("lease");
    match api.create(&params, lease).await {
        Ok(_) => return Ok(None),
        // The cache was behind, or somebody else was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(Error::api(what)(error)),
    }
    let there = api.get(&name).await.map_err(Error::api(what))?;
    let is_ours = [LABEL_MANAGED, LABEL_KIND, LABEL_CLASS]
        .iter()
        .all(|label| there.labels().get(*label) == lease.labels().get(*label));
    Ok((!is_ours).then_some(name))
}

/// Deletes an object as it was seen, or not at all. One that is gone is as good.
///
/// # Errors
/// [`Error::Conflict`] when it has changed since.
pub async fn delete_exactly<K>(ctx: &Context, api: &Api<K>, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: object.uid(),
            resource_version: object.resource_version(),
        }),
        ..DeleteParams::default()
    };
    ctx.metrics.wrote("delete");
    let what = format!("delete {} \"{}\"", K::kind(&()), object.name_any());
    gone_is_fine(api.delete(&object.name_any(), &params).await.map(drop).map_err(Error::api(what)))
}

/// Deletes an object by name. One that is gone is as good.
///
/// # Errors
/// Whatever the API server says.
pub async fn delete<K>(ctx: &Context, api: &Api<K>, name: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    ctx.metrics.wrote("delete");
    let what = format!("delete {} \"{name}\"", K::kind(&()));
    let params = DeleteParams::default();
    gone_is_fine(api.delete(name, &params).await.map(drop).map_err(Error::api(what)))
}

/// Lets a held Lease end: it takes no new holder from now on, its hold is not extended, and it stays
/// until our finalizer is taken off.
///
/// # Errors
/// [`Error::Conflict`] when it has changed since it was read.
pub async fn drain(ctx: &Context, lease: &Lease) -> Result<(), Error> {
    let namespace = lease.namespace().unwrap_or_default();
    let api: Api<Lease> = Api::namespaced(ctx.client.clone(), &namespace);
    if !lease.finalizers().iter().any(|name| name == FINALIZER) {
        add_finalizer(ctx, lease).await?;
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: lease.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    ctx.metrics.wrote("delete");
    let what = format!("drain Lease \"{}\"", lease.name_any());
    let deleted = api.delete(&lease.name_any(), &params).await;
    gone_is_fine(deleted.map(drop).map_err(Error::api(what)))
}

/// Adds our finalizer to an object as it was read.
///
/// # Errors
/// [`Error::Conflict`] when it has changed since.
pub async fn add_finalizer<K>(ctx: &Context, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let mut names = object.finalizers().to_vec();
    names.push(FINALIZER.into());
    set_finalizers(ctx, object, names).await
}

/// Takes our finalizer off an object as it was read.
///
/// # Errors
/// [`Error::Conflict`] when it has changed since.
pub async fn remove_finalizer<K>(ctx: &Context, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let names: Vec<_> = object.finalizers().iter().filter(|n| *n != FINALIZER).cloned().collect();
    if names.len() == object.finalizers().len() {
        return Ok(());
    }
    gone_is_fine(set_finalizers(ctx, object, names).await)
}

async fn set_finalizers<K>(ctx: &Context, object: &K, names: Vec<String>) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    ctx.metrics.wrote("finalizer");
    let body = json!({ "metadata": {
        "uid": object.uid(), "resourceVersion": object.resource_version(), "finalizers": names,
    }});
    patch_any(&ctx.client, object, &body).await
}

/// Sets annotations of an object as it was read; null takes one off.
///
/// # Errors
/// [`Error::Conflict`] when it has changed since.
pub async fn annotate<K>(ctx: &Context, object: &K, notes: serde_json::Value) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    ctx.metrics.wrote("annotation");
    let body = json!({ "metadata": {
        "uid": object.uid(), "resourceVersion": object.resource_version(), "annotations": notes,
    }});
    patch_any(&ctx.client, object, &body).await
}

/// Leaves a pod with these scheduling gates, and sets annotations, as it was read: in one write, so
/// that whoever finds the gate gone finds the annotations.
///
/// # Errors
/// [`Error::Conflict`] when it has changed since.
pub async fn ungate(
    ctx: &Context,
    pod: &Pod,
    gates: &[&String],
    notes: serde_json::Value,
) -> Result<(), Error> {
    ctx.metrics.wrote("gate");
    let gates: Vec<_> = gates.iter().map(|gate| json!({ "name": gate })).collect();
    let body = json!({
        "metadata": {
            "uid": pod.uid(), "resourceVersion": pod.resource_version(), "annotations": notes,
        },
        "spec": { "schedulingGates": gates },
    });
    patch_any(&ctx.client, pod, &body).await
}

/// A merge-patch of an object of any scope.
async fn patch_any<K>(client: &Client, object: &K, body: &serde_json::Value) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let name = object.name_any();
    let what = format!("change {} \"{name}\"", K::kind(&()));
    let url = K::url_path(&(), object.meta().namespace.as_deref());
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let request = Request::new(url).patch(&name, &params, &Patch::Merge(body));
    let request = request.map_err(kube::Error::BuildRequest).map_err(Error::api(&*what))?;
    client.request::<serde_json::Value>(request).await.map(drop).map_err(Error::api(what))
}

async fn merge<K>(
    ctx: &Context,
    api: &Api<K>,
    name: &str,
    body: &serde_json::Value,
) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    ctx.metrics.wrote("adopt");
    let what = format!("adopt {} \"{name}\"", K::kind(&()));
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let patched = api.patch(name, &params, &Patch::Merge(body)).await;
    gone_is_fine(patched.map(drop).map_err(Error::api(what)))
}

/// Applies a child in a namespace.
///
/// # Errors
/// Whatever the API server says.
pub async fn child<K>(ctx: &Context, what: &'static str, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(ctx.client.clone(), &namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let name = object.name_any();
    ctx.metrics.wrote(what);
    api.patch(&name, &params, &Patch::Apply(object))
        .await
        .map(drop)
        .map_err(Error::api(format!("apply {} \"{namespace}/{name}\"", K::kind(&()))))
}

/// Applies a Secret, and returns nothing of it to anybody.
///
/// # Errors
/// Whatever the API server says.
pub async fn secret(ctx: &Context, object: &Secret) -> Result<(), Error> {
    child(ctx, "secret", object).await
}

/// An object of the cluster by name, if it is there.
///
/// # Errors
/// Whatever the API server says, unless it is that there is none.
pub async fn get_cluster<K>(ctx: &Context, name: &str) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(ctx.client.clone());
    api.get_opt(name).await.map_err(Error::api(format!("read {} \"{name}\"", K::kind(&()))))
}

fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Api { source: kube::Error::Api(status), .. }) if status.code == 404 => Ok(()),
        result => result,
    }
}
