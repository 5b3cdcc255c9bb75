//! The names of Leases, their labels and annotations, and the object that the operator creates.
//! Free of clients, so that the operator and the chart's tests use the same words.
//!
//! Everything here is readable by whoever may read the Lease. A hold and a session are therefore
//! stored as hashes ([`mark`]): who knows a `HoldId` may release it.

use std::collections::BTreeMap;

use holdfast_core::{ClassName, Key, Kind, semaphore::slots::MAX_SLOTS};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use sha2::{Digest, Sha256};

/// Marks the Leases that the admission policy guards; its value is `"true"`.
pub const LABEL_MANAGED: &str = "holdfast.dev/managed";
/// The kind of the class a Lease belongs to, in lower case.
pub const LABEL_KIND: &str = "holdfast.dev/kind";
/// The class a Lease belongs to.
pub const LABEL_CLASS: &str = "holdfast.dev/class";

/// On the Lease of an election that candidates of client-go may contest: the admission policy leaves
/// it alone.
pub const LABEL_INTEROP: &str = "holdfast.dev/interop";

/// The key that the Lease stands for, as it was written.
pub const KEY: &str = "holdfast.dev/key";
/// The newest fence granted: the resourceVersion that the acquiring write was conditional on.
pub const FENCE: &str = "holdfast.dev/fence";
/// The [`mark`] of the hold.
pub const HOLD: &str = "holdfast.dev/hold";
/// The [`mark`] of the holder's session.
pub const SESSION: &str = "holdfast.dev/session";
/// `"true"` while a hold that was released early stands for the rest of its minimal time.
pub const RELEASED: &str = "holdfast.dev/released";
/// `"true"` on the slot of a semaphore that has more holds than permits: its hold goes on, and nobody is
/// granted one after it.
pub const CLOSED: &str = "holdfast.dev/closed";
/// Written to make sure that an earlier write can no longer apply. Its value means nothing.
pub const SETTLED: &str = "holdfast.dev/settled";

/// The field manager of the sidecars' writes.
pub const FIELD_MANAGER: &str = "holdfast-sidecar";

/// Hex digits of a hash in a name: 64 bits, for keys that one class lists.
const SHORT: usize = 16;
/// What a DNS label may have. Lease names may be longer, but some tools cut them here.
const MAX_NAME: usize = 63;
/// What is kept for the number of a slot: a dot and two digits.
const NUMBER: usize = 3;

/// The name of the Lease of a key: `holdfast-lock-<class>` for the default key, with a short hash
/// of the key appended otherwise. At most 63 characters.
pub fn lease_name(kind: Kind, class: &ClassName, key: &Key) -> String {
    fitted(kind, class, key, MAX_NAME)
}

/// The name that the slots of a semaphore's key begin with.
fn slots_of(class: &ClassName, key: &Key) -> String {
    fitted(Kind::Semaphore, class, key, MAX_NAME - NUMBER)
}

/// The name of one Lease of a key: of a semaphore, that of a slot (`holdfast-semaphore-<class>.<n>`);
/// of what has one Lease for each key, [`lease_name`].
pub fn slot_name(kind: Kind, class: &ClassName, key: &Key, number: u32) -> String {
    match kind {
        Kind::Semaphore => format!("{}.{number}", slots_of(class, key)),
        Kind::Lock | Kind::LeaderElection | Kind::RateLimit => lease_name(kind, class, key),
    }
}

/// The number of the slot with this name, if it is one of the key's.
pub fn slot_number(class: &ClassName, key: &Key, name: &str) -> Option<u32> {
    let number = name.strip_prefix(&slots_of(class, key))?.strip_prefix('.')?;
    number.parse().ok().filter(|n: &u32| *n < MAX_SLOTS && n.to_string() == number)
}

fn fitted(kind: Kind, class: &ClassName, key: &Key, most: usize) -> String {
    let base = format!("holdfast-{}-{class}", kind.singular());
    let name = if *key == Key::default_key() {
        base.clone()
    } else {
        format!("{base}.{}", &hex(key.as_str().as_bytes())[..SHORT])
    };
    if name.len() <= most {
        return name;
    }
    // A long class: keep what is readable, and let a hash of everything tell it apart. The dot
    // cannot occur in a class name, so no class can be called like the key of another.
    let hash = hex(format!("{class}\0{key}").as_bytes());
    let cut = base[..most - SHORT - 2].trim_end_matches('-');
    format!("{cut}.{}", &hash[..SHORT])
}

