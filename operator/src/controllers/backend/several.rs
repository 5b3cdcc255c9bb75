//! A Backend of several servers that can lose their data apart: one number, and a run of each.
//!
//! What is said to be open has its markers first. A server that cannot be marked is closed until it
//! can be: the others do not wait for it.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use holdfast_api::{
    conditions::{READY, REASON_BACKEND_UNAVAILABLE, REPLICATED, Verdict},
    v1alpha1::{
        Backend,
        backend::{EpochStatus, RedisMode, RunStatus},
    },
};
use holdfast_backend::redis::{Marker as Place, Probe};
use holdfast_core::BackendError;
use kube::ResourceExt;
use tokio::time::timeout;

use super::{
    CANARY, Looked, Moment, WITHIN,
    epoch::runs::{self, Facts, Marker, Seen},
    majority, tell_raised,
    verdicts::{verdicts, version},
};
use crate::{
    context::Context,
    controllers::tenants,
    floors::epoch_key,
    stores::{
        Store,
        members::{Member, Members},
    },
};

/// The oldest major version whose functions may read a marker in another slot than their keys'.
const LEAST_MAJOR: u32 = 7;

/// Asks every server what it is, and takes the next step of their epoch. The error is a sentence.
pub async fn look(ctx: &Context, backend: &Backend, longest: Duration) -> Result<Looked, String> {
    let name = backend.name_any();
    let store = ctx.stores.get(backend).map_err(|error| error.to_string())?;
    let credentials =
        tenants::own_credentials(ctx, backend).await.map_err(|error| error.chain())?;
    store.set_credentials(credentials);
    let members = timeout(WITHIN, store.members()).await;
    let members = members.map_err(|_| format!("no answer within {WITHIN:?}"))?;
    let members = members.map_err(|error| error.to_string())?;
    let before = backend.status.as_ref().and_then(|status| status.epoch.clone());
    let known = before.as_ref().map_or(&[][..], |epoch| &epoch.runs);
    let asked = members.primaries.iter().map(|member| ask(&store, member, run_of(known, member)));
    let (mut seen, mut probes, mut away) = (Vec::new(), Vec::new(), Vec::new());
    for (member, answer) in members.primaries.iter().zip(join_all(asked).await) {
        match answer {
            Ok((server, probe)) => {
                seen.extend(server);
                probes.push((member.address.clone(), probe));
            }
            Err(why) => away.push(format!("{} ({why})", member.address)),
        }
    }
    if probes.is_empty() {
        return Err(away.join("; "));
    }
    let unfit = unfit(backend.spec.redis.mode, &members, &probes);
    let mut current = before.clone();
    let number = before.as_ref().map_or(0, |epoch| epoch.number);
    if unfit.is_none() {
        // After the servers have been asked: what they lost, they had lost by then.
        let moment = Moment::now();
        let facts = Facts {
            seen: &seen,
            members: &members.primaries.iter().map(|member| member.name.clone()).collect(),
            emptied: &emptied(known, &members, &seen, number).await,
            above: &ctx.doubts.of(&name),
            floor: ctx.floors.get(&epoch_key(&name)),
            longest_ttl: longest,
            now: moment.wall,
            is_over: &|server, at| ctx.quarantines.left(&name, server, at).is_zero(),
        };
        let mut next = runs::next(before.as_ref(), &facts);
        ctx.quarantines.see(&name, &next, moment);
        mark(&members, &seen, before.as_ref(), &mut next).await;
        if before.as_ref().map(|epoch| epoch.number) != Some(next.number) {
            let closed = next.runs.iter().filter(|run| !run.open).map(|run| run.server.as_str());
            let what = closed.collect::<Vec<_>>().join(", ");
            let opens = next.not_before.0;
            tell_raised(ctx, backend, next.number, &what, opens).await;
        }
        current = Some(next);
    }
    let ack = backend.spec.redis.ack.map_or(0, |ack| u32::from(ack.replicas));
    let worst = worst(&probes);
    let is_fit = unfit.is_none() && worst.maxmemory_policy == "noeviction";
    let mut verdicts = verdicts(&worst, unfit, current.as_ref(), ack);
    if backend.spec.redis.mode == RedisMode::Redlock {
        let servers = members.primaries.len();
        if is_fit {
            verdicts[0] = majority::ready(servers, current.as_ref(), &away);
        }
        verdicts.retain(|verdict| verdict.type_ != REPLICATED);
        verdicts.push(majority::replicated(servers));
    } else if !away.is_empty() && verdicts.first().is_some_and(|ready| ready.status) {
        let message = format!("some servers do not answer: {}", away.join("; "));
        verdicts[0] = Verdict::new(READY, false, REASON_BACKEND_UNAVAILABLE, message);
    }
    Ok(Looked { version: version(&worst), role: worst.role, epoch: current, verdicts })
}

