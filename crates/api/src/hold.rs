//! What a pod is to hold, as its annotations say: for the webhook, which refuses what cannot be
//! understood, and for the operator, which acquires it.

use std::collections::BTreeMap;

use holdfast_core::{ClassName, Key, Kind, semaphore::MAX_PERMITS};

use crate::{
    load::did_you_mean,
    names::{ANNOTATION_HOLD, ANNOTATION_HOLD_KEY, ANNOTATION_HOLD_PERMITS},
};

/// The kinds that a pod can hold.
const KINDS: [Kind; 2] = [Kind::Lock, Kind::Semaphore];

/// A hold that a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodHold {
    /// Of which kind: a Lock or a Semaphore.
    pub kind: Kind,
    /// Of which class, in the pod's namespace.
    pub class: ClassName,
    /// Of which key; the class's only one, or `default`, without it.
    pub key: Option<Key>,
    /// How many permits; 1 of a lock.
    pub permits: u32,
}

impl PodHold {
    /// What the annotations of a pod ask for; `None` when they ask for nothing.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn of(annotations: &BTreeMap<String, String>) -> Option<Result<Self, String>> {
        Some(parse(annotations.get(ANNOTATION_HOLD)?, annotations))
    }

    /// `kind/name`, as the annotation has it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.kind.singular(), self.class)
    }

    /// The value of the pod's label: at most 63 characters, as that wants it.
    pub fn label(&self) -> String {
        format!("{}.{}", self.kind.singular(), self.class)
    }
}

/// As much of a text as an answer repeats: an annotation may have 256 KiB.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

fn parse(hold: &str, annotations: &BTreeMap<String, String>) -> Result<PodHold, String> {
    let Some((kind, class)) = hold.split_once('/') else {
        return Err(format!(
            "the annotation \"{ANNOTATION_HOLD}\" is \"lock/NAME\" or \"semaphore/NAME\", not \
             \"{}\"",
            shown(hold)
        ));
    };
    let Some(kind) = KINDS.into_iter().find(|known| known.singular() == kind) else {
        let kind = shown(kind);
        let hint = did_you_mean(&kind, KINDS.map(Kind::singular));
        return Err(format!(
            "the annotation \"{ANNOTATION_HOLD}\" is \"lock/NAME\" or \"semaphore/NAME\"; a pod \
             cannot hold a \"{kind}\"{hint}"
        ));
    };
    let class = ClassName::new(class).map_err(|why| {
        let hint = match class.contains(['#', '/']) {
            true => format!(
                "; a key has an annotation of its own, \"{ANNOTATION_HOLD_KEY}\", and permits have \
                 \"{ANNOTATION_HOLD_PERMITS}\""
            ),
            false => String::new(),
        };
        format!(
            "the annotation \"{ANNOTATION_HOLD}\" names \"{}\", which cannot be a class: {why}{hint}",
            shown(class)
        )
    })?;
    let key = annotations.get(ANNOTATION_HOLD_KEY).map(|key| {
        Key::new(key).map_err(|why| {
            format!("the annotation \"{ANNOTATION_HOLD_KEY}\" is \"{}\", and {why}", shown(key))
        })
    });
    let permits = match (annotations.get(ANNOTATION_HOLD_PERMITS), kind) {
        (None, _) => 1,
        (Some(text), Kind::Semaphore) => {
            let number = text.parse().ok().filter(|n| (1..=MAX_PERMITS).contains(n));
            number.ok_or_else(|| {
                format!(
                    "the annotation \"{ANNOTATION_HOLD_PERMITS}\" is a whole number from 1 to \
                     {MAX_PERMITS}, not \"{}\"",
                    shown(text)
                )
            })?
        }
        (Some(_), kind) => {
            return Err(format!(
                "the annotation \"{ANNOTATION_HOLD_PERMITS}\" is for semaphores: a {kind} has no \
                 permits"
            ));
        }
    };
    Ok(PodHold { kind, class, key: key.transpose()?, permits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Option<Result<PodHold, String>> {
        PodHold::of(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_hold_is_read_from_its_annotations() {
        assert_eq!(of(&[(ANNOTATION_HOLD_KEY, "k")]), None);
        let hold = of(&[(ANNOTATION_HOLD, "lock/nightly")]).unwrap().unwrap();
        assert_eq!((hold.kind, hold.class.as_str(), hold.permits), (Kind::Lock, "nightly", 1));
        assert_eq!((hold.key.clone(), hold.name().as_str()), (None, "lock/nightly"));
        let hold = of(&[
            (ANNOTATION_HOLD, "semaphore/pool"),
            (ANNOTATION_HOLD_KEY, "tenant/7"),
            (ANNOTATION_HOLD_PERMITS, "3"),
        ]);
        let hold = hold.unwrap().unwrap();
        assert_eq!((hold.key.clone().unwrap().as_str(), hold.permits), ("tenant/7", 3));
        assert_eq!(hold.label(), "semaphore.pool");
        let longest = format!("semaphore/{}", "x".repeat(52));
        assert!(of(&[(ANNOTATION_HOLD, &longest)]).unwrap().unwrap().label().len() <= 63);
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_a_sentence() {
        for (hold, key, permits, says) in [
            ("nightly", None, None, "is \"lock/NAME\" or \"semaphore/NAME\", not \"nightly\""),
            ("", None, None, "not \"\""),
            ("locks/a", None, None, "did you mean \"lock\"?"),
            ("ratelimit/a", None, None, "cannot hold a \"ratelimit\""),
            ("lock/", None, None, "which cannot be a class: a class name has 1 to 52"),
            ("lock/Nightly", None, None, "which cannot be a class"),
            ("lock/a#b", None, None, "\"holdfast.dev/hold-key\""),
            ("lock/a", Some(""), None, "a key has 1 to 512 bytes"),
            ("lock/a", None, Some("1"), "a Lock has no permits"),
            ("semaphore/a", None, Some("0"), "a whole number from 1 to 10000, not \"0\""),
            ("semaphore/a", None, Some("many"), "not \"many\""),
        ] {
            let mut pairs = vec![(ANNOTATION_HOLD, hold)];
            pairs.extend(key.map(|key| (ANNOTATION_HOLD_KEY, key)));
            pairs.extend(permits.map(|permits| (ANNOTATION_HOLD_PERMITS, permits)));
            let why = of(&pairs).unwrap().expect_err(hold);
            assert!(why.contains(says), "{why}");
        }
    }
}
