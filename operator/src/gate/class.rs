//! From what a pod's annotation names to what can be asked: the class as its namespace's bundle has
//! it, and where it lives. What is in the way is a sentence that says what to do.

use std::{sync::Arc, time::Duration};

use holdfast_api::{
    bundle::{AccessRule, Verb, permits},
    hold::PodHold,
    load::did_you_mean,
    names::{ANNOTATION_HOLD, ANNOTATION_HOLD_KEY, ANNOTATION_HOLD_PERMITS},
};
use holdfast_core::{
    Address, HoldId, Holder, Key, RequestId, SessionId, Substrate,
    lock::{Acquire, Keys, LockBackend, LockConfig},
};

use super::{Gates, seen::Seen, tell};

/// A class, ready to be asked on behalf of one pod.
#[derive(Clone)]
pub struct Usable {
    /// What the hold is of.
    pub at: Address,
    /// The class's configuration.
    pub config: Arc<LockConfig>,
    /// Where it lives.
    pub backend: Arc<dyn LockBackend>,
    /// How long the hold lasts without a renewal.
    pub ttl: Duration,
    /// The hold: the same for this pod whoever leads.
    pub hold: HoldId,
    permits: u32,
    access: Vec<AccessRule>,
}

impl Usable {
    /// Whether the store keeps a queue. Elsewhere the line of this operator is the only one.
    pub fn has_queue(&self) -> bool {
        match self.backend.substrate() {
            Substrate::Redis | Substrate::Redlock | Substrate::Memory => true,
            Substrate::Lease => false,
        }
    }

    /// The request to acquire; `None` for a name that no pod can have.
    pub fn request(&self, seen: &Seen, session: &SessionId, enqueue: bool) -> Option<Acquire> {
        // A share per holder is one pod's share.
        let session = match self.config.max_per_holder {
            0 => session.clone(),
            _ => SessionId::new(format!("pod-{}", seen.uid)).ok()?,
        };
        Some(Acquire {
            config: self.config.clone(),
            hold: self.hold.clone(),
            session,
            holder: Holder::new(&seen.name).ok()?,
            ttl: self.ttl,
            max_hold: Duration::from_millis(self.config.max_hold_ms),
            enqueue,
            permits: self.permits,
        })
    }

    /// Why the pod may not acquire it, if it may not.
    pub fn refusal(&self, seen: &Seen, hold: &PodHold) -> Option<String> {
        let most = match self.config.max_per_holder {
            0 => self.config.permits,
            max => max.min(self.config.permits),
        };
        if self.permits > most {
            return Some(format!(
                "{ANNOTATION_HOLD_PERMITS} asks for {} permits, and one hold of {} has at most \
                 {most}",
                self.permits,
                hold.name()
            ));
        }
        if permits(&self.access, &seen.account, Verb::Acquire, &self.at.key) {
            return None;
        }
        Some(format!(
            "ServiceAccount \"{}\" may not acquire key \"{}\" of {}: add it to the class's \
             spec.access",
            seen.account,
            self.at.key,
            hold.name()
        ))
    }
}

/// Finds the class that a pod is to hold.
///
/// # Errors
/// A sentence for the pod's owner.
pub fn resolve(gates: &Gates, seen: &Seen, hold: &PodHold) -> Result<Usable, String> {
    let (ctx, namespace) = (&gates.ctx, seen.namespace.as_str());
    let bundle = ctx.published.get(&ctx.caches, namespace);
    let found = bundle.as_ref().and_then(|bundle| {
        let class = bundle.class(hold.kind, hold.class.as_str())?;
        Some((bundle, class))
    });
    let Some((bundle, class)) = found else { return Err(missing(gates, namespace, hold)) };
    let there = bundle.backends.get(&class.backend);
    let substrate = there.map_or(Substrate::Lease, |backend| backend.substrate);
    let config = class.config.lock(substrate);
    let config = config.ok_or_else(|| format!("a pod cannot hold a {}", hold.kind))?;
    let key = key_of(hold, &config)?;
    let at =
        Address { kind: hold.kind, namespace: namespace.into(), class: hold.class.clone(), key };
    let backend = gates.stores.get(gates, bundle, class);
    let backend = backend.map_err(|why| format!("{} cannot be used: {why}", hold.name()))?;
    Ok(Usable {
        ttl: ttl(&config, gates.least_ttl),
        config: Arc::new(config),
        permits: hold.permits,
        access: class.access.clone(),
        hold: hold_id(&seen.uid, &at).ok_or("the pod's uid is none")?,
        backend,
        at,
    })
}

