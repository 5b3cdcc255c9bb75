//! The epoch of several servers that can lose their data apart: one number, and a run of each. Pure.
//!
//! - The number is one for all: what moves from one server to another must not lower a fence.
//! - A server that may have lost something raises it, and only its own run is in quarantine: the
//!   others have lost nothing, and stay open.
//! - A server that is gone may have left its data anywhere: unless another one is known to have taken
//!   over from it, or its data to have been moved, all runs are in quarantine.
//! - A server that did not answer stays what it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use holdfast_api::v1alpha1::backend::{EpochStatus, RunStatus};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::over;

/// The operator's own marker on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// At one of its places at least.
    Found(u64),
    /// At none of its places, all of which (or some) are still on the server: it was lost.
    Missing,
}

/// A server that answered.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name in the runs.
    pub server: String,
    /// Its run.
    pub replid: String,
    /// The run that it was a replica of, before it was promoted.
    pub took_over: Option<String>,
    /// The operator's marker, at the places that the run names.
    pub marker: Marker,
    /// Where its markers are to be from now on; empty for the plain one.
    pub tags: Vec<String>,
}

/// What is known of the servers.
pub struct Facts<'a> {
    /// Those that answered.
    pub seen: &'a [Seen],
    /// All there are now, also those that did not answer.
    pub members: &'a BTreeSet<String>,
    /// Servers that are no members any more, and whose data is known to have been moved to others.
    pub emptied: &'a BTreeSet<String>,
    /// Numbers that somebody found too low, by server.
    pub above: &'a BTreeMap<String, u64>,
    /// The epoch of an earlier Backend of this name.
    pub floor: Option<u64>,
    /// The longest time to live of the classes on it.
    pub longest_ttl: Duration,
    /// The operator's time. Only the operator's: it is compared with what an operator wrote.
    pub now: Timestamp,
    /// Whether the quarantine of a server that ends at a time is over: see
    /// [`Quarantines`](super::super::Quarantines).
    pub is_over: &'a (dyn Fn(&str, Timestamp) -> bool + Sync),
}

/// What the epoch is from now on. A run that is open in it must have its markers, of its number and
/// in its places, before this is written; one that cannot be marked must be closed.
pub fn next(epoch: Option<&EpochStatus>, facts: &Facts<'_>) -> EpochStatus {
    let known: &[RunStatus] = epoch.map_or(&[], |epoch| &epoch.runs);
    let number = epoch.map_or(0, |epoch| epoch.number);
    let is_first = known.is_empty();
    let is_new = is_first
        && epoch.is_none()
        && facts.floor.is_none()
        && facts.above.is_empty()
        && facts.seen.iter().all(|seen| seen.marker == Marker::Missing);
    let after_all = over(facts.now, facts.longest_ttl);
    let lost_sight = known.iter().any(|run| {
        let is_gone = !facts.members.contains(&run.server) && !facts.emptied.contains(&run.server);
        is_gone && !facts.seen.iter().any(|seen| seen.took_over.as_deref() == Some(&run.replid))
    });
    let mut raise = is_first || lost_sight;
    let mut runs = Vec::new();
    for server in facts.members {
        let run = known.iter().find(|run| run.server == *server);
        let Some(seen) = facts.seen.iter().find(|seen| seen.server == *server) else {
            // Not heard of now: what was known of it may still be so.
            runs.extend(run.cloned());
            continue;
        };
        let is_doubted = facts.above.get(server).is_some_and(|above| *above >= number);
        let is_overtaken = matches!(seen.marker, Marker::Found(marked) if marked > number);
        let (not_before, open) = match run {
            _ if is_first && is_new => (Time(facts.now), false),
            _ if is_first => (after_all.clone(), false),
            Some(run)
                if run.replid != seen.replid
                    || (run.open && seen.marker == Marker::Missing)
                    || is_doubted
                    || is_overtaken =>
            {
                raise = true;
                (after_all.clone(), false)
            }
            Some(run) => {
                (run.not_before.clone(), run.open || (facts.is_over)(server, run.not_before.0))
            }
            None => {
                let predecessor = known.iter().find(|run| {
                    Some(&run.replid) == seen.took_over.as_ref() || run.replid == seen.replid
                });
                if predecessor.is_some() || is_doubted || is_overtaken {
                    raise = true;
                    (after_all.clone(), false)
                } else {
                    // One more server: what comes to it is moved there, and not lost.
                    (Time(facts.now), false)
                }
            }
        };
        runs.push(RunStatus {
            server: server.clone(),
            replid: seen.replid.clone(),
            tags: seen.tags.clone(),
            not_before,
            open,
        });
    }
    if lost_sight {
        for run in &mut runs {
            (run.not_before, run.open) = (after_all.clone(), false);
        }
    }
    let marked = facts.seen.iter().filter_map(|seen| match seen.marker {
        Marker::Found(number) => Some(number),
        Marker::Missing => None,
    });
    let highest = marked.chain(facts.above.values().copied()).chain(facts.floor);
    let number = if raise { highest.chain([number]).max().unwrap_or(0) + 1 } else { number };
    let not_before = runs.iter().map(|run| run.not_before.0).max().unwrap_or(facts.now);
    EpochStatus {
        number,
        replid: String::new(),
        not_before: Time(not_before),
        open: runs.iter().any(|run| run.open),
        runs,
    }
}

#[cfg(test)]
mod tests;
