//! What a majority of servers shows: who holds a key, and the newest fence.
//!
//! Servers differ: one was away, one has the vote of a request that was not granted. Nobody is shown as
//! a holder whom fewer than a majority have, and nobody who may hold is taken for stale.

use super::{Answers, majority, nth_largest, oks, shortage};
use crate::{
    BackendError, Fence, HoldId,
    lock::{HolderView, LockView},
};

/// What one server shows of a key: whose hold it has, and its own view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The hold in it.
    pub hold: Option<HoldId>,
    /// What it shows of it.
    pub view: LockView,
}

/// One view of many: a hold is shown that a majority of all servers has.
///
/// # Errors
/// When fewer than a majority answered.
pub fn view(answers: &Answers<Seen>) -> Result<LockView, BackendError> {
    let (servers, needed) = (answers.len(), majority(answers.len()));
    if oks(answers).count() < needed {
        return Err(shortage(answers));
    }
    let fences = oks(answers).map(|seen| seen.view.last_fence.unwrap_or(Fence::new(0)));
    let newest = bound(fences.collect(), servers);
    let mut view =
        LockView { last_fence: newest.filter(|fence| fence.get() > 0), ..LockView::default() };
    let holds =
        oks(answers).filter_map(|seen| Some((seen.hold.as_ref()?, seen.view.holder.as_ref()?)));
    for (hold, _) in holds.clone() {
        let of: Vec<HolderView> = holds
            .clone()
            .filter(|(other, _)| *other == hold)
            .map(|(_, seen)| seen.clone())
            .collect();
        if of.len() >= needed {
            view.holder = taken(&of).map(|holder| HolderView {
                ttl: nth_largest(of.iter().map(|seen| seen.ttl).collect(), needed)
                    .unwrap_or_default(),
                ..holder
            });
            (view.holds, view.used) = (1, 1);
            return Ok(view);
        }
    }
    Ok(view)
}

/// Whom a lock was taken from by force, if a majority did so; to be called when no more answers come.
///
/// # Errors
/// When fewer than a majority answered.
pub fn forced(answers: &Answers<Option<HolderView>>) -> Result<Option<HolderView>, BackendError> {
    let (servers, needed) = (answers.len(), majority(answers.len()));
    let answered = oks(answers).count();
    if answered < needed {
        return Err(shortage(answers));
    }
    let seen: Vec<HolderView> = oks(answers).flatten().cloned().collect();
    // Fewer is what a request had that was not granted.
    let was_held = seen.len() + (servers - answered) >= needed;
    Ok(taken(&seen).filter(|_| was_held))
}

/// The holder that most servers name, with the fence that most give it (the higher of two).
fn taken(seen: &[HolderView]) -> Option<HolderView> {
    let count = |view: &HolderView| {
        seen.iter().filter(|v| (v.fence, &v.holder) == (view.fence, &view.holder)).count()
    };
    seen.iter().max_by_key(|view| (count(view), view.fence)).cloned()
}

/// What one server knows of the newest grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The hold in it.
    pub hold: Option<HoldId>,
    /// The newest fence that it granted or was raised to, or the least that it may grant.
    pub fence: Fence,
}

/// A fence that none of those who hold no longer reaches, and that whoever holds now does.
///
/// # Errors
/// When fewer than a majority answered, and when those that did leave it open who holds.
pub fn newest(answers: &Answers<Standing>) -> Result<Fence, BackendError> {
    let (servers, needed) = (answers.len(), majority(answers.len()));
    if oks(answers).count() < needed {
        return Err(shortage(answers));
    }
    let away = servers - oks(answers).count();
    let Some(bound) = bound(oks(answers).map(|seen| seen.fence).collect(), servers) else {
        return Err(shortage(answers));
    };
    // Whoever may have been answered a grant and holds it still: with the servers that are away, a
    // majority stands at its fence. It must not be taken for a stale one.
    let may_hold = oks(answers).filter(|seen| {
        let same = |other: &&Standing| other == seen;
        seen.hold.is_some() && oks(answers).filter(same).count() + away >= needed
    });
    match may_hold.map(|seen| seen.fence).min() {
        Some(held) if held < bound => Err(BackendError::Unavailable(
            "the servers that answer leave it open who holds; try again".into(),
        )),
        _ => Ok(bound),
    }
}

/// The least that every answered grant's fence is below or at: a majority stands at it or above, and
/// of the servers that answered so many at least.
fn bound(fences: Vec<Fence>, servers: usize) -> Option<Fence> {
    let away = servers - fences.len();
    nth_largest(fences, majority(servers) - away.min(majority(servers)))
}
