//! `holdfast-operator cleanup`: what an uninstall needs while the operator can still act.
//!
//! The order matters: first the webhook, so that no pod is refused when nobody answers; then the
//! operator, so that nobody adds a finalizer again; then the finalizers, so that every class can be
//! deleted with no operator around; then what the operator has made.
//!
//! What sidecars logged in with on a Redis goes as well, as far as the server can be reached.
//!
//! Classes and backends stay (the definitions carry Helm's keep policy), and so does the record of
//! fences that must outlive their classes. Nothing is validated: a broken class is freed as well.

use std::{collections::BTreeSet, fmt::Debug, time::Duration};

use clap::Args;
use holdfast_api::{
    bundle::BUNDLE_CONFIG_MAP,
    names::{FINALIZER, LABEL_MANAGED, REDIS_SECRET},
    v1alpha1::{Backend, LeaderElection, Lock, RateLimit, Semaphore, backend::Tenancy},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        apps::v1::Deployment,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod, Secret},
        rbac::v1::{Role, RoleBinding},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::{controllers::tenants, stores::Stores};

/// For how long one store may take.
const WITHIN: Duration = Duration::from_secs(5);
/// How often to look whether the operator's pods are gone.
const LOOK: Duration = Duration::from_millis(500);

/// What to take down.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// The namespace of the operator.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// The operator's Deployment.
    #[arg(long, env = "HOLDFAST_DEPLOYMENT", default_value = "holdfast-operator")]
    pub deployment: String,
    /// The MutatingWebhookConfiguration of the injector.
    #[arg(long, env = "HOLDFAST_WEBHOOK_CONFIGURATION", default_value = "holdfast-injector")]
    pub webhook_configuration: String,
    /// The Secret with the webhook's certificates.
    #[arg(long, env = "HOLDFAST_WEBHOOK_SECRET", default_value = "holdfast-webhook-tls")]
    pub webhook_secret: String,
    /// For how many seconds to wait for the operator's pods to stop.
    #[arg(long, env = "HOLDFAST_CLEANUP_WAIT_SECONDS", default_value_t = 120)]
    pub wait_seconds: u64,
}

/// Takes the operator down and leaves nothing that needs it.
///
/// # Errors
/// At the first thing that cannot be done; running it again goes on from there.
pub async fn run(client: Client, args: &CleanupArgs) -> anyhow::Result<()> {
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    delete(&webhooks, &args.webhook_configuration).await?;
    stop_operator(&client, args).await?;
    let mut namespaces = free::<Lock>(&client).await?;
    namespaces.extend(free::<LeaderElection>(&client).await?);
    namespaces.extend(free::<RateLimit>(&client).await?);
    namespaces.extend(free::<Semaphore>(&client).await?);
    free::<Backend>(&client).await?;
    // A class that was being deleted may have left its Leases draining.
    free::<Lease>(&client).await?;
    namespaces.extend(delete_managed::<Lease>(&client).await?);
    namespaces.extend(delete_managed::<RoleBinding>(&client).await?);
    namespaces.extend(delete_managed::<Role>(&client).await?);
    drop_users(&client, args, &namespaces).await?;
    for namespace in namespaces {
        let bundles: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        delete(&bundles, BUNDLE_CONFIG_MAP).await?;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        delete(&secrets, REDIS_SECRET).await?;
    }
    let secrets: Api<Secret> = Api::namespaced(client, &args.namespace);
    delete(&secrets, &args.webhook_secret).await?;
    tracing::info!("nothing is left that needs the operator; classes and backends are kept");
    Ok(())
}