fn run_of<'a>(runs: &'a [RunStatus], member: &Member) -> Option<&'a RunStatus> {
    runs.iter().find(|run| run.server == member.name)
}

/// Asks one server. Its run says where its marker should be. Nothing is seen of one whose markers are
/// being moved just now, as if it had not answered: the next look sees where they are.
async fn ask(
    store: &Store,
    member: &Member,
    run: Option<&RunStatus>,
) -> Result<(Option<Seen>, Probe), String> {
    let ask = async {
        let probe = member.admin.probe().await?;
        if probe.role == "master" {
            store.ensure_library(&member.name, &member.admin, &probe.replid).await?;
        }
        let kept = run.map_or(&[][..], |run| &run.tags);
        let tags = member.places(kept);
        // Of a server that nothing is known of, a marker where one would be put.
        let places = if run.is_some() { kept } else { &tags };
        let there = member.admin.markers(CANARY, places).await?;
        let is_moving = are_moving(places, &there, |tag| member.has(tag))
            && run.is_none_or(|run| run.replid == probe.replid);
        Ok::<_, BackendError>((probe, (!is_moving).then(|| marker(&there)), tags))
    };
    let (probe, marker, tags) = match timeout(WITHIN, ask).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no answer within {WITHIN:?}")),
    };
    if probe.role != "master" {
        return Err(format!("it is a {} by now", probe.role));
    }
    let (server, replid) = (member.name.clone(), probe.replid.clone());
    let took_over = probe.took_over.clone();
    Ok((marker.map(|marker| Seen { server, replid, took_over, marker, tags }), probe))
}

/// Whether none of the places is on the server any more although it was said to have the slot of one
/// when the servers were asked for theirs: it has gone between the two questions, or is on its way.
fn are_moving(tags: &[String], places: &[Place], has: impl Fn(&String) -> bool) -> bool {
    places.iter().all(|place| *place == Place::Elsewhere) && tags.iter().any(has)
}

/// The servers that are gone, and whose markers have been moved to servers that were there before and
/// have lost nothing: all that they had has been moved as well. (A primary that has given its last
/// slot away makes itself a replica of who took it.)
async fn emptied(
    known: &[RunStatus],
    members: &Members,
    seen: &[Seen],
    number: u64,
) -> BTreeSet<String> {
    let is_unchanged = |member: &Member| {
        let seen = seen.iter().find(|seen| seen.server == member.name);
        seen.zip(run_of(known, member)).is_some_and(|(seen, run)| seen.replid == run.replid)
    };
    let mut emptied = BTreeSet::new();
    let is_member = |run: &RunStatus| members.primaries.iter().any(|m| m.name == run.server);
    for run in known.iter().filter(|run| run.open && !run.tags.is_empty() && !is_member(run)) {
        let mut moved = 0;
        for tag in &run.tags {
            let owner = members.primaries.iter().find(|member| member.has(tag));
            let Some(owner) = owner.filter(|owner| is_unchanged(owner)) else { break };
            let place = owner.admin.markers(CANARY, std::slice::from_ref(tag));
            match timeout(WITHIN, place).await {
                Ok(Ok(places)) if places == [Place::Found(number)] => moved += 1,
                _ => break,
            }
        }
        if moved == run.tags.len() {
            emptied.insert(run.server.clone());
        }
    }
    emptied
}

/// The marker of a server, from what is at each of its places.
fn marker(places: &[Place]) -> Marker {
    let numbers = places.iter().filter_map(|place| match place {
        Place::Found(number) => Some(*number),
        Place::Missing | Place::Elsewhere => None,
    });
    match numbers.max() {
        Some(number) if !places.contains(&Place::Missing) => Marker::Found(number),
        _ => Marker::Missing,
    }
}

