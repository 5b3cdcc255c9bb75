//! What a namespace has on each Redis that its classes live on: a user bound to its keys, the
//! credentials in its Secret, and the marker of the epoch.
//!
//! - A password is in the Secret before the store knows it: nobody is locked out by a crash. While
//!   passwords change, the store takes the old ones beside the new.
//! - It is there before a class needs it, and stays when none does any more: running pods see a new
//!   Secret only after a minute or so, and a class should not have to wait for that.
//! - A marker is set only for an epoch that is open, and before the bundle says so. A marker that is
//!   missing although the bundle said so has been lost, with data, and so the epoch is raised.
//! - A store that is away changes nothing of what was published.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Mutex,
    time::Duration,
};

use holdfast_api::{
    bundle::{Bundle, Epoch},
    names::{LABEL_MANAGED, REDIS_SECRET},
    v1alpha1::{
        Backend,
        backend::{EpochStatus, RedisSpec, Tenancy},
    },
};
use holdfast_backend::redis::Credentials;
use holdfast_core::BackendError;
use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, timeout};

use crate::{
    apply,
    context::{Context, lock},
    error::Error,
    stores::Store,
};

mod rotation;
mod servers;

use rotation::{ANNOTATION_ROTATED, Turn};

/// For how long one store may take.
const WITHIN: Duration = Duration::from_secs(3);
/// After how long to look again at a store that did not answer.
const RETRY: Duration = Duration::from_secs(1);

/// How often a Secret is read and a user is made anew although nothing has happened: people delete
/// them.
const SEE_TO: Duration = Duration::from_secs(60);

/// The run of a store that a user was made in, and the passwords that it was made with.
type MadeWith = (String, Vec<String>);

/// The users that this leader has seen to.
#[derive(Default)]
pub struct Users {
    /// By Backend (and server, where there are several) and namespace. A store that starts again has
    /// forgotten its users.
    made: Mutex<HashMap<(String, String), MadeWith>>,
    /// What each namespace's Secret says.
    secrets: Mutex<HashMap<String, Known>>,
}

/// A Secret as it was left, and what it was made for.
struct Known {
    at: Instant,
    of: Of,
    credentials: BTreeMap<String, String>,
}

/// The namespace's uid, and the Backends with what they say.
type Of = (Option<String>, Vec<(String, RedisSpec)>);

/// How far a namespace has come on its stores.
#[derive(Default)]
pub struct Tenants {
    open: BTreeSet<String>,
    /// Backend and server, where there are several.
    open_runs: BTreeSet<(String, String)>,
    /// When to look again.
    pub again: Option<Duration>,
}

impl Tenants {
    /// Whether the namespace may be told that the Backend's epoch is open.
    pub fn is_open(&self, backend: &str) -> bool {
        self.open.contains(backend)
    }

    /// As [`Tenants::is_open`], of one of several servers.
    pub fn is_open_on(&self, backend: &str, server: &str) -> bool {
        self.open_runs.contains(&(backend.to_owned(), server.to_owned()))
    }
}

/// Sees to the users, the Secret and the markers of a namespace: `wanted` are the Backends that its
/// classes live on, `admitted` all that they might.
///
/// # Errors
/// Whatever the API server says. A store that does not answer is no error here.
pub async fn provision(
    ctx: &Context,
    namespace: &str,
    wanted: &BTreeSet<String>,
    admitted: &BTreeSet<String>,
    published: Option<&Bundle>,
) -> Result<Tenants, Error> {
    let mut tenants = Tenants::default();
    let was_used =
        published.is_some_and(|bundle| bundle.backends.values().any(|b| b.redis.is_some()));
    if admitted.is_empty() && !was_used {
        return Ok(tenants);
    }
    let known = |names: &BTreeSet<String>| -> Vec<_> {
        names.iter().filter_map(|name| ctx.caches.backend(name)).collect()
    };
    let mut with_secret = known(admitted);
    // What all tenants share is given to those that need it only.
    with_secret.retain(|backend| {
        backend.spec.redis.tenancy == Tenancy::PerNamespaceUser
            || wanted.contains(&backend.name_any())
    });
    let credentials = secret(ctx, namespace, &with_secret).await?;
    let backends = known(wanted);
    for backend in &backends {
        let name = backend.name_any();
        let before = published.and_then(|bundle| bundle.backends.get(&name)?.epoch.clone());
        let tenant = Tenant { ctx, namespace, backend, name: &name };
        let passwords = rotation::accepted(&credentials, &name);
        if let Some(epoch) = tenant.epoch().filter(|epoch| !epoch.runs.is_empty()) {
            let set_up = tenant.set_up_servers(&epoch, &passwords, before.as_ref()).await;
            if !set_up.failed.is_empty() {
                let failed = set_up.failed.join("; ");
                tracing::debug!(backend = name, namespace, failed, "servers are not set up yet");
                tenants.again = Some(RETRY);
            }
            tenants.open_runs.extend(set_up.open.into_iter().map(|run| (name.clone(), run)));
            continue;
        }
        let set_up = async {
            let store = ctx.stores.get(backend)?;
            tenant.ensure_user(&store, passwords).await?;
            tenant.mark(&store, before.as_ref()).await
        };
        match timeout(WITHIN, set_up).await {
            Ok(Ok(true)) => {
                tenants.open.insert(name);
            }
            Ok(Ok(false)) => {}
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => format!("no answer within {WITHIN:?}"),
                };
                tracing::debug!(backend = name, namespace, why, "the store is not set up yet");
                tenants.again = Some(RETRY);
                // What sidecars were told stays true or false by the store's own guard.
                if tenant.epoch().is_some_and(|epoch| is_same(&epoch, before.as_ref())) {
                    tenants.open.insert(name);
                }
            }
        }
    }
    forget_users(ctx, namespace, wanted, published).await;
    Ok(tenants)
}

