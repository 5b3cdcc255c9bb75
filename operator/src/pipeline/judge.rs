//! Whether a class can be used, in a sentence. Pure.

use holdfast_api::{
    conditions::{
        READY, REASON_BACKEND_UNAVAILABLE, REASON_INVALID, REASON_PENDING, REASON_QUARANTINE,
        REASON_RECONCILED, Verdict,
    },
    v1alpha1::Backend,
};
use holdfast_core::{Substrate, lock::Consistency};
use kube::ResourceExt;

use super::{Applied, Valid};

/// The condition `Ready` of a valid class.
pub fn ready(valid: &Valid, applied: &Applied) -> Verdict {
    let verdict = |ok, reason, message: String| Verdict::new(READY, ok, reason, message);
    let no = |reason, message| verdict(false, reason, message);
    let (kind, name) = (valid.class.config.kind(), &valid.class.name);
    if let Some(lease) = &applied.in_the_way {
        let message = format!(
            "Lease \"{lease}\" is there and belongs to somebody else: delete it, or rename the class"
        );
        return no(REASON_INVALID, message);
    }
    let in_doubt = match (valid.substrate, &valid.backend) {
        (Substrate::Redis | Substrate::Redlock, Some(backend)) => match store(backend) {
            Ok(in_doubt) => in_doubt,
            Err(verdict) => return verdict,
        },
        _ => None,
    };
    if let (Some(message), Consistency::Strict) = (&in_doubt, consistency(valid)) {
        return no(REASON_QUARANTINE, message.clone());
    }
    if !applied.complete {
        return no(REASON_PENDING, format!("the Leases of {kind} \"{name}\" are being created"));
    }
    let published = valid.published.as_ref();
    if published.and_then(|bundle| bundle.class(kind, name.as_str())) != Some(&valid.class) {
        let message = format!("the bundle of namespace \"{}\" is being written", valid.namespace);
        return no(REASON_PENDING, message);
    }
    let epoch =
        published.and_then(|bundle| bundle.backends.get(&valid.class.backend)?.epoch.clone());
    let is_open = epoch.is_some_and(|epoch| epoch.is_open_on(valid.substrate));
    let is_on_store = matches!(valid.substrate, Substrate::Redis | Substrate::Redlock);
    if is_on_store && !is_open && in_doubt.is_none() {
        let message = format!(
            "namespace \"{}\" is being set up on Backend \"{}\"",
            valid.namespace, valid.class.backend
        );
        return no(REASON_PENDING, message);
    }
    let message = match in_doubt {
        Some(doubt) if valid.lock.is_some() => {
            format!("{kind} \"{name}\" can be used, but its holds may overlap: {doubt}")
        }
        Some(doubt) => {
            format!("{kind} \"{name}\" can be used, but what was spent may be forgotten: {doubt}")
        }
        None => format!("{kind} \"{name}\" can be used"),
    };
    verdict(true, REASON_RECONCILED, message)
}

/// Whether a Backend can be used; the sentence about an epoch that is not open yet.
fn store(backend: &Backend) -> Result<Option<String>, Verdict> {
    let name = backend.name_any();
    let status = backend.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == READY);
    let refuse = |message| Err(Verdict::new(READY, false, REASON_BACKEND_UNAVAILABLE, message));
    match (ready, &status.epoch) {
        (Some(ready), Some(_)) if ready.reason == REASON_QUARANTINE => {
            Ok(Some(ready.message.clone()))
        }
        (Some(ready), _) if ready.status != "True" => {
            refuse(format!("Backend \"{name}\" is not ready: {}", ready.message))
        }
        (Some(_), Some(_)) => Ok(None),
        _ => refuse(format!("Backend \"{name}\" has not been looked at yet")),
    }
}

/// What holds nothing loses counts at worst, and goes on.
fn consistency(valid: &Valid) -> Consistency {
    valid.lock.as_ref().map_or(Consistency::BestEffort, |lock| lock.consistency)
}