/// Sets the markers of what is open in `next`, and closes what cannot be marked.
async fn mark(
    members: &Members,
    seen: &[Seen],
    before: Option<&EpochStatus>,
    next: &mut EpochStatus,
) {
    let number = next.number;
    let was = |run: &RunStatus| {
        before.is_some_and(|before| before.number == number && before.runs.contains(run))
    };
    let is_marked = |run: &RunStatus| {
        let seen = seen.iter().find(|seen| seen.server == run.server);
        seen.is_some_and(|seen| seen.marker == Marker::Found(number))
    };
    for run in next.runs.iter_mut().filter(|run| run.open) {
        // Nothing new of it, and nothing is missing (as far as it answers).
        let answers = seen.iter().any(|seen| seen.server == run.server);
        if was(run) && (is_marked(run) || !answers) {
            continue;
        }
        let member = members.primaries.iter().find(|member| member.name == run.server);
        let marked = match member {
            Some(member) => {
                let marking = member.admin.open_epoch_at(CANARY, &run.tags, number);
                timeout(WITHIN, marking).await
            }
            None => continue,
        };
        if !matches!(marked, Ok(Ok(()))) {
            tracing::warn!(server = run.server, ?marked, "cannot mark a server; it stays closed");
            run.open = false;
        }
    }
    next.open = next.runs.iter().any(|run| run.open);
}

/// Why the servers cannot be used at all, in a sentence.
fn unfit(mode: RedisMode, members: &Members, probes: &[(String, Probe)]) -> Option<String> {
    if mode != RedisMode::Cluster {
        let in_cluster = probes.iter().find(|(_, probe)| probe.cluster_enabled);
        return in_cluster.map(|(address, _)| {
            format!("{address} is part of a cluster; this mode is of servers that stand alone")
        });
    }
    if !members.is_ok {
        return Some(
            "the cluster does not serve all of its slots, or most primaries are not in touch: see \
             CLUSTER INFO"
                .into(),
        );
    }
    probes.iter().find(|(_, probe)| !is_new_enough(probe)).map(|(address, probe)| {
        format!(
            "{address} runs {}, and mode Cluster needs Redis {LEAST_MAJOR} or later, or Valkey: its \
             functions may read the epoch's marker",
            version(probe)
        )
    })
}

fn is_new_enough(probe: &Probe) -> bool {
    let major = probe.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    probe.valkey || major.is_none_or(|major| major >= LEAST_MAJOR)
}

/// The servers as one, which is as unsafe as each of them.
fn worst(probes: &[(String, Probe)]) -> Probe {
    let all = |of: fn(&Probe) -> String| -> String {
        let distinct: BTreeSet<String> = probes.iter().map(|(_, probe)| of(probe)).collect();
        distinct.into_iter().collect::<Vec<_>>().join(", ")
    };
    let unsafe_policy = probes.iter().find(|(_, p)| p.maxmemory_policy != "noeviction");
    Probe {
        version: all(|probe| probe.version.clone()),
        valkey: probes.iter().all(|(_, probe)| probe.valkey),
        role: all(|probe| probe.role.clone()),
        replid: String::new(),
        took_over: None,
        maxmemory_policy: unsafe_policy.map_or("noeviction".to_owned(), |(address, probe)| {
            format!("{} on {address}", probe.maxmemory_policy)
        }),
        aof_enabled: probes.iter().all(|(_, probe)| probe.aof_enabled),
        connected_replicas: probes.iter().map(|(_, p)| p.connected_replicas).min().unwrap_or(0),
        cluster_enabled: probes.iter().any(|(_, probe)| probe.cluster_enabled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGS: [&str; 2] = ["a", "b"];

    #[test]
    fn a_marker_is_there_as_long_as_one_place_is_and_none_of_them_is_empty() {
        use Place::{Elsewhere, Found, Missing};
        for (places, expected) in [
            ([Found(3), Found(3)], Marker::Found(3)),
            ([Found(3), Elsewhere], Marker::Found(3)),
            ([Found(3), Found(4)], Marker::Found(4)),
            ([Missing, Found(3)], Marker::Missing),
            ([Missing, Elsewhere], Marker::Missing),
            ([Missing, Missing], Marker::Missing),
            // All of them moved: what has happened since to the rest, nobody can tell.
            ([Elsewhere, Elsewhere], Marker::Missing),
        ] {
            assert_eq!(marker(&places), expected, "{places:?}");
        }
    }

    #[test]
    fn slots_that_go_between_two_questions_are_no_loss() {
        use Place::{Elsewhere, Found, Missing};
        let moving = |places: [Place; 2], has: &str| {
            are_moving(&TAGS.map(str::to_owned), &places, |tag| has.contains(tag.as_str()))
        };
        assert!(moving([Elsewhere, Elsewhere], "ab") && moving([Elsewhere, Elsewhere], "b"));
        assert!(!moving([Elsewhere, Elsewhere], ""));
        assert!(!moving([Found(3), Elsewhere], "ab") && !moving([Missing, Elsewhere], "ab"));
    }
}
