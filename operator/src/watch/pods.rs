//! Pods with a sidecar, by their metadata alone: the namespaces that need a bundle, and the priorities
//! of pods that stand in elections.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures::StreamExt;
use holdfast_api::names::{ANNOTATION_CANDIDATE, ANNOTATION_PRIORITY};
use holdfast_core::Kind;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};

use super::{PAGE, Triggers};
use crate::{admission::inject::INJECTED_LABEL, context::lock};

/// What is known of pods with a sidecar.
#[derive(Default)]
pub struct Injected {
    /// The namespaces in which sidecars are: those need a bundle even while nothing is declared, so
    /// that a sidecar does not have to guess whether it may not read it or there is none.
    namespaces: Mutex<BTreeSet<String>>,
    ranked: Mutex<Ranked>,
}

/// Pods with a priority, by namespace and name.
type Ranked = BTreeMap<(String, String), Rank>;

/// A candidate with a priority.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rank {
    priority: i64,
    elections: BTreeSet<String>,
}

impl Injected {
    /// Whether sidecars have been seen in a namespace.
    pub fn contains(&self, namespace: &str) -> bool {
        lock(&self.namespaces).contains(namespace)
    }

    /// The priority of a pod; one that says nothing has none, zero.
    pub fn priority(&self, namespace: &str, pod: &str) -> i64 {
        let key = (namespace.to_owned(), pod.to_owned());
        lock(&self.ranked).get(&key).map_or(0, |rank| rank.priority)
    }

    /// The pods that stand in an election with a priority above this one, the highest first.
    pub fn above(&self, namespace: &str, election: &str, priority: i64) -> Vec<(i64, String)> {
        let ranked = lock(&self.ranked);
        let from = (namespace.to_owned(), String::new());
        let here = ranked.range(from..).take_while(|((of, _), _)| of == namespace);
        let better =
            here.filter(|(_, rank)| rank.priority > priority && rank.elections.contains(election));
        let mut pods: Vec<_> =
            better.map(|((_, pod), rank)| (rank.priority, pod.clone())).collect();
        pods.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        pods
    }
}

/// What a pod's annotations say of its rank. One that is no number is as none.
fn rank_of(pod: &PartialObjectMeta<Pod>) -> Option<Rank> {
    let priority = pod.annotations().get(ANNOTATION_PRIORITY)?.trim().parse().ok()?;
    let named = pod.annotations().get(ANNOTATION_CANDIDATE)?.split(',').map(str::trim);
    let elections = named.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    Some(Rank { priority, elections })
}

/// Follows the pods. Never ends by itself.
pub(super) async fn follow(client: Client, triggers: Triggers, injected: Arc<Injected>) {
    let config =
        watcher::Config::default().labels(&format!("{INJECTED_LABEL}=true")).page_size(PAGE);
    let pods = Api::<PartialObjectMeta<Pod>>::all(client);
    let mut pods = Box::pin(watcher(pods, config).default_backoff());
    // A list that is read anew replaces the old one only when it is whole: a leader whose own rank
    // is not there yet would lose its leadership to anybody.
    let mut listed = None;
    while let Some(event) = pods.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = Some(Ranked::new()),
            Ok(watcher::Event::InitApply(pod)) => {
                note_namespace(&injected, &triggers, &pod);
                if let (Some(listed), Some(rank)) = (&mut listed, rank_of(&pod)) {
                    listed.insert(key_of(&pod), rank);
                }
            }
            Ok(watcher::Event::InitDone) => {
                let fresh = listed.take().unwrap_or_default();
                let stale = std::mem::replace(&mut *lock(&injected.ranked), fresh.clone());
                for (key, rank) in stale.iter().chain(&fresh) {
                    tell(&triggers, &key.0, rank);
                }
            }
            Ok(watcher::Event::Apply(pod)) => {
                note_namespace(&injected, &triggers, &pod);
                let (key, rank) = (key_of(&pod), rank_of(&pod));
                let mut ranked = lock(&injected.ranked);
                let before = match &rank {
                    Some(rank) => ranked.insert(key.clone(), rank.clone()),
                    None => ranked.remove(&key),
                };
                drop(ranked);
                // Also when nothing but its readiness changed.
                before.iter().chain(&rank).for_each(|rank| tell(&triggers, &key.0, rank));
            }
            Ok(watcher::Event::Delete(pod)) => {
                lock(&injected.ranked).remove(&key_of(&pod));
            }
            Err(error) => {
                tracing::debug!(%error, "the watch of pods was interrupted; it goes on");
            }
        }
    }
}

fn key_of(pod: &PartialObjectMeta<Pod>) -> (String, String) {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

fn note_namespace(injected: &Injected, triggers: &Triggers, pod: &PartialObjectMeta<Pod>) {
    let namespace = pod.namespace().unwrap_or_default();
    if lock(&injected.namespaces).insert(namespace.clone()) {
        triggers.namespace(&namespace);
    }
}

fn tell(triggers: &Triggers, namespace: &str, rank: &Rank) {
    for election in &rank.elections {
        triggers.class(Kind::LeaderElection, namespace, election);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_injected(pods: &[(&str, i64, &str)]) -> Injected {
        let ranked = pods.iter().map(|(pod, priority, elections)| {
            let elections = elections.split(',').map(str::to_owned).collect();
            (("shop".to_owned(), (*pod).to_owned()), Rank { priority: *priority, elections })
        });
        Injected { ranked: Mutex::new(ranked.collect()), ..Injected::default() }
    }

    #[test]
    fn only_candidates_of_the_election_and_the_namespace_with_more_come_before() {
        let injected = mk_injected(&[
            ("a", 5, "boss"),
            ("b", 10, "boss,other"),
            ("c", 10, "other"),
            ("d", -1, "boss"),
        ]);
        let above = |priority| injected.above("shop", "boss", priority);
        assert_eq!(above(0), [(10, "b".into()), (5, "a".into())]);
        assert_eq!(above(5), [(10, "b".into())]);
        assert_eq!(above(10), []);
        assert_eq!(injected.above("shoq", "boss", 0), []);
        assert_eq!(injected.priority("shop", "d"), -1);
        assert_eq!(injected.priority("shop", "unknown"), 0);
    }
}
