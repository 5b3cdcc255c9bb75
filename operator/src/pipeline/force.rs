//! Force release by annotation: once, with an Event, and then the annotation is gone.
//!
//! A crash between the release and the end of the annotation must not take the lock from the next
//! holder as well. So the fence that the release is meant for is written down first; a key whose
//! fence has moved past it has been dealt with.

use std::{sync::Arc, time::Duration};

use holdfast_api::{load::did_you_mean, names::ANNOTATION_FORCE_RELEASE};
use holdfast_backend::{
    hub::Hub,
    lease::LeaseSemaphores,
    redis::{RedisLocks, RedisSemaphores, Redlocks},
};
use holdfast_core::{
    Address, Fence, Key, Kind, SessionId, Substrate, SystemClock,
    lock::{Keys, LockBackend, LockConfig},
};
use kube::{ResourceExt, runtime::events::EventType};
use serde_json::json;
use tokio::{sync::watch, time::timeout};

use super::{Controlled, Valid};
use crate::{apply, context::Context, error::Error, stores::known_epoch};

/// The newest fence that the release is meant for.
const MEANT_FOR: &str = "holdfast.dev/force-release-fence";
/// The Event about it.
const FORCE_RELEASED: &str = "ForceReleased";
/// For how long a store may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Does what the annotation asks for, if it is there.
///
/// # Errors
/// When it could not be done; it stays to be done.
pub async fn by_annotation<K: Controlled>(
    ctx: &Context,
    object: &K,
    valid: &Valid,
) -> Result<(), Error> {
    let Some(asked) = object.annotations().get(ANNOTATION_FORCE_RELEASE) else { return Ok(()) };
    let done = json!({ ANNOTATION_FORCE_RELEASE: null, MEANT_FOR: null });
    let holds = valid.lock.as_ref().ok_or_else(|| {
        format!("{ANNOTATION_FORCE_RELEASE}: a {} has no holds to release", K::KIND)
    });
    let asked = holds.and_then(|config| Ok((config, parse_asked(K::KIND, asked, config)?)));
    let (config, (key, only)) = match asked {
        Ok(found) => found,
        Err(why) => {
            apply::annotate(ctx, object, done).await?;
            ctx.tell(object, EventType::Warning, "ForceReleaseRefused", why, None).await;
            return Ok(());
        }
    };
    let at = Address {
        kind: K::KIND,
        namespace: valid.namespace.as_str().into(),
        class: valid.class.name.clone(),
        key,
    };
    let what = format!("release {at} by force");
    let locks = backend(ctx, K::KIND, valid)?;
    let store = |error| Error::store(what.clone())(error);
    let view = within(locks.query(&at, config)).await.map_err(store)?;
    let held = view.holder.as_ref().map(|holder| holder.fence);
    let newest = match valid.substrate {
        // Requests that were not granted may have raised what single servers show.
        Substrate::Redlock => held.or(view.last_fence),
        Substrate::Lease | Substrate::Redis | Substrate::Memory => view.last_fence,
    };
    let newest = newest.unwrap_or(Fence::new(0));
    let meant_for = object.annotations().get(MEANT_FOR).and_then(|text| text.parse::<Fence>().ok());
    let Some(meant_for) = meant_for else {
        // The change brings us back here.
        return apply::annotate(ctx, object, json!({ MEANT_FOR: newest.to_string() })).await;
    };
    let slots = (K::KIND == Kind::Semaphore && valid.substrate == Substrate::Lease)
        .then(|| LeaseSemaphores::beside(&ctx.leases));
    let mut taken = Vec::new();
    let tried = match (slots, only) {
        // Slot by slot, and perhaps only some of them before a crash: the fence of each tells.
        (Some(slots), None) => {
            within(slots.force_release_up_to(&at, config, meant_for, &mut taken)).await
        }
        (_, None) if newest > meant_for => Ok(()),
        // A hold that is named by its fence is that one or none, whatever was granted since.
        (_, only) => {
            within(locks.force_release_holds(&at, config, only)).await.map(|all| taken = all)
        }
    };
    // Those that were taken are told even if the rest was not: the next try does not find them.
    for view in &taken {
        tracing::info!(lock = %at, holder = %view.holder, fence = %view.fence,
            "released by force");
        let note = format!(
            "key \"{}\" was taken from pod \"{}\" (fence {}) by the annotation \
             {ANNOTATION_FORCE_RELEASE}",
            at.key, view.holder, view.fence
        );
        let about = Some((view.holder.to_string(), at.key.to_string()));
        ctx.forced.note(&at, view.fence);
        ctx.tell(object, EventType::Warning, FORCE_RELEASED, note, about).await;
    }
    tried.map_err(store)?;
    // Where what was older is taken once more, there may be nothing left of it.
    if taken.is_empty() && (newest <= meant_for || only.is_some()) {
        let note = format!("key \"{}\" was not held: nothing to release", at.key);
        ctx.tell(object, EventType::Normal, FORCE_RELEASED, note, None).await;
    }
    apply::annotate(ctx, object, done).await
}

