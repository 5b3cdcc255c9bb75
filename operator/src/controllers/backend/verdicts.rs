//! What a store's state means for the safety of locks: conditions with a sentence each. Pure.

use holdfast_api::{
    conditions::{
        EVICTION_SAFE, PERSISTENT, READY, REASON_PROBED, REASON_QUARANTINE, REASON_RECONCILED,
        REASON_UNSAFE, REPLICATED, Verdict,
    },
    v1alpha1::backend::EpochStatus,
};
use holdfast_backend::redis::Probe;

/// Why a server cannot be used at all, in a sentence.
pub fn unfit(probe: &Probe) -> Option<String> {
    if probe.cluster_enabled {
        return Some("the server is part of a cluster: set spec.redis.mode to Cluster".into());
    }
    (probe.role != "master").then(|| {
        format!("the server is a {}: put the primary's address into spec.redis", probe.role)
    })
}

/// `ack` is how many replicas grants wait for.
pub fn verdicts(
    probe: &Probe,
    unfit: Option<String>,
    epoch: Option<&EpochStatus>,
    ack: u32,
) -> Vec<Verdict> {
    let is_safe = probe.maxmemory_policy == "noeviction";
    let ready = match (unfit, epoch) {
        (Some(why), _) => Verdict::new(READY, false, REASON_UNSAFE, why),
        (None, _) if !is_safe => Verdict::new(
            READY,
            false,
            REASON_UNSAFE,
            "the server may drop locks and fences when its memory is full; set maxmemory-policy \
             to noeviction",
        ),
        (None, Some(epoch)) if !epoch.open => Verdict::new(
            READY,
            false,
            REASON_QUARANTINE,
            format!(
                "epoch {} opens at {}, when every hold of the epoch before has run out",
                epoch.number, epoch.not_before.0
            ),
        ),
        (None, Some(epoch)) if epoch.runs.iter().any(|run| !run.open) => {
            Verdict::new(READY, false, REASON_QUARANTINE, partly_closed(epoch))
        }
        (None, Some(epoch)) => {
            Verdict::new(READY, true, REASON_RECONCILED, format!("epoch {} is open", epoch.number))
        }
        (None, None) => Verdict::new(READY, false, REASON_QUARANTINE, "no epoch is open yet"),
    };
    let probed = |type_, ok, message: String| Verdict::new(type_, ok, REASON_PROBED, message);
    let policy = &probe.maxmemory_policy;
    vec![
        ready,
        probed(
            EVICTION_SAFE,
            is_safe,
            match is_safe {
                true => "maxmemory-policy is noeviction: a full server refuses writes".into(),
                false => format!(
                    "maxmemory-policy is {policy}: a full server drops locks and fences; set it \
                     to noeviction"
                ),
            },
        ),
        probed(
            PERSISTENT,
            probe.aof_enabled,
            match probe.aof_enabled {
                true => "the append-only file is on: a restart keeps what was written".into(),
                false => "the append-only file is off: a restart loses every hold, and a new \
                          epoch keeps locks closed for a while; set appendonly to yes"
                    .into(),
            },
        ),
        probed(
            REPLICATED,
            probe.connected_replicas >= ack.max(1),
            match probe.connected_replicas {
                n if n < ack => format!(
                    "{n} replicas follow, and grants wait for {ack}: none is made until more \
                     replicas follow or spec.redis.ack asks for fewer"
                ),
                0 => "the server has no replica: locks wait for as long as it is down".into(),
                n => format!("{n} replicas follow; a failover opens a new epoch"),
            },
        ),
    ]
}

/// What is said of an epoch that is open on some of its servers.
fn partly_closed(epoch: &EpochStatus) -> String {
    let closed: Vec<_> = epoch.runs.iter().filter(|run| !run.open).collect();
    let names: Vec<&str> = closed.iter().map(|run| run.server.as_str()).collect();
    let last = closed.iter().map(|run| run.not_before.0).max().unwrap_or_default();
    format!(
        "epoch {} is open, but for {} of {} servers ({}): what lives there waits until {last}, when \
         every hold of before has run out",
        epoch.number,
        closed.len(),
        epoch.runs.len(),
        names.join(", ")
    )
}

/// A server's version, with the project's name where it is not Redis.
pub fn version(probe: &Probe) -> String {
    match probe.valkey {
        true => format!("valkey {}", probe.version),
        false => probe.version.clone(),
    }
}
