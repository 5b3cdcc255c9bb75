//! Who asks next, among the gated pods of this operator: one line per key of a class, in the order in
//! which the API server shows the pods.
//!
//! - Where the store keeps a queue (Redis), a pod leaves the line once it has asked: the line only sees
//!   to it that they ask in order. On Leases there is no such queue, and the line is all there is: a
//!   pod leaves it with its hold.
//! - Nobody asks before every running pod of the class has been seen to: see [`Lines::adopting`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use holdfast_api::hold::PodHold;
use holdfast_core::{ClassName, Key, Kind};
use tokio::sync::{Notify, watch};

use crate::context::lock;

type ClassId = (String, Kind, ClassName);
type LineId = (ClassId, Option<Key>);

/// All lines of the operator.
#[derive(Default)]
pub struct Lines {
    lines: Mutex<HashMap<LineId, Arc<Line>>>,
    adopting: Mutex<HashMap<ClassId, watch::Sender<usize>>>,
}

#[derive(Default)]
struct Line {
    pods: Mutex<VecDeque<String>>,
    moved: Notify,
}

/// A pod's place in a line; dropping it leaves the line.
pub struct Place {
    line: Arc<Line>,
    uid: String,
}

/// A running pod that has not been seen to yet; dropping it says that it has.
pub struct Adopting(watch::Sender<usize>);

impl Lines {
    /// Joins the line of a hold, at its end.
    pub fn join(&self, namespace: &str, hold: &PodHold, uid: &str) -> Place {
        let mut lines = lock(&self.lines);
        // A line that nobody stands in or looks at any more.
        lines.retain(|_, line| Arc::strong_count(line) > 1);
        let line = lines.entry((class_of(namespace, hold), hold.key.clone())).or_default().clone();
        lock(&line.pods).push_back(uid.to_owned());
        Place { line, uid: uid.to_owned() }
    }

    /// How many stand in the lines of a class.
    pub fn waiting(&self, namespace: &str, kind: Kind, class: &ClassName) -> u32 {
        let lines = lock(&self.lines);
        let ours = lines
            .iter()
            .filter(|(((of, k, name), _), _)| of == namespace && *k == kind && name == class);
        ours.map(|(_, line)| lock(&line.pods).len() as u32).sum()
    }

    /// Notes that a running pod of a class is to be seen to before any gated one asks.
    pub fn adopting(&self, namespace: &str, hold: &PodHold) -> Adopting {
        let mut all = lock(&self.adopting);
        all.retain(|_, open| *open.borrow() > 0);
        let open = all.entry(class_of(namespace, hold)).or_default().clone();
        open.send_modify(|open| *open += 1);
        Adopting(open)
    }

    /// Whether every running pod of a class has been seen to.
    pub fn all_adopted(&self, namespace: &str, hold: &PodHold) -> bool {
        let all = lock(&self.adopting);
        all.get(&class_of(namespace, hold)).is_none_or(|open| *open.borrow() == 0)
    }

    /// Waits until they have.
    pub async fn adopted(&self, namespace: &str, hold: &PodHold) {
        let open = lock(&self.adopting).get(&class_of(namespace, hold)).map(|o| o.subscribe());
        if let Some(mut open) = open {
            // The sender goes with the last of them.
            drop(open.wait_for(|open| *open == 0).await);
        }
    }
}

impl Place {
    /// Whether it is this pod's turn.
    pub fn is_first(&self) -> bool {
        lock(&self.line.pods).front() == Some(&self.uid)
    }

    /// The place, counted from 1.
    pub fn number(&self) -> u32 {
        let at = lock(&self.line.pods).iter().position(|uid| *uid == self.uid);
        at.map_or(1, |at| at as u32 + 1)
    }

    /// Waits until the line has moved.
    pub async fn moved(&self) {
        self.line.moved.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.line.pods).retain(|uid| *uid != self.uid);
        self.line.moved.notify_waiters();
    }
}

impl Drop for Adopting {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open = open.saturating_sub(1));
    }
}

fn class_of(namespace: &str, hold: &PodHold) -> ClassId {
    (namespace.to_owned(), hold.kind, hold.class.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_hold(class: &str) -> PodHold {
        let class = ClassName::new(class).unwrap();
        PodHold { kind: Kind::Lock, class, key: None, permits: 1 }
    }

    #[tokio::test]
    async fn a_line_moves_when_its_first_leaves() {
        let (lines, hold) = (Lines::default(), mk_hold("a"));
        let first = lines.join("shop", &hold, "1");
        let second = lines.join("shop", &hold, "2");
        let elsewhere = lines.join("shop", &mk_hold("b"), "3");
        assert!(first.is_first() && !second.is_first() && elsewhere.is_first());
        assert_eq!((second.number(), lines.waiting("shop", Kind::Lock, &hold.class)), (2, 2));
        let mut moved = Box::pin(second.moved());
        assert!(futures::poll!(&mut moved).is_pending());
        drop(first);
        moved.await;
        assert!(second.is_first());
        drop((second, elsewhere));
        assert_eq!(lines.waiting("shop", Kind::Lock, &hold.class), 0);
    }

    #[tokio::test]
    async fn nobody_asks_before_every_running_pod_was_seen_to() {
        let (lines, hold) = (Lines::default(), mk_hold("a"));
        assert!(lines.all_adopted("shop", &hold));
        lines.adopted("shop", &hold).await;
        let (one, two) = (lines.adopting("shop", &hold), lines.adopting("shop", &hold));
        assert!(lines.all_adopted("shop", &mk_hold("b")));
        drop(one);
        let adopted = lines.adopted("shop", &hold);
        tokio::pin!(adopted);
        assert!(futures::poll!(&mut adopted).is_pending());
        drop(two);
        adopted.await;
        assert!(lines.all_adopted("shop", &hold));
    }
}
