//! The key rule. Every name that the project gives to something in Redis is made here.
//!
//! - `hf:<namespace>:{<kind>/<class>/<key>}:<part>`: a part of one object. The braces are the hash
//!   tag: all parts of an object are in one cluster slot.
//! - `hf:<namespace>:epoch`: the namespace's epoch marker, which only the operator writes. In a
//!   cluster `hf:<namespace>:epoch:{<tag>}`, two on each primary.
//! - `hf:<namespace>:s:<session>`: the channel of a session's pushes.
//! - `hf:<namespace>:s:~<kind>/<class>/<key>`: where it is said that an object has become free.
//!
//! Namespace and key are percent-escaped but for `A-Z a-z 0-9 - . _ /`. No input can so forge a
//! hash tag (`{ }`), a separator (`:`) or a glob of an ACL rule or a SCAN (`* ? [ ] \`), and
//! different addresses have different names.

use std::fmt::Write;

use holdfast_core::{Address, ClassName, HoldId, Key, Kind, SessionId};

/// The record of a lock or a semaphore: its fence, and of a lock also who holds it.
pub const RECORD: &str = ":l";
/// The record of a rate limit.
pub const RATE: &str = ":r";
const QUEUE: &str = ":q";
const WAITERS: &str = ":w";
const HOLDS: &str = ":h";
const EXPIRIES: &str = ":e";
const FENCES: &str = ":s";
const OFFERS: &str = ":o";
const TOMB: &str = ":x:";
/// See [`ObjectKeys::never`].
const NEVER: &str = ":-";
/// What most names need.
const ROOM: usize = 96;
/// The most parts of an object that a transition names.
pub(super) const MOST: usize = 8;
/// The parts of a lock that every transition names.
pub(super) const OF_LOCK: [&str; 3] = [RECORD, QUEUE, WAITERS];
/// Those of a semaphore: of a lock, and what its holds are kept in, when they expire, their fences, those
/// that are offered.
pub(super) const OF_SEMAPHORE: [&str; 7] =
    [RECORD, QUEUE, WAITERS, HOLDS, EXPIRIES, FENCES, OFFERS];

/// The names of one object's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectKeys {
    stem: String,
}

impl ObjectKeys {
    /// The names of the object at an address.
    pub fn new(at: &Address) -> Self {
        let mut stem = class_stem(&at.namespace, at.kind, &at.class);
        escape_into(&mut stem, at.key.as_str());
        stem.push('}');
        ObjectKeys { stem }
    }

    /// The record.
    pub fn record(&self) -> String {
        [&self.stem, RECORD].concat()
    }

    /// The record of a rate limit.
    pub fn rate(&self) -> String {
        format!("{}{RATE}", self.stem)
    }

    /// The list of those who wait.
    pub fn queue(&self) -> String {
        [&self.stem, QUEUE].concat()
    }

    /// Their tickets and beats.
    pub fn waiters(&self) -> String {
        [&self.stem, WAITERS].concat()
    }

    /// The names of some parts, and of what a hold leaves when it is cancelled.
    pub(super) fn of(self, parts: &[&str], tomb: Option<&HoldId>) -> Names {
        let ObjectKeys { stem: mut text } = self;
        let stem = text.len();
        text.reserve(MOST * (stem + NEVER.len()) + ROOM);
        let mut names = Names { text, ends: [0; MOST], count: 0 };
        for part in parts {
            names.add(stem, &[part]);
        }
        if let Some(hold) = tomb {
            names.add(stem, &[TOMB, hold.as_str()]);
        }
        names
    }

    /// A name that never exists. A transition that names it is refused while the slot is being moved
    /// from one server of a cluster to another.
    pub fn never(&self) -> String {
        [&self.stem, NEVER].concat()
    }

    /// What a cancelled hold leaves.
    pub fn tomb(&self, hold: &HoldId) -> String {
        [&self.stem, TOMB, hold.as_str()].concat()
    }
}

