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
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::timeout;

use super::{
    CANARY, Looked, WITHIN,
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

mod places;

use places::{Moves, Standing, standing};

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
    let (mut answers, mut away) = (Vec::new(), Vec::new());
    for (member, answer) in members.primaries.iter().zip(join_all(asked).await) {
        match answer {
            Ok((probe, places)) => answers.push((member, probe, places)),
            Err(why) => away.push(format!("{} ({why})", member.address)),
        }
    }
    if answers.is_empty() {
        return Err(away.join("; "));
    }
    let number = before.as_ref().map_or(0, |epoch| epoch.number);
    let moves = Moves {
        known,
        members: &members,
        replids: answers.iter().map(|(m, probe, _)| (&*m.name, &*probe.replid)).collect(),
        number,
    };
    let seen = see(&answers, &moves).await;
    let probes: Vec<(String, Probe)> =
        answers.iter().map(|(member, probe, _)| (member.address.clone(), probe.clone())).collect();
    let unfit = unfit(backend.spec.redis.mode, &members, &probes);
    let mut current = before.clone();
    if unfit.is_none() {
        let now = Timestamp::now();
        let facts = Facts {
            seen: &seen,
            members: &members.primaries.iter().map(|member| member.name.clone()).collect(),
            emptied: &moves.emptied().await,
            above: &ctx.doubts.of(&name),
            floor: ctx.floors.get(&epoch_key(&name)),
            longest_ttl: longest,
            now,
            lived: ctx.raises.lived(&name, now),
        };
        let mut next = runs::next(before.as_ref(), &facts);
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

/// Where the markers of a server should be: where its run says, or, if nothing is known of it, where
/// they would be put.
fn tags_of(member: &Member, run: Option<&RunStatus>) -> Vec<String> {
    run.map_or_else(|| member.places(&[]), |run| run.tags.clone())
}

/// Asks one server what it is, and what is where its markers should be.
async fn ask(
    store: &Store,
    member: &Member,
    run: Option<&RunStatus>,
) -> Result<(Probe, Vec<Place>), String> {
    let ask = async {
        let probe = member.admin.probe().await?;
        if probe.role == "master" {
            store.ensure_library(&member.name, &member.admin, &probe.replid).await?;
        }
        let there = member.admin.markers(CANARY, &tags_of(member, run)).await?;
        Ok::<_, BackendError>((probe, there))
    };
    match timeout(WITHIN, ask).await {
        Ok(Ok((probe, _))) if probe.role != "master" => {
            Err(format!("it is a {} by now", probe.role))
        }
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {WITHIN:?}")),
    }
}

/// What the servers' answers say of them. One whose markers are being moved is left out, as if it had
/// not answered: the next look sees where they are.
async fn see(answers: &[(&Member, Probe, Vec<Place>)], moves: &Moves<'_>) -> Vec<Seen> {
    let mut all = Vec::new();
    for (member, probe, places) in answers {
        let run = run_of(moves.known, member);
        let marker = match standing(&tags_of(member, run), places, |tag| member.has(tag)) {
            Standing::Here(marker) => marker,
            Standing::Moving => {
                tracing::info!(server = member.name, "the slots of its markers are being moved");
                continue;
            }
            Standing::Moved => match run {
                Some(run) if moves.has_all_of(run).await => Marker::Found(moves.number),
                _ => Marker::Missing,
            },
        };
        all.push(Seen {
            server: member.name.clone(),
            replid: probe.replid.clone(),
            took_over: probe.took_over.clone(),
            marker,
            tags: member.places(run.map_or(&[], |run| &run.tags)),
        });
    }
    all
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