/// Why there is no such class to be used.
fn missing(gates: &Gates, namespace: &str, hold: &PodHold) -> String {
    let (kind, name) = (hold.kind, &hold.class);
    if let Some(why) = tell::unready(&gates.ctx, namespace, hold) {
        return format!("{kind} \"{name}\" cannot be used: {why}");
    }
    let names = tell::names_of(&gates.ctx, namespace, kind);
    let hint = did_you_mean(name.as_str(), names.iter().map(String::as_str));
    format!(
        "there is no {kind} \"{name}\" in namespace \"{namespace}\"{hint}; create it, or correct the \
         annotation {ANNOTATION_HOLD} of the pod template"
    )
}

/// The key that is meant: the one that is named, or the class's only one, or `default`.
fn key_of(hold: &PodHold, config: &LockConfig) -> Result<Key, String> {
    let key = match (&hold.key, &config.keys) {
        (Some(key), _) => key.clone(),
        (None, Keys::Fixed(keys)) if keys.len() == 1 => keys[0].clone(),
        (None, _) => Key::default_key(),
    };
    let Keys::Fixed(known) = &config.keys else { return Ok(key) };
    if known.contains(&key) {
        return Ok(key);
    }
    let hint = did_you_mean(key.as_str(), known.iter().map(Key::as_str));
    Err(format!(
        "{} has no key \"{key}\"{hint}; name one of its spec.keys in the annotation \
         {ANNOTATION_HOLD_KEY}",
        hold.name()
    ))
}

/// How long a pod's hold lasts without a renewal: at least `least`, for no pod ends because its
/// operator is away; and never longer than the class lets anybody hold.
fn ttl(config: &LockConfig, least: Duration) -> Duration {
    let ttl = Duration::from_millis(config.ttl_ms).max(least);
    match config.max_hold_ms {
        0 => ttl,
        max => ttl.min(Duration::from_millis(max)),
    }
}

/// The hold of a pod at an address. A pod of the same name that comes later has another one.
fn hold_id(uid: &str, at: &Address) -> Option<HoldId> {
    let session = SessionId::new(format!("pod-{uid}")).ok()?;
    Some(HoldId::derive(&session, at, &RequestId::new("hold").ok()?))
}

#[cfg(test)]
mod tests {
    use holdfast_core::{
        ClassName, Fence, Kind,
        lock::{Consistency, Fairness},
    };

    use super::*;

    fn mk_config(keys: Keys, max_hold_ms: u64) -> LockConfig {
        LockConfig {
            generation: 1,
            ttl_ms: 15_000,
            max_hold_ms,
            min_hold_ms: 0,
            lock_delay_ms: 0,
            permits: 1,
            max_per_holder: 0,
            keys,
            max_waiters: 10,
            fairness: Fairness::Fifo,
            consistency: Consistency::Strict,
            fence_floor: Fence::new(0),
        }
    }

    #[test]
    fn a_hold_outlasts_a_restart_of_the_operator_and_never_its_class() {
        let least = Duration::from_secs(300);
        assert_eq!(ttl(&mk_config(Keys::Any, 0), least), least);
        assert_eq!(ttl(&mk_config(Keys::Any, 60_000), least), Duration::from_secs(60));
        let short = ttl(&mk_config(Keys::Any, 0), Duration::from_secs(1));
        assert_eq!(short, Duration::from_secs(15));
    }

    #[test]
    fn the_only_key_need_not_be_named_and_a_wrong_one_is_told() {
        let key = |name: &str| Key::new(name).unwrap();
        let hold = |key: Option<&str>| PodHold {
            kind: Kind::Lock,
            class: ClassName::new("a").unwrap(),
            key: key.map(|key| Key::new(key).unwrap()),
            permits: 1,
        };
        let one = mk_config(Keys::Fixed(vec![key("orders")]), 0);
        assert_eq!(key_of(&hold(None), &one), Ok(key("orders")));
        let why = key_of(&hold(Some("order")), &one).unwrap_err();
        assert!(why.contains("did you mean \"orders\"?"), "{why}");
        assert_eq!(key_of(&hold(Some("x")), &mk_config(Keys::Any, 0)), Ok(key("x")));
        assert_eq!(key_of(&hold(None), &mk_config(Keys::Any, 0)), Ok(Key::default_key()));
    }

    #[test]
    fn a_hold_is_the_pods_and_nobody_elses() {
        let at = |class: &str| Address {
            kind: Kind::Lock,
            namespace: "shop".into(),
            class: ClassName::new(class).unwrap(),
            key: Key::default_key(),
        };
        let uid = "3e7c8b3e-8f0a-4f0e-9a50-0f5e1f0f3c11";
        assert_eq!(hold_id(uid, &at("a")), hold_id(uid, &at("a")));
        assert_ne!(hold_id(uid, &at("a")), hold_id(uid, &at("b")));
        assert_ne!(hold_id(uid, &at("a")), hold_id("3e7c8b3e", &at("a")));
    }
}