/// Names of one object, in one piece of memory: a request has several.
pub(super) struct Names {
    text: String,
    ends: [usize; MOST],
    count: usize,
}

impl Names {
    fn add(&mut self, stem: usize, parts: &[&str]) {
        let Some(end) = self.ends.get_mut(self.count) else { return };
        if self.count > 0 {
            self.text.extend_from_within(..stem);
        }
        parts.iter().for_each(|part| self.text.push_str(part));
        *end = self.text.len();
        self.count += 1;
    }

    /// One after the other, in a room of the caller's.
    pub(super) fn list<'a>(&'a self, room: &'a mut [&'a str; MOST]) -> &'a [&'a str] {
        let mut start = 0;
        for (end, name) in self.ends.iter().zip(room.iter_mut()).take(self.count) {
            *name = self.text.get(start..*end).unwrap_or_default();
            start = *end;
        }
        room.get(..self.count).unwrap_or_default()
    }
}

/// The marker that says which epoch a namespace is in.
pub fn marker(namespace: &str) -> String {
    let mut name = namespace_stem(namespace);
    name.push_str("epoch");
    name
}

/// The marker of a namespace on one server of a cluster, in the slot of a hash tag.
pub fn marker_at(namespace: &str, tag: &str) -> String {
    format!("{}:{{{tag}}}", marker(namespace))
}

/// Where a [`LocalEpoch`](super::LocalEpoch) notes the run that its epoch belongs to.
pub fn marker_run(namespace: &str) -> String {
    let mut name = namespace_stem(namespace);
    name.push_str("epoch-run");
    name
}

/// What the names of all channels of a namespace start with; the session follows.
pub fn channel_prefix(namespace: &str) -> String {
    let mut name = namespace_stem(namespace);
    name.push_str("s:");
    name
}

/// The channel of a session.
pub fn channel(namespace: &str, session: &SessionId) -> String {
    format!("{}{session}", channel_prefix(namespace))
}

/// The channel on which those who wait hear that an object has become free. No session has such a
/// name.
pub fn freed_channel(at: &Address) -> String {
    let mut name = channel_prefix(&at.namespace);
    for part in ["~", at.kind.singular(), "/", at.class.as_str(), "/"] {
        name.push_str(part);
    }
    escape_into(&mut name, at.key.as_str());
    name
}

/// What every name of a namespace starts with. Ends in a separator, so that the rights of `ns1` do
/// not reach to `ns10`.
pub fn namespace_stem(namespace: &str) -> String {
    let mut name = String::with_capacity(ROOM);
    name.push_str("hf:");
    escape_into(&mut name, namespace);
    name.push(':');
    name
}

/// What the names of all objects of a class start with. Free of globs.
pub fn class_stem(namespace: &str, kind: Kind, class: &ClassName) -> String {
    let mut name = namespace_stem(namespace);
    // Class names cannot contain any of the characters that matter here.
    for part in ["{", kind.singular(), "/", class.as_str(), "/"] {
        name.push_str(part);
    }
    name
}

/// The address that a record belongs to; `None` for a name that [`ObjectKeys::record`] never makes.
pub fn parse_record(name: &str) -> Option<Address> {
    let name = name.strip_prefix("hf:")?.strip_suffix(RECORD)?.strip_suffix('}')?;
    let (namespace, object) = name.split_once(":{")?;
    let mut parts = object.splitn(3, '/');
    let (kind, class, key) = (parts.next()?, parts.next()?, parts.next()?);
    let at = Address {
        kind: *Kind::ALL.iter().find(|k| k.singular() == kind)?,
        namespace: unescape(namespace)?.into(),
        class: ClassName::new(class).ok()?,
        key: Key::new(unescape(key)?).ok()?,
    };
    // One spelling per name: "%61" is not "a".
    let spelt = ObjectKeys::new(&at).stem;
    (spelt.strip_prefix("hf:")?.strip_suffix('}')? == name).then_some(at)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'/')
}

