//! Fencing tokens: numbers that only grow, which a resource compares to keep stale holders out.
//!
//! Source: M. Kleppmann, "How to do distributed locking" (2016); Chubby's sequencers (Burrows, OSDI
//! 2006, §2.4).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A fencing token. Strictly increasing per key over all time; a *string* on the wire, because
/// JavaScript rounds integers beyond 2^53.
///
/// Tokens of two substrates are not comparable, which is why a class cannot change its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

/// Bits of a store's sequence below the epoch: milliseconds since 1970 fit until the year 2109.
const SEQUENCE_BITS: u32 = 42;
/// The largest fence there is: 2^63, so that signed 64-bit columns can store every one.
const MAX: u64 = i64::MAX as u64;

/// A text that is not a fencing token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fence is a decimal number from 0 to 9223372036854775807, in quotes; got \"{0}\"")]
pub struct InvalidFence(String);

impl Fence {
    /// A fence from its number.
    pub const fn new(value: u64) -> Self {
        Fence(value)
    }

    /// A fence from a store's epoch (high bits) and sequence (low bits).
    ///
    /// A newer epoch sorts above every sequence of an older one: that is what keeps fences growing
    /// over a flush, a restore or a failover that lost the sequence.
    ///
    /// # Errors
    /// When either part does not fit: epoch below 2^21, sequence below 2^42.
    pub fn compose(epoch: u64, sequence: u64) -> Result<Self, InvalidFence> {
        if epoch >= 1 << (63 - SEQUENCE_BITS) || sequence >= 1 << SEQUENCE_BITS {
            return Err(InvalidFence(format!("epoch {epoch}, sequence {sequence}")));
        }
        Ok(Fence(epoch << SEQUENCE_BITS | sequence))
    }

    /// The sequence part of a composed fence.
    pub const fn sequence(self) -> u64 {
        self.0 & ((1 << SEQUENCE_BITS) - 1)
    }

    /// The epoch part of a composed fence.
    pub const fn epoch(self) -> u64 {
        self.0 >> SEQUENCE_BITS
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Fence {
    type Err = InvalidFence;

    fn from_str(text: &str) -> Result<Self, InvalidFence> {
        let bad = || InvalidFence(text.chars().take(40).collect());
        // `u64::from_str` takes a leading '+'; a token has one spelling only.
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        text.parse().ok().filter(|n| *n <= MAX).map(Fence).ok_or_else(bad)
    }
}

impl Serialize for Fence {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fence {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_newer_epoch_sorts_above_every_older_sequence(
            epoch in 0u64..(1 << 20), older in 0u64..(1 << 42), newer in 0u64..(1 << 42),
        ) {
            let before = Fence::compose(epoch, older).unwrap();
            let after = Fence::compose(epoch + 1, newer).unwrap();
            prop_assert!(after > before);
            prop_assert_eq!(before.sequence(), older);
        }

        #[test]
        fn text_round_trips(n in 0u64..=MAX) {
            let fence = Fence::new(n);
            prop_assert_eq!(fence.to_string().parse::<Fence>().unwrap(), fence);
            prop_assert_eq!(serde_json::to_string(&fence).unwrap(), format!("\"{n}\""));
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in
            ["", "+1", "-1", " 1", "1.0", "0x1", "9223372036854775808", "99999999999999999999"]
        {
            assert!(text.parse::<Fence>().is_err(), "{text:?}");
        }
        assert!(Fence::compose(1 << 21, 0).is_err());
        assert!(Fence::compose(0, 1 << 42).is_err());
    }
}
