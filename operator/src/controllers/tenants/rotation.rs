//! When the passwords of a namespace change, and for how long the old ones are still good. Pure.
//!
//! The Secret itself says how far a rotation has come: an annotation says when it began, a key beside
//! the password has the one before. So an operator that crashes in between goes on where it was, and
//! nobody is locked out: the store takes both until every kubelet has handed out the new one.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::Secret,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;

/// On the Secret: since when what it says is as it is. Each step counts from the one before.
pub const ANNOTATION_ROTATED: &str = "holdfast.dev/passwords-since";
/// For how long the password before is good. A kubelet takes a minute or two to hand out the new one.
const OVERLAP: SignedDuration = SignedDuration::from_hours(1);

/// What is to be done with the passwords of a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    Keep,
    /// There is nothing to count from: from now on there is.
    Stamp,
    /// New passwords; those of now stay good beside them.
    Begin,
    /// Those of before are good no more.
    Finish,
}

/// What is due, for a rotation so often; never if that is zero.
pub fn turn(secret: Option<&Secret>, every: Duration, now: Timestamp) -> Turn {
    let Some(secret) = secret else { return Turn::Stamp };
    let since = secret.annotations().get(ANNOTATION_ROTATED);
    let Some(since) = since.and_then(|text| text.parse::<Timestamp>().ok()) else {
        return Turn::Stamp;
    };
    let (age, overlaps) = (now.duration_since(since), overlaps(secret));
    let every = SignedDuration::try_from(every).unwrap_or(SignedDuration::MAX);
    match overlaps {
        true if age >= OVERLAP => Turn::Finish,
        false if !every.is_zero() && age >= every => Turn::Begin,
        true | false => Turn::Keep,
    }
}

fn overlaps(secret: &Secret) -> bool {
    secret.data.iter().flatten().any(|(key, _)| key.ends_with(PREVIOUS))
}

/// No name of a Backend makes a key of another one's look like this.
const PREVIOUS: &str = ".previous-password";

/// The key of the password before the one of now.
fn previous_key(backend: &str) -> String {
    format!("{backend}{PREVIOUS}")
}

/// The password of a namespace on a Backend from now on, and the one that is good beside it. `fresh`
/// makes one.
pub fn passwords(
    turn: Turn,
    there: &BTreeMap<String, String>,
    backend: &str,
    fresh: impl FnOnce() -> String,
) -> (String, Option<String>) {
    let text = |key: String| there.get(&key).filter(|text| !text.is_empty()).cloned();
    let Some(now) = text(super::password_key(backend)) else { return (fresh(), None) };
    match turn {
        Turn::Begin => (fresh(), Some(now)),
        Turn::Keep | Turn::Stamp => (now, text(previous_key(backend))),
        Turn::Finish => (now, None),
    }
}

/// Puts the password before into what the Secret will say.
pub fn note_previous(data: &mut BTreeMap<String, String>, backend: &str, previous: Option<String>) {
    data.extend(previous.map(|text| (previous_key(backend), text)));
}

/// Every password that the store must take: the one of now first.
pub fn accepted(credentials: &BTreeMap<String, String>, backend: &str) -> Vec<String> {
    let keys = [super::password_key(backend), previous_key(backend)];
    keys.iter().filter_map(|key| credentials.get(key)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn mk_secret(since: Option<&str>, data: &[(&str, &str)]) -> Secret {
        let mut secret = Secret::default();
        let since = since.map(|text| (ANNOTATION_ROTATED.to_owned(), text.to_owned()));
        secret.metadata.annotations = Some(since.into_iter().collect());
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        secret.data = Some(data.iter().map(|(k, v)| ((*k).to_owned(), bytes(v))).collect());
        secret
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const ONE: &[(&str, &str)] = &[("main.password", "p1")];
    const TWO: &[(&str, &str)] = &[("main.password", "p2"), ("main.previous-password", "p1")];

    #[test]
    fn passwords_change_in_their_time_and_the_old_ones_end_an_hour_later() {
        let since = Some("2026-01-01T00:00:00Z");
        let one = mk_secret(since, ONE);
        assert_eq!(turn(Some(&one), DAY, at("2026-01-01T23:59:59Z")), Turn::Keep);
        assert_eq!(turn(Some(&one), DAY, at("2026-01-02T00:00:00Z")), Turn::Begin);
        assert_eq!(turn(Some(&one), Duration::ZERO, at("2036-01-01T00:00:00Z")), Turn::Keep);
        assert_eq!(turn(Some(&one), DAY, at("2025-12-01T00:00:00Z")), Turn::Keep, "a clock's step");
        let two = mk_secret(since, TWO);
        assert_eq!(turn(Some(&two), DAY, at("2026-01-01T00:59:59Z")), Turn::Keep);
        assert_eq!(turn(Some(&two), DAY, at("2026-01-01T01:00:00Z")), Turn::Finish);
        // A rotation that was turned off half-way is finished all the same.
        assert_eq!(turn(Some(&two), Duration::ZERO, at("2026-01-09T00:00:00Z")), Turn::Finish);
    }

    #[test]
    fn what_says_no_time_begins_to_count_and_keeps_its_passwords() {
        let now = at("2026-01-01T00:00:00Z");
        assert_eq!(turn(None, DAY, now), Turn::Stamp);
        assert_eq!(turn(Some(&mk_secret(None, ONE)), DAY, now), Turn::Stamp);
        assert_eq!(turn(Some(&mk_secret(Some("soon"), ONE)), DAY, now), Turn::Stamp);
    }

    #[test]
    fn the_store_takes_both_while_a_rotation_is_under_way() {
        let map = |data: &[(&str, &str)]| -> BTreeMap<String, String> {
            data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let next = |turn, data| passwords(turn, &map(data), "main", || "new".into());
        assert_eq!(next(Turn::Stamp, &[]), ("new".into(), None));
        assert_eq!(next(Turn::Keep, ONE), ("p1".into(), None));
        assert_eq!(next(Turn::Begin, ONE), ("new".into(), Some("p1".into())));
        assert_eq!(next(Turn::Keep, TWO), ("p2".into(), Some("p1".into())));
        assert_eq!(next(Turn::Finish, TWO), ("p2".into(), None));
        assert_eq!(accepted(&map(TWO), "main"), ["p2", "p1"]);
        assert_eq!(accepted(&map(ONE), "main"), ["p1"]);
    }
}
