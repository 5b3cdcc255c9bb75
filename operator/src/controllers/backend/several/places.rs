//! Where the markers of a server are: in its own slots, or moved with them to others.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::v1alpha1::backend::RunStatus;
use holdfast_backend::redis::Marker as Place;
use tokio::time::timeout;

use super::{
    super::{CANARY, WITHIN, epoch::runs::Marker},
    run_of,
};
use crate::stores::members::{Member, Members};

/// What a server says of the places of its markers.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// One of them at least is there still, and this is in it.
    Here(Marker),
    /// They were there when the servers were asked for their slots, and are not any more; or they are
    /// just on their way.
    Moving,
    /// Their slots are on other servers.
    Moved,
}

/// What is at the places of these tags. `has` says which of their slots the server is known to have.
pub fn standing(tags: &[String], places: &[Place], has: impl Fn(&String) -> bool) -> Standing {
    if places.iter().all(|place| *place == Place::Elsewhere) {
        return if tags.iter().any(has) { Standing::Moving } else { Standing::Moved };
    }
    let numbers = places.iter().filter_map(|place| match place {
        Place::Found(number) => Some(*number),
        Place::Missing | Place::Elsewhere => None,
    });
    Standing::Here(match numbers.max() {
        Some(number) if !places.contains(&Place::Missing) => Marker::Found(number),
        _ => Marker::Missing,
    })
}

/// What is known when markers are looked for on other servers.
pub struct Moves<'a> {
    /// The runs as they were.
    pub known: &'a [RunStatus],
    /// The servers there are now.
    pub members: &'a Members,
    /// The runs in which those are that answered, by name.
    pub replids: BTreeMap<&'a str, &'a str>,
    /// The number that is marked.
    pub number: u64,
}

impl Moves<'_> {
    /// Whether all markers of a server have been moved to servers that were there before and have lost
    /// nothing: then what else it had in those slots has been moved, too, and not lost.
    pub async fn has_all_of(&self, run: &RunStatus) -> bool {
        for tag in &run.tags {
            let owner = self.members.primaries.iter().find(|member| member.has(tag));
            let Some(owner) = owner.filter(|owner| self.is_unchanged(owner)) else { return false };
            let place = owner.admin.markers(CANARY, std::slice::from_ref(tag));
            match timeout(WITHIN, place).await {
                Ok(Ok(places)) if places == [Place::Found(self.number)] => {}
                _ => return false,
            }
        }
        !run.tags.is_empty()
    }

    /// The servers that are gone, and whose markers have all been moved. (A primary that has given its
    /// last slot away makes itself a replica of who took it.)
    pub async fn emptied(&self) -> BTreeSet<String> {
        let is_member =
            |run: &RunStatus| self.members.primaries.iter().any(|m| m.name == run.server);
        let mut emptied = BTreeSet::new();
        for run in self.known.iter().filter(|run| run.open && !is_member(run)) {
            if self.has_all_of(run).await {
                emptied.insert(run.server.clone());
            }
        }
        emptied
    }

    fn is_unchanged(&self, member: &Member) -> bool {
        let replid = self.replids.get(member.name.as_str());
        replid.is_some_and(|replid| {
            run_of(self.known, member).is_some_and(|run| run.replid == *replid)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGS: [&str; 2] = ["a", "b"];

    /// What the places say of a server that is known to have the slots of `has`.
    fn stand(places: [Place; 2], has: &str) -> Standing {
        standing(&TAGS.map(str::to_owned), &places, |tag| has.contains(tag))
    }

    #[test]
    fn a_marker_is_there_as_long_as_one_place_is_and_none_of_them_is_empty() {
        use Place::{Elsewhere, Found, Missing};
        for (places, marker) in [
            ([Found(3), Found(3)], Marker::Found(3)),
            ([Found(3), Elsewhere], Marker::Found(3)),
            ([Found(3), Found(4)], Marker::Found(4)),
            ([Missing, Found(3)], Marker::Missing),
            ([Missing, Elsewhere], Marker::Missing),
            ([Missing, Missing], Marker::Missing),
        ] {
            assert_eq!(stand(places, "ab"), Standing::Here(marker), "{places:?}");
        }
    }

    #[test]
    fn slots_that_go_between_two_questions_are_no_loss() {
        let away = [Place::Elsewhere, Place::Elsewhere];
        assert_eq!(stand(away, "ab"), Standing::Moving);
        assert_eq!(stand(away, "b"), Standing::Moving);
        assert_eq!(stand(away, ""), Standing::Moved);
    }
}