fn escape_into(name: &mut String, text: &str) {
    if text.bytes().all(is_plain) {
        return name.push_str(text);
    }
    for byte in text.bytes() {
        if is_plain(byte) {
            name.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let plain = match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte if is_plain(byte) => byte,
            _ => return None,
        };
        bytes.push(plain);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mk_address(namespace: &str, class: &str, key: &str) -> Address {
        Address {
            kind: Kind::Lock,
            namespace: namespace.into(),
            class: ClassName::new(class).unwrap(),
            key: Key::new(key).unwrap(),
        }
    }

    fn addresses() -> impl Strategy<Value = Address> {
        // Few and nasty characters, so that two addresses nearly collide often.
        let nasty = "[ab:{}*?\\[\\]\\\\%/.25é ]{1,6}";
        (nasty, "[ab]{1,2}", nasty).prop_map(|(ns, class, key)| mk_address(&ns, &class, &key))
    }

    /// The part of a name that a cluster hashes.
    fn hash_tag(name: &str) -> &str {
        let open = name.find('{').unwrap();
        let close = open + name[open..].find('}').unwrap();
        &name[open + 1..close]
    }

    fn names(at: &Address) -> Vec<String> {
        let (keys, hold) = (ObjectKeys::new(at), HoldId::new("h").unwrap());
        let of = keys.clone().of(&OF_SEMAPHORE, Some(&hold));
        let mut room = [""; MOST];
        let mut names: Vec<String> = of.list(&mut room).iter().map(|&name| name.into()).collect();
        let alone = [keys.record(), keys.queue(), keys.waiters(), keys.tomb(&hold)];
        assert_eq!([0, 1, 2, 7].map(|i| names[i].clone()), alone);
        names.push(keys.never());
        names
    }

    proptest! {
        #[test]
        fn different_addresses_have_different_names(a in addresses(), b in addresses()) {
            let (mut all, n) = ([names(&a), names(&b)].concat(), if a == b { 9 } else { 18 });
            all.extend([marker(&a.namespace), marker_run(&a.namespace)]);
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), n + 2);
        }

        #[test]
        fn the_parts_of_an_object_share_one_slot_that_no_input_can_choose(at in addresses()) {
            let names = names(&at);
            for name in &names {
                let tag = hash_tag(name);
                prop_assert!(tag.starts_with(&format!("lock/{}/", at.class)), "{name}");
                prop_assert_eq!(tag, hash_tag(&names[0]));
                prop_assert_eq!(name.matches(['{', '}']).count(), 2);
            }
        }

        #[test]
        fn no_name_carries_a_glob_or_leaves_its_namespace(at in addresses()) {
            for name in names(&at) {
                prop_assert!(!name.contains(['*', '?', '[', ']', '\\', ' ']), "{}", name);
                prop_assert!(name.starts_with(&namespace_stem(&at.namespace)));
            }
        }

        #[test]
        fn a_record_tells_its_address(at in addresses()) {
            prop_assert_eq!(parse_record(&ObjectKeys::new(&at).record()), Some(at));
        }
    }

    #[test]
    fn names_read_as_documented() {
        let at = mk_address("shop", "orders", "order/12 é");
        assert_eq!(ObjectKeys::new(&at).record(), "hf:shop:{lock/orders/order/12%20%C3%A9}:l");
        assert_eq!(marker("shop"), "hf:shop:epoch");
        assert_eq!(channel("shop", &SessionId::new("s1").unwrap()), "hf:shop:s:s1");
    }

    #[test]
    fn names_of_others_are_not_parsed() {
        for name in [
            "hf:shop:epoch",
            "hf:shop:{lock/orders/a}:q",
            "hf:shop:{lock/orders}:l",
            "hf:shop:{what/orders/a}:l",
            "hf:shop:{lock/orders/%61}:l",
            "hf:shop:{lock/orders/a%}:l",
            "hf:shop:{lock/orders/a%FF}:l",
            "xx:shop:{lock/orders/a}:l",
        ] {
            assert_eq!(parse_record(name), None, "{name}");
        }
    }
}