/// Deletes the users of these namespaces on every Redis. A server that does not answer is no reason to
/// stop: such a user reaches nothing but the remains of its own namespace.
async fn drop_users(
    client: &Client,
    args: &CleanupArgs,
    namespaces: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let all: Api<Backend> = Api::all(client.clone());
    let backends = match all.list(&ListParams::default()).await {
        Ok(backends) => backends,
        // The definition is gone.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let stores = Stores::default();
    for backend in backends {
        if backend.spec.redis.tenancy == Tenancy::Shared {
            continue;
        }
        let dropping = async {
            let store = stores.get(&backend)?;
            store
                .set_credentials(tenants::credentials_in(client, &args.namespace, &backend).await?);
            for namespace in namespaces {
                store.admin.drop_user(&tenants::username(namespace)).await?;
            }
            anyhow::Ok(())
        };
        let failed = match timeout(WITHIN, dropping).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {WITHIN:?}"),
        };
        tracing::warn!(backend = backend.name_any(), failed, "users stay in the store");
    }
    Ok(())
}

/// Scales the operator to nothing and waits until none of its pods runs.
async fn stop_operator(client: &Client, args: &CleanupArgs) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &args.namespace);
    let Some(deployment) = deployments.get_opt(&args.deployment).await? else { return Ok(()) };
    let patch = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    deployments.patch_scale(&args.deployment, &PatchParams::default(), &patch).await?;
    let labels = deployment.spec.and_then(|spec| spec.selector.match_labels).unwrap_or_default();
    let selector: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
    let params = ListParams::default().labels(&selector.join(","));
    let give_up = Instant::now() + Duration::from_secs(args.wait_seconds);
    loop {
        let left = pods.list_metadata(&params).await?.items.len();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= give_up {
            anyhow::bail!(
                "{left} pods of the Deployment \"{}\" still run after {} s; stop them and run the \
                 cleanup again",
                args.deployment,
                args.wait_seconds
            );
        }
        sleep(LOOK).await;
    }
}

/// Takes our finalizer off every object of a kind. Returns their namespaces.
async fn free<K>(client: &Client) -> anyhow::Result<BTreeSet<String>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let all: Api<PartialObjectMeta<K>> = Api::all(client.clone());
    let objects = match all.list_metadata(&ListParams::default()).await {
        Ok(objects) => objects,
        // The definition is gone, and its objects with it.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(BTreeSet::new()),
        Err(error) => return Err(error.into()),
    };
    let mut namespaces = BTreeSet::new();
    for object in objects {
        namespaces.extend(object.namespace());
        let kept: Vec<_> = object.finalizers().iter().filter(|f| *f != FINALIZER).collect();
        if kept.len() == object.finalizers().len() {
            continue;
        }
        let url = K::url_path(&(), object.metadata.namespace.as_deref());
        let body = json!({ "metadata": {
            "uid": object.uid(), "resourceVersion": object.resource_version(), "finalizers": kept,
        }});
        let request = kube::core::Request::new(url).patch(
            &object.name_any(),
            &PatchParams::default(),
            &Patch::Merge(body),
        )?;
        match client.request::<serde_json::Value>(request).await {
            Ok(_) => tracing::info!(name = object.name_any(), kind = %K::kind(&()), "freed"),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(namespaces)
}

/// Deletes what the operator has made of a kind, in all namespaces. Returns the namespaces.
async fn delete_managed<K>(client: &Client) -> anyhow::Result<BTreeSet<String>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let params = ListParams::default().labels(&format!("{LABEL_MANAGED}=true"));
    let found = Api::<K>::all(client.clone()).list_metadata(&params).await?;
    let mut namespaces = BTreeSet::new();
    for object in found {
        let namespace = object.namespace().unwrap_or_default();
        let api: Api<K> = Api::namespaced(client.clone(), &namespace);
        delete(&api, &object.name_any()).await?;
        namespaces.insert(namespace);
    }
    Ok(namespaces)
}

/// Deletes an object, or finds that it is not there.
async fn delete<K: Clone + Debug + DeserializeOwned>(
    api: &Api<K>,
    name: &str,
) -> anyhow::Result<()> {
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => {
            Err(anyhow::Error::new(error).context(format!("could not delete \"{name}\"")))
        }
    }
}
