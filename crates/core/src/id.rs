//! Names: of classes, keys, holds, sessions, requests. Each is checked once, where it enters.

use std::{borrow::Borrow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Kind;

/// A name that is not acceptable; says what is, for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidId(String);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text.
            ///
            /// # Errors
            /// A sentence that says what is accepted.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                let text = text.as_ref();
                let check: fn(&str) -> Result<(), String> = $check;
                check(text).map_err(InvalidId)?;
                Ok($name(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.to_string()
            }
        }

        // Compares and hashes as its text does: tables of it are asked by a text that is not checked.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// The name of a class: a DNS label of at most 52 characters, because the names of Leases and
    /// metric labels are built from it.
    ClassName,
    |text| {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let ends = text.as_bytes().first().zip(text.as_bytes().last());
        if text.len() <= 52
            && text.bytes().all(ok)
            && ends.is_some_and(|(a, z)| *a != b'-' && *z != b'-')
        {
            return Ok(());
        }
        Err("a class name has 1 to 52 characters of a-z, 0-9 and '-', and neither starts nor ends \
             with '-'"
            .into())
    }
);

text_id!(
    /// A dynamic key below a class, such as `order/123`: UTF-8, 1 to 512 bytes, no control
    /// characters.
    Key,
    |text| {
        if text.is_empty() || text.len() > 512 || text.chars().any(char::is_control) {
            return Err(format!(
                "a key has 1 to 512 bytes of UTF-8 without control characters; this one has {}",
                text.len()
            ));
        }
        Ok(())
    }
);

text_id!(
    /// Names one hold, or the waiter that will become it. Whoever knows it may renew and release.
    HoldId,
    |text| token(text, "a holdId")
);

text_id!(
    /// One incarnation of one container. Its holds and tickets end with it.
    SessionId,
    |text| token(text, "a session")
);

text_id!(
    /// Chosen by a caller: a retry with the same one gets the same grant.
    RequestId,
    |text| {
        if text.is_empty() || text.len() > 128 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a requestId has 1 to 128 printable ASCII characters without blanks".into());
        }
        Ok(())
    }
);

text_id!(
    /// Who holds or waits, for people: the pod's name. Not an identity that anything decides by.
    Holder,
    |text| {
        if text.is_empty() || text.len() > 253 || text.chars().any(|c| c.is_control() || c == ' ') {
            return Err("a holder has 1 to 253 characters without blanks".into());
        }
        Ok(())
    }
);

/// Words of a script's arguments: no blanks, no separators of any store.
fn token(text: &str, what: &str) -> Result<(), String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if text.is_empty() || text.len() > 64 || !text.bytes().all(ok) {
        return Err(format!("{what} has 1 to 64 characters of a-z, A-Z, 0-9, '-' and '_'"));
    }
    Ok(())
}

/// A random UUID (RFC 9562, version 4) without hyphens. From the thread's cryptographic generator,
/// which the kernel seeds: a system call for each one would cost more than a lock in memory.
fn random_token() -> Arc<str> {
    // One number: an array of bytes would be sixteen draws.
    let bits: u128 = rand::random();
    let uuid = uuid::Builder::from_random_bytes(bits.to_ne_bytes()).into_uuid();
    let mut text = uuid::Uuid::encode_buffer();
    Arc::from(&*uuid.simple().encode_lower(&mut text))
}

impl Key {
    /// The key of a class that is used without one.
    pub fn default_key() -> Self {
        Key("default".into())
    }
}

impl HoldId {
    /// A new random one (122 random bits).
    pub fn random() -> Self {
        HoldId(random_token())
    }

    /// The hold of a request: the same session, address and request give the same hold, so that a
    /// retry finds its grant in the store itself, with no table in between.
    pub fn derive(session: &SessionId, at: &Address, request: &RequestId) -> Self {
        let mut hash = Sha256::new();
        for part in [
            session.as_str(),
            at.kind.singular(),
            &at.namespace,
            at.class.as_str(),
            at.key.as_str(),
            request.as_str(),
        ] {
            // Length-prefixed, so that no two lists of parts hash alike.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        let hex: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
        HoldId(hex.into())
    }
}

impl SessionId {
    /// A new random one (122 random bits).
    pub fn random() -> Self {
        SessionId(random_token())
    }
}

/// One object of coordination: what a transition works on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// Which primitive.
    pub kind: Kind,
    /// The namespace of the class.
    pub namespace: Arc<str>,
    /// The class.
    pub class: ClassName,
    /// The key below it.
    pub key: Key,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.namespace, self.kind.singular(), self.class, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "nightly-report", "x9"] {
            assert!(ClassName::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a_b", "{a}", &"a".repeat(53)] {
            assert!(ClassName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["order/123", "straße", "a b", "{}*?[]\\:", &"k".repeat(512)] {
            assert!(Key::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a\nb", "a\0", &"k".repeat(513), &"ü".repeat(257)] {
            assert!(Key::new(bad).is_err(), "{bad:?}");
        }
        assert!(HoldId::new("a b").is_err());
        assert!(HoldId::new(HoldId::random().as_str()).is_ok());
    }

    #[test]
    fn derived_holds_differ_in_every_part() {
        let at = |class: &str, key: &str| Address {
            kind: Kind::Lock,
            namespace: "ns".into(),
            class: ClassName::new(class).unwrap(),
            key: Key::new(key).unwrap(),
        };
        let (session, request) = (SessionId::random(), RequestId::new("r1").unwrap());
        let one = HoldId::derive(&session, &at("ab", "c"), &request);
        assert_eq!(one, HoldId::derive(&session, &at("ab", "c"), &request));
        assert_ne!(one, HoldId::derive(&session, &at("a", "bc"), &request));
        assert_ne!(one, HoldId::derive(&SessionId::random(), &at("ab", "c"), &request));
        assert_ne!(one, HoldId::derive(&session, &at("ab", "c"), &RequestId::new("r2").unwrap()));
    }
}