/// What was asked for: a key, and of a semaphore perhaps the fence of one hold, as `KEY#FENCE`.
fn parse_asked(
    kind: Kind,
    asked: &str,
    config: &LockConfig,
) -> Result<(Key, Option<Fence>), String> {
    if let (Kind::Semaphore, Some((key, fence))) = (kind, asked.rsplit_once('#'))
        && let Ok(fence) = fence.parse()
    {
        return Ok((parse(key, config)?, Some(fence)));
    }
    Ok((parse(asked, config)?, None))
}

/// The key that was asked for; the only one, when none was.
fn parse(asked: &str, config: &LockConfig) -> Result<Key, String> {
    let key = match (asked, &config.keys) {
        ("", Keys::Fixed(keys)) if keys.len() == 1 => return Ok(keys[0].clone()),
        ("", _) => Key::default_key(),
        (asked, _) => Key::new(asked).map_err(|why| {
            format!("{ANNOTATION_FORCE_RELEASE}: \"{asked}\" cannot be a key: {why}")
        })?,
    };
    if config.keys.contains(&key) {
        return Ok(key);
    }
    let known = match &config.keys {
        Keys::Fixed(keys) => keys.iter().map(Key::as_str).collect(),
        Keys::Any => Vec::new(),
    };
    let hint = did_you_mean(key.as_str(), known);
    Err(format!("{ANNOTATION_FORCE_RELEASE}: there is no key \"{key}\"{hint}"))
}

async fn within<T>(
    call: impl Future<Output = Result<T, holdfast_core::BackendError>>,
) -> Result<T, holdfast_core::BackendError> {
    timeout(WITHIN, call).await.unwrap_or_else(|_| {
        Err(holdfast_core::BackendError::Unknown(format!("no answer within {WITHIN:?}")))
    })
}

/// The substrate of a class, with the epoch of now.
fn backend(ctx: &Context, kind: Kind, valid: &Valid) -> Result<Arc<dyn LockBackend>, Error> {
    if !matches!(valid.substrate, Substrate::Redis | Substrate::Redlock) {
        return Ok(match kind {
            Kind::Semaphore => LeaseSemaphores::beside(&ctx.leases),
            Kind::Lock | Kind::LeaderElection | Kind::RateLimit => ctx.leases.clone(),
        });
    }
    let what = || format!("reach Backend \"{}\"", valid.class.backend);
    let unavailable = |text: &str| holdfast_core::BackendError::Unavailable(text.to_owned());
    let backend = valid.backend.as_ref().ok_or_else(|| unavailable("there is none"));
    let backend = backend.map_err(Error::store(what()))?;
    let published = valid.published.as_ref();
    let there = published.and_then(|bundle| bundle.backends.get(&valid.class.backend));
    let epoch = there.and_then(|there| there.epoch.clone()).map(known_epoch);
    let config = ctx.stores.get(backend).map_err(Error::store(what()))?.config.clone();
    let (_, known) = watch::channel(epoch);
    let session = SessionId::random();
    if valid.substrate == Substrate::Redlock {
        let who = (session, Hub::new(), Arc::new(SystemClock) as _);
        let addresses = &backend.spec.redis.addresses;
        let locks = Redlocks::connect(&config, addresses, &valid.namespace, who, &known);
        return Ok(locks.map_err(Error::store(what()))?);
    }
    let locks = RedisLocks::connect(config, &valid.namespace, session, Hub::new(), known);
    let locks = locks.map_err(Error::store(what()))?;
    Ok(match kind {
        Kind::Semaphore => RedisSemaphores::beside(locks),
        Kind::Lock | Kind::LeaderElection | Kind::RateLimit => locks,
    })
}