fn is_same(epoch: &EpochStatus, before: Option<&Epoch>) -> bool {
    before.is_some_and(|before| {
        before.open && before.number == epoch.number && before.replid == epoch.replid
    })
}

fn username_key(backend: &str) -> String {
    format!("{backend}.username")
}

fn password_key(backend: &str) -> String {
    format!("{backend}.password")
}

/// The ACL user of a namespace.
pub fn username(namespace: &str) -> String {
    format!("holdfast-{namespace}")
}

/// The credentials of a namespace, as its Secret has them by now.
async fn secret(
    ctx: &Context,
    namespace: &str,
    backends: &[std::sync::Arc<Backend>],
) -> Result<BTreeMap<String, String>, Error> {
    let uid = ctx.caches.namespace(namespace).and_then(|namespace| namespace.uid());
    let of = backends.iter().map(|b| (b.name_any(), b.spec.redis.clone())).collect();
    let of: Of = (uid, of);
    if let Some(known) = lock(&ctx.users.secrets).get(namespace)
        && known.of == of
        && known.at.elapsed() < SEE_TO
    {
        return Ok(known.credentials.clone());
    }
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
    let what = format!("read Secret \"{namespace}/{REDIS_SECRET}\"");
    let there = api.get_opt(REDIS_SECRET).await.map_err(Error::api(what))?;
    let is_there = there.is_some();
    let now = Timestamp::now();
    let turn = rotation::turn(there.as_ref(), ctx.args.rotate_every(), now);
    let since = there.as_ref().and_then(|secret| secret.annotations().get(ANNOTATION_ROTATED));
    let since = match (turn, since) {
        (Turn::Keep, Some(since)) => since.clone(),
        (Turn::Keep | Turn::Stamp | Turn::Begin | Turn::Finish, _) => now.to_string(),
    };
    let there = texts(there);
    let mut wanted = BTreeMap::new();
    for backend in backends {
        let name = backend.name_any();
        let (user, password) = match backend.spec.redis.tenancy {
            Tenancy::PerNamespaceUser => {
                let (password, previous) =
                    rotation::passwords(turn, &there, &name, random_password);
                rotation::note_previous(&mut wanted, &name, previous);
                (username(namespace), password)
            }
            Tenancy::Shared => {
                let shared = own_credentials(ctx, backend).await?;
                let user = shared.username.unwrap_or_else(|| "default".into());
                (user, shared.password.unwrap_or_default())
            }
        };
        wanted.insert(username_key(&name), user);
        wanted.insert(password_key(&name), password);
    }
    if wanted.is_empty() {
        if is_there {
            apply::delete(ctx, &api, REDIS_SECRET).await?;
        }
    } else if wanted != there || turn != Turn::Keep {
        tracing::info!(namespace, ?turn, "writes the Redis credentials");
        let data = wanted.iter().map(|(k, v)| (k.clone(), ByteString(v.clone().into_bytes())));
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(REDIS_SECRET.into()),
                namespace: Some(namespace.to_owned()),
                labels: Some([(LABEL_MANAGED.to_owned(), "true".to_owned())].into()),
                annotations: Some([(ANNOTATION_ROTATED.to_owned(), since)].into()),
                ..ObjectMeta::default()
            },
            data: Some(data.collect()),
            type_: Some("Opaque".into()),
            ..Secret::default()
        };
        apply::secret(ctx, &secret).await?;
    }
    // Whoever deleted the Secret may have deleted the users as well.
    lock(&ctx.users.made).retain(|(_, of), _| of != namespace);
    let known = Known { at: Instant::now(), of, credentials: wanted.clone() };
    lock(&ctx.users.secrets).insert(namespace.to_owned(), known);
    Ok(wanted)
}

fn texts(secret: Option<Secret>) -> BTreeMap<String, String> {
    let data = secret.and_then(|secret| secret.data).unwrap_or_default();
    let text = |bytes: ByteString| String::from_utf8(bytes.0).unwrap_or_default();
    data.into_iter().map(|(key, value)| (key, text(value))).collect()
}

