//! The only writer of status: a write only when something differs, and at most one a second per
//! object. A lock that is taken ten times a second must not become ten writes to etcd a second.

use std::{collections::HashMap, fmt::Debug, sync::Mutex, time::Duration};

use holdfast_api::names::FIELD_MANAGER;
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::Request,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    context::{Context, lock},
    error::Error,
};

/// The least time between two writes to one object.
const SPACING: Duration = Duration::from_secs(1);

/// When each object was written last, and since when it has been waited for.
#[derive(Default)]
pub struct Pace {
    written: Mutex<HashMap<String, Instant>>,
    since: Mutex<HashMap<String, Instant>>,
}

impl Pace {
    /// How long to wait until the next write.
    pub fn wait(&self, uid: &str) -> Duration {
        let written = lock(&self.written).get(uid).copied();
        written.map_or(Duration::ZERO, |at| SPACING.saturating_sub(at.elapsed()))
    }

    fn wrote(&self, uid: &str) {
        let mut written = lock(&self.written);
        // Old entries say nothing any more.
        if written.len() > 1_000 {
            written.retain(|_, at| at.elapsed() < SPACING);
        }
        written.insert(uid.to_owned(), Instant::now());
    }

    /// For how long this replica has been asked to delete an object.
    pub fn deleting_for(&self, uid: &str) -> Duration {
        lock(&self.since).entry(uid.to_owned()).or_insert_with(Instant::now).elapsed()
    }

    /// An object is gone.
    pub fn forget(&self, uid: &str) {
        lock(&self.since).remove(uid);
    }
}

/// Writes a status if it differs from the one that is there. Returns when it may be written, if not
/// now; the caller comes again then with what is true by that time.
///
/// # Errors
/// Whatever the API server says.
pub async fn write<K, S>(
    ctx: &Context,
    object: &K,
    there: Option<&S>,
    status: &S,
) -> Result<Option<Duration>, Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug,
    S: Serialize + PartialEq,
{
    if there == Some(status) {
        return Ok(None);
    }
    let uid = object.uid().unwrap_or_default();
    let wait = ctx.pace.wait(&uid);
    if !wait.is_zero() {
        return Ok(Some(wait));
    }
    ctx.pace.wrote(&uid);
    apply(ctx, object, None, status).await.map(|()| None)
}

/// Writes a status on the condition that the object is still the version that was read: what is
/// written was decided on it.
///
/// # Errors
/// [`Error::Conflict`] when somebody else wrote meanwhile.
pub async fn write_exactly<K, S>(ctx: &Context, object: &K, status: &S) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug,
    S: Serialize,
{
    apply(ctx, object, object.resource_version(), status).await
}

async fn apply<K, S>(
    ctx: &Context,
    object: &K,
    version: Option<String>,
    status: &S,
) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug,
    S: Serialize,
{
    let name = object.name_any();
    let what = format!("write the status of {} \"{name}\"", K::kind(&()));
    let mut metadata = json!({ "name": name, "uid": object.uid() });
    if let Some(version) = version {
        metadata["resourceVersion"] = version.into();
    }
    let body = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()),
        "metadata": metadata, "status": status,
    });
    let url = K::url_path(&(), object.meta().namespace.as_deref());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let request =
        Request::new(url).patch_subresource("status", &name, &params, &Patch::Apply(body));
    let request = request.map_err(kube::Error::BuildRequest).map_err(Error::api(&*what))?;
    ctx.metrics.wrote("status");
    ctx.client.request::<serde_json::Value>(request).await.map(drop).map_err(Error::api(what))
}