/// How a hold or a session is written on a Lease: its SHA-256 in hex.
pub fn mark(secret: &str) -> String {
    hex(secret.as_bytes())
}

/// Where a session begins to look for a free slot: as good as random, and always the same.
pub(super) fn seed(session: &str) -> u64 {
    u64::from_str_radix(&mark(session)[..SHORT], 16).unwrap_or_default()
}

/// The readable identity of a hold: who holds, and enough of the mark to be unique.
pub fn identity(holder: &str, mark: &str) -> String {
    format!("{holder}_{}", mark.get(..SHORT).unwrap_or(mark))
}

/// Whether an identity was written together with this mark.
pub(super) fn is_identity_of(identity: &str, mark: &str) -> bool {
    let short = identity.rsplit_once('_').map(|(_, short)| short);
    short.is_some_and(|short| short.len() == SHORT && mark.starts_with(short))
}

/// The labels of a Lease.
pub fn labels(kind: Kind, class: &ClassName) -> BTreeMap<String, String> {
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    [
        label(LABEL_MANAGED, "true"),
        label(LABEL_KIND, kind.singular()),
        label(LABEL_CLASS, class.as_str()),
    ]
    .into()
}

/// The Lease of a key as the operator creates it: held by nobody, never granted. *Create* it when it
/// is missing and leave it alone afterwards; applying it again would take the lock from its holder.
pub fn unheld(namespace: &str, kind: Kind, class: &ClassName, key: &Key) -> Lease {
    unheld_slot(namespace, kind, class, key, 0)
}

/// The Lease of one slot of a semaphore's key, as [`unheld`].
pub fn unheld_slot(
    namespace: &str,
    kind: Kind,
    class: &ClassName,
    key: &Key,
    number: u32,
) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(slot_name(kind, class, key, number)),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels(kind, class)),
            annotations: Some([(KEY.to_owned(), key.to_string())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        }),
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn class(text: &str) -> ClassName {
        ClassName::new(text).unwrap()
    }

    #[test]
    fn the_default_key_gives_a_readable_name() {
        let name = lease_name(Kind::Lock, &class("nightly"), &Key::default_key());
        assert_eq!(name, "holdfast-lock-nightly");
        let name = lease_name(Kind::Lock, &class("nightly"), &Key::new("Straße 1").unwrap());
        assert!(name.starts_with("holdfast-lock-nightly."), "{name}");
        let name = slot_name(Kind::Semaphore, &class("exports"), &Key::default_key(), 3);
        assert_eq!(name, "holdfast-semaphore-exports.3");
    }

    proptest! {
        #[test]
        fn names_are_valid_and_differ(
            one in "[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", other in "[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?",
            a in "[^\\p{C}]{1,40}", b in "[^\\p{C}]{1,40}",
        ) {
            let (a, b) = (Key::new(a).unwrap(), Key::new(b).unwrap());
            let names = [
                lease_name(Kind::Lock, &class(&one), &a),
                lease_name(Kind::Lock, &class(&one), &b),
                lease_name(Kind::Lock, &class(&other), &a),
                lease_name(Kind::Lock, &class(&one), &Key::default_key()),
            ];
            for name in &names {
                prop_assert!(name.len() <= 63);
                prop_assert!(name.split('.').all(|label| {
                    !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
                }), "{}", name);
            }
            prop_assert_eq!(names[0] == names[1], a == b);
            prop_assert_eq!(names[0] == names[2], one == other);
            prop_assert_eq!(names[0] == names[3], a == Key::default_key());
            let slot = |key, number| slot_name(Kind::Semaphore, &class(&one), key, number);
            prop_assert!(slot(&a, 63).len() <= 63);
            prop_assert_eq!(slot_number(&class(&one), &a, &slot(&a, 63)), Some(63));
            prop_assert_eq!(slot_number(&class(&one), &a, &slot(&b, 7)), (a == b).then_some(7));
            let own = |name: &str| slot_number(&class(&one), &a, name);
            prop_assert_eq!(own(&slot_name(Kind::Semaphore, &class(&other), &a, 7)).is_some(), one == other);
            prop_assert_eq!((own(&slot(&a, 64)), own(&format!("{}.07", slots_of(&class(&one), &a)))), (None, None));
        }
    }
}