/// The operator's own credentials on a Backend.
///
/// # Errors
/// Whatever the API server says.
pub async fn own_credentials(ctx: &Context, backend: &Backend) -> Result<Credentials, Error> {
    credentials_in(&ctx.client, &ctx.namespace, backend).await
}

/// The same, for who has no context: the Secret is in the operator's namespace.
///
/// # Errors
/// Whatever the API server says.
pub async fn credentials_in(
    client: &Client,
    namespace: &str,
    backend: &Backend,
) -> Result<Credentials, Error> {
    let Some(reference) = &backend.spec.redis.credentials_secret_ref else {
        return Ok(Credentials::default());
    };
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = format!("read Secret \"{namespace}/{}\"", reference.name);
    let secret = texts(Some(api.get(&reference.name).await.map_err(Error::api(what))?));
    Ok(Credentials {
        username: secret.get("username").filter(|name| !name.is_empty()).cloned(),
        password: secret.get("password").filter(|text| !text.is_empty()).cloned(),
    })
}

/// Two random identifiers: 244 random bits.
fn random_password() -> String {
    use holdfast_core::HoldId;
    format!("{}{}", HoldId::random(), HoldId::random())
}

/// A namespace on one store.
struct Tenant<'a> {
    ctx: &'a Context,
    namespace: &'a str,
    backend: &'a Backend,
    name: &'a str,
}

impl Tenant<'_> {
    fn epoch(&self) -> Option<EpochStatus> {
        self.backend.status.as_ref()?.epoch.clone()
    }

    async fn ensure_user(&self, store: &Store, passwords: Vec<String>) -> Result<(), BackendError> {
        let Some(epoch) = self.epoch() else { return Ok(()) };
        if self.backend.spec.redis.tenancy == Tenancy::Shared {
            return Ok(());
        }
        let entry = (self.name.to_owned(), self.namespace.to_owned());
        let made_with = (epoch.replid, passwords);
        if lock(&self.ctx.users.made).get(&entry) == Some(&made_with) {
            return Ok(());
        }
        let user = username(self.namespace);
        store.admin.ensure_user(self.namespace, &user, &made_with.1).await?;
        lock(&self.ctx.users.made).insert(entry, made_with);
        Ok(())
    }

    /// Sees to the marker; whether the epoch is open for the namespace.
    async fn mark(&self, store: &Store, before: Option<&Epoch>) -> Result<bool, BackendError> {
        let Some(epoch) = self.epoch().filter(|epoch| epoch.open) else { return Ok(false) };
        match store.admin.marker(self.namespace).await? {
            Some(marked) if marked == epoch.number => Ok(true),
            Some(marked) if marked > epoch.number => {
                self.doubt("", marked, "a later epoch is marked in the store");
                Ok(false)
            }
            _ if is_same(&epoch, before) => {
                self.doubt("", epoch.number, "the marker of a namespace was lost");
                Ok(false)
            }
            _ => match store.admin.open_epoch(self.namespace, epoch.number).await {
                Ok(()) => Ok(true),
                Err(BackendError::Epoch) => Ok(false),
                Err(error) => Err(error),
            },
        }
    }

    fn doubt(&self, server: &str, above: u64, why: &'static str) {
        tracing::warn!(backend = self.name, server, namespace = self.namespace, above, why);
        self.ctx.doubts.raise_above(self.name, server, above);
        self.ctx.triggers.backend(self.name);
    }
}

/// Deletes the users of a namespace on Backends that it used until now. Trying once is enough: such
/// a user reaches nothing but the remains of its own namespace.
async fn forget_users(
    ctx: &Context,
    namespace: &str,
    wanted: &BTreeSet<String>,
    published: Option<&Bundle>,
) {
    let before = published.iter().flat_map(|bundle| bundle.backends.keys());
    for name in before.filter(|name| !wanted.contains(*name)) {
        let Some(backend) = ctx.caches.backend(name) else { continue };
        drop_user(ctx, namespace, &backend).await;
    }
}

/// Deletes the user of a namespace, if the store lets us.
pub async fn drop_user(ctx: &Context, namespace: &str, backend: &Backend) {
    let name = backend.name_any();
    lock(&ctx.users.made).retain(|(of, on), _| !(servers::is_on(of, &name) && on == namespace));
    if backend.spec.redis.tenancy == Tenancy::Shared {
        return;
    }
    let Ok(store) = ctx.stores.get(backend) else { return };
    let user = username(namespace);
    if backend.spec.redis.mode.has_several_servers() {
        return servers::drop_users(&store, namespace, &user).await;
    }
    match timeout(WITHIN, store.admin.drop_user(&user)).await {
        Ok(Ok(())) => {}
        failed => tracing::info!(backend = name, user, ?failed, "a user stays in the store"),
    }
}
