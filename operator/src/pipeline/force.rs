//! Force release by annotation: once, with an Event, and then the annotation is gone.
//!
//! A crash between the release and the end of the annotation must not take the lock from the next
//! holder as well, nor may what was taken go untold. So the newest fence that the release is meant for
//! is written down first, with who holds: what is newer is left alone, and who is gone is told.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_api::{load::did_you_mean, names::ANNOTATION_FORCE_RELEASE};
use holdfast_backend::{
    hub::Hub,
    lease::LeaseSemaphores,
    redis::{RedisLocks, RedisSemaphores, Redlocks},
};
use holdfast_core::{
    Address, Fence, Holder, Key, Kind, SessionId, Substrate, SystemClock,
    lock::{HolderView, Keys, LockBackend, LockConfig, LockView, Which},
    semaphore::NAMED,
};
use kube::{ResourceExt, runtime::events::EventType};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::watch, time::timeout};

use super::{Controlled, Valid};
use crate::{apply, context::Context, error::Error, stores::known_epoch};

/// What the release is meant for, see [`Meant`].
const MEANT: &str = "holdfast.dev/force-release-meant";
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
    let Some(asked) = object.annotations().get(ANNOTATION_FORCE_RELEASE) else {
        // What was asked for and taken back must not count for what is asked for next.
        return match object.annotations().contains_key(MEANT) {
            true => apply::annotate(ctx, object, json!({ MEANT: null })).await,
            false => Ok(()),
        };
    };
    let done = json!({ ANNOTATION_FORCE_RELEASE: null, MEANT: null });
    let holds = valid.lock.as_ref().ok_or_else(|| {
        format!("{ANNOTATION_FORCE_RELEASE}: a {} has no holds to release", K::KIND)
    });
    let found = holds.and_then(|config| Ok((config, parse_asked(K::KIND, asked, config)?)));
    let (config, (key, only)) = match found {
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
    let slots = (K::KIND == Kind::Semaphore && valid.substrate == Substrate::Lease)
        .then(|| LeaseSemaphores::beside(&ctx.leases));
    let store = |error| Error::store(what.clone())(error);
    let view = match &slots {
        Some(slots) => within(slots.query_all(&at, config)).await,
        None => within(locks.query(&at, config)).await,
    };
    let view = view.map_err(store)?;
    let held = view.holder.as_ref().map(|holder| holder.fence);
    let newest = match valid.substrate {
        // Requests that were not granted may have raised what single servers show.
        Substrate::Redlock => held.or(view.last_fence),
        Substrate::Lease | Substrate::Redis | Substrate::Memory => view.last_fence,
    };
    let newest = newest.unwrap_or(Fence::new(0));
    let Some((meant, text)) = Meant::written_on(object, asked) else {
        let meant = json!(Meant::by(asked, newest, only, &view)).to_string();
        apply::annotate(ctx, object, json!({ MEANT: meant })).await?;
        // The change brings us back here.
        ctx.forced.begin(format!("{at} {meant}"));
        return Ok(());
    };
    let is_first = ctx.forced.is_first_try(&format!("{at} {text}"));
    let which = only.map_or(Which::UpTo(meant.newest), Which::One);
    let mut taken = Vec::new();
    let tried = match &slots {
        // Slot by slot, and perhaps only some of them before the time is over.
        Some(slots) => within(slots.force(&at, config, which, &mut taken)).await,
        None if valid.substrate != Substrate::Redlock => {
            within(locks.force_release_holds(&at, config, which)).await.map(|all| taken = all)
        }
        // By its fence it cannot be named there: whoever was meant has gone.
        None if newest > meant.newest => Ok(()),
        None => {
            let holder = within(locks.force_release(&at, config)).await;
            holder.map(|holder| taken.extend(holder))
        }
    };
    // Those that were taken are told even if the rest was not: the next try does not find them.
    let tell = async |holder: &str, fence: Fence, or: &str| {
        tracing::info!(lock = %at, holder, %fence, "released by force{or}");
        let note = format!(
            "key \"{}\" was taken from pod \"{holder}\" (fence {fence}) by the annotation \
             {ANNOTATION_FORCE_RELEASE}{or}",
            at.key
        );
        // Of many holds none but these can be asked about again.
        if only.is_some() || meant.holders.contains_key(&fence) {
            ctx.forced.note(&at, fence);
        }
        let about = Some((holder.to_owned(), at.key.to_string()));
        ctx.tell(object, EventType::Warning, FORCE_RELEASED, note, about).await;
    };
    for HolderView { holder, fence, .. } in &taken {
        tell(holder.as_str(), *fence, "").await;
    }
    tried.map_err(store)?;
    // What an earlier try took, if its answer was lost, or the operator ended before it told.
    let earlier = meant.holders.iter().filter(|_| !is_first);
    let mut told = taken.len();
    for (fence, holder) in earlier {
        let is_told = taken.iter().any(|view| view.fence == *fence);
        if !is_told && !ctx.forced.contains(&at, *fence) {
            tell(holder.as_str(), *fence, ", or had ended just before").await;
        }
        told += 1;
    }
    let was_told = !is_first && only.is_some_and(|fence| ctx.forced.contains(&at, fence));
    if told == 0 && !was_told {
        let what = match (only, meant.holders.is_empty()) {
            (Some(fence), _) => format!("has no hold with fence {fence}"),
            (None, true) => "was not held".to_owned(),
            (None, false) => "is not held any more by whoever was meant".to_owned(),
        };
        let note = format!("key \"{}\" {what}: nothing to release", at.key);
        ctx.tell(object, EventType::Normal, FORCE_RELEASED, note, None).await;
    }
    apply::annotate(ctx, object, done).await
}

/// What a release is meant for, written down before anything is taken. Whoever may ask for one may
/// write this as well, and so have no more taken than by asking.
#[derive(Serialize, Deserialize)]
struct Meant {
    /// What was asked for, word by word.
    asked: String,
    /// The newest fence that there was.
    newest: Fence,
    /// The holders by their fences, as far as a view names them.
    holders: BTreeMap<Fence, Holder>,
}

impl Meant {
    fn by(asked: &str, newest: Fence, only: Option<Fence>, view: &LockView) -> Self {
        let all = view.holder.iter().chain(&view.others);
        let meant = all.filter(|holder| only.is_none_or(|fence| holder.fence == fence));
        let holders = meant.map(|holder| (holder.fence, holder.holder.clone())).collect();
        Meant { asked: asked.to_owned(), newest, holders }
    }

    /// Whether a hold with this fence is meant by what is written on an object.
    fn has(object: &impl ResourceExt, fence: Fence) -> bool {
        let text = object.annotations().get(MEANT);
        let meant = text.and_then(|text| serde_json::from_str::<Meant>(text).ok());
        meant.is_some_and(|meant| meant.holders.contains_key(&fence))
    }

    /// What is written on an object for what is asked for now, and its text.
    fn written_on<'a>(object: &'a impl ResourceExt, asked: &str) -> Option<(Self, &'a str)> {
        let text = object.annotations().get(MEANT)?;
        let meant: Meant = serde_json::from_str(text).ok()?;
        let is_ours = meant.asked == asked
            && meant.holders.len() <= NAMED
            && meant.holders.keys().all(|fence| *fence <= meant.newest);
        is_ours.then_some((meant, text))
    }
}

/// Whether the end of a hold is told, or will be, by a release by force that is under way.
pub fn tells(ctx: &Context, object: &impl ResourceExt, at: &Address, fence: Fence) -> bool {
    ctx.forced.contains(at, fence) || Meant::has(object, fence)
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
