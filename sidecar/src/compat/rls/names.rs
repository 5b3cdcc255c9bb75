//! From a domain and a descriptor to a class and a key. Pure.
//!
//! Only keys choose a class: they come from Envoy's configuration, values may come from anybody. Two
//! descriptors of one class have one key only if they are the same.

use std::{fmt::Write, sync::Arc};

use holdfast_peers::rls::{RateLimitDescriptor, rate_limit_descriptor::Entry};
use sha2::{Digest, Sha256};

use crate::snapshot::{ByName, RateLimitClass};

type Classes = ByName<RateLimitClass>;

/// The longest key that a class takes.
const MAX_KEY: usize = 512;

/// The class `DOMAIN-KEY-KEY…`, else `DOMAIN`.
pub(super) fn class_of<'a>(
    classes: &'a Classes,
    domain: &str,
    descriptor: &RateLimitDescriptor,
) -> Option<&'a Arc<RateLimitClass>> {
    let mut name = of_domain(domain);
    let of_domain = name.len();
    for entry in &descriptor.entries {
        name.push('-');
        push_name(&mut name, &entry.key);
    }
    classes.get(&name).or_else(|| classes.get(&name[..of_domain]))
}

/// Whether any class is of this domain.
pub(super) fn is_known(classes: &Classes, domain: &str) -> bool {
    let name = of_domain(domain);
    classes.keys().any(|known| {
        known.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

/// The name of the class of a whole domain.
pub(super) fn of_domain(domain: &str) -> String {
    let mut name = String::with_capacity(domain.len() + 32);
    push_name(&mut name, domain);
    name
}

fn push_name(name: &mut String, text: &str) {
    name.extend(text.chars().map(|c| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    }));
}

/// `KEY=VALUE,KEY=VALUE…`, or its hash where that is too long to be a key.
pub(super) fn key_of(entries: &[Entry]) -> String {
    let mut key = String::with_capacity(64);
    for (i, entry) in entries.iter().enumerate() {
        if i > 0 {
            key.push(',');
        }
        push_escaped(&mut key, &entry.key);
        key.push('=');
        push_escaped(&mut key, &entry.value);
    }
    if key.len() <= MAX_KEY {
        return key;
    }
    // No key in full looks like this: each one has an equals sign.
    let mut hashed = String::with_capacity(71);
    hashed.push_str("sha256:");
    for byte in Sha256::digest(key.as_bytes()) {
        // Writing to a string cannot fail.
        let _ = write!(hashed, "{byte:02x}");
    }
    hashed
}

fn push_escaped(key: &mut String, text: &str) {
    let is_plain = |c: char| !matches!(c, '%' | ',' | '=') && !c.is_control();
    if text.chars().all(is_plain) {
        return key.push_str(text);
    }
    let mut bytes = [0; 4];
    for c in text.chars() {
        if is_plain(c) {
            key.push(c);
            continue;
        }
        for byte in c.encode_utf8(&mut bytes).bytes() {
            // Writing to a string cannot fail.
            let _ = write!(key, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn entries(pairs: &[(&str, &str)]) -> Vec<Entry> {
        let entry =
            |(key, value): &(&str, &str)| Entry { key: (*key).into(), value: (*value).into() };
        pairs.iter().map(entry).collect()
    }

    #[test]
    fn no_two_descriptors_have_one_key() {
        let long = "x".repeat(600);
        let all: [&[(&str, &str)]; 10] = [
            &[("a", "1")],
            &[("a", "1"), ("b", "2")],
            &[("a", "1,b=2")],
            &[("a", "1%2Cb%3D2")],
            &[("a=1,b", "2")],
            &[("a", "")],
            &[("a", "\n")],
            &[("a", "%0A")],
            &[("a", &long)],
            &[("a", &long), ("b", "2")],
        ];
        let keys: HashSet<String> = all.iter().map(|pairs| key_of(&entries(pairs))).collect();
        assert_eq!(keys.len(), all.len());
        for key in &keys {
            holdfast_core::Key::new(key).unwrap();
        }
        assert!(keys.contains("a=1,b=2") && keys.contains("a=1%2Cb%3D2"));
    }

    fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
        let text = || {
            proptest::collection::vec(
                prop_oneof![Just(','), Just('='), Just('%'), any::<char>()],
                0..4,
            )
        };
        let entry = (text(), text()).prop_map(|(key, value)| Entry {
            key: key.into_iter().collect(),
            value: value.into_iter().collect(),
        });
        proptest::collection::vec(entry, 1..4)
    }

    proptest! {
        #[test]
        fn whatever_two_descriptors_say_they_share_a_key_only_if_they_are_the_same(
            a in any_entries(),
            b in any_entries(),
        ) {
            prop_assert_eq!(key_of(&a) == key_of(&b), a == b);
            prop_assert!(holdfast_core::Key::new(key_of(&a)).is_ok());
        }
    }

    #[test]
    fn names_are_those_that_classes_can_have() {
        assert_eq!(of_domain("Shop_API.eu"), "shop-api-eu");
    }
}
