//! The rules of a lock that lives on a majority of independent servers (Redlock), as functions of
//! what the servers answered.
//!
//! Each server runs the transitions of [`state`](super::state) for itself and knows nothing of the
//! others. What this module adds is how their answers make one: when a hold is granted, with which
//! fence, for how long, and what an answer is when some servers are away. It sends nothing.
//!
//! What always holds, as long as no server forgets what it has told in an epoch (a server that may
//! have is refused by its epoch guard, and counts as absent):
//! - A grant is answered only when a majority stands at its fence *with the hold in it*. Two
//!   majorities share a server, a server has one hold at a time, and its sequence never goes down; so
//!   fences of two grants differ, and the later grant has the higher one. Clocks play no part in it.
//!   The proof is in docs/design/0003-redis-modes.md.
//! - Two grants are *trusted* at once only if clocks are further apart than the margins of
//!   [`clock`](crate::clock).
//!
//! Source: S. Sanfilippo, "Distributed Locks with Redis" (redis.io); M. Kleppmann, "How to do
//! distributed locking" (2016) for what it lacks: the fence by quorum is ours.

use std::time::Duration;

use super::{Attempt, Grant, Release, Renewal};
use crate::{BackendError, Fence};

mod views;

pub use views::{Seen, Standing, forced, newest, view};

/// How far the clocks of two servers may drift apart in one hold beyond the margin of
/// [`trusted_for`](crate::clock::trusted_for), and what a server's whole milliseconds hide.
pub const DRIFT: Duration = Duration::from_millis(2);
/// The least that a server is waited for.
const MIN_PATIENCE: Duration = Duration::from_millis(10);
/// The most.
const MAX_PATIENCE: Duration = Duration::from_secs(1);

/// How many of `servers` are a majority.
pub const fn majority(servers: usize) -> usize {
    servers / 2 + 1
}

/// How long one server's vote is waited for: a twentieth of the time to live, so that servers that
/// do not answer cannot use it up.
pub fn patience(ttl: Duration) -> Duration {
    (ttl / 20).clamp(MIN_PATIENCE, MAX_PATIENCE)
}

/// How long the servers are waited for that have not voted, once a majority has: as long again as
/// that took. All servers then stand at one fence, unless one is slow.
pub fn grace(taken: Duration, ttl: Duration) -> Duration {
    taken.clamp(Duration::from_millis(1), patience(ttl))
}

/// What each server answered; `None` for one that has not (yet).
pub type Answers<T> = [Option<Result<T, BackendError>>];

/// One server's answer to a request for the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    /// It has the hold.
    Granted {
        /// With this fence.
        fence: Fence,
        /// For so long, counted from a time after the request was sent.
        ttl: Duration,
        /// Whether this very request put it there.
        is_new: bool,
    },
    /// It has another's hold, or none may be granted yet.
    Locked {
        /// When that may change by itself.
        retry_after: Duration,
    },
    /// The hold was cancelled before.
    Cancelled,
}

/// The votes for one request, as they come in.
#[derive(Debug)]
pub struct Ballot {
    votes: Vec<Option<Result<Vote, BackendError>>>,
    /// Servers that were raised to the chosen fence.
    raised: Vec<bool>,
}

/// A grant that was not made after all: what has to be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undo {
    /// On which server.
    pub server: usize,
    /// The grant with this fence and no other: a later one of the same hold is not meant.
    pub fence: Fence,
}

impl Ballot {
    /// A ballot of so many servers.
    pub fn new(servers: usize) -> Self {
        Ballot { votes: vec![None; servers], raised: vec![false; servers] }
    }

    /// Notes what a server answered. A retry of the server's client cannot vote twice.
    pub fn note(&mut self, server: usize, vote: Result<Vote, BackendError>) {
        self.votes[server].get_or_insert(vote);
    }

    /// Whether a majority has granted.
    pub fn is_granted(&self) -> bool {
        self.granted().count() >= self.needed()
    }

    /// Whether a majority cannot grant any more, whatever the rest answers, and enough is known to say
    /// why.
    pub fn is_lost(&self) -> bool {
        let answered = || self.votes.iter().flatten();
        let not = answered().filter(|vote| !matches!(vote, Ok(Vote::Granted { .. })));
        let needed = self.needed();
        let is_told = answered().filter(|vote| vote.is_ok()).count() >= needed;
        self.votes.len() - not.count() < needed && (is_told || self.pending().next().is_none())
    }

    /// Which servers have not answered.
    pub fn pending(&self) -> impl Iterator<Item = usize> {
        self.votes.iter().enumerate().filter(|(_, vote)| vote.is_none()).map(|(server, _)| server)
    }

    /// Which servers answered that they do not know what became of the request.
    pub fn unknown(&self) -> impl Iterator<Item = usize> {
        let unknown = |vote: &Option<_>| matches!(vote, Some(Err(BackendError::Unknown(_))));
        self.votes
            .iter()
            .enumerate()
            .filter(move |(_, vote)| unknown(vote))
            .map(|(server, _)| server)
    }

    /// The fence that the grant is to have: what a majority agrees on already (the same request got
    /// it before, or the servers' clocks agree), else the highest of the votes. `None` without a vote.
    pub fn fence(&self) -> Option<Fence> {
        let agreed = self.granted().map(|(_, fence, _)| fence).find(|fence| {
            self.granted().filter(|(_, other, _)| other == fence).count() >= self.needed()
        });
        agreed.or_else(|| self.granted().map(|(_, fence, _)| fence).max())
    }

    /// The servers that must be raised to `fence`, because they granted with a lower one.
    pub fn to_raise(&self, fence: Fence) -> Vec<usize> {
        self.granted().filter(|(_, has, _)| *has < fence).map(|(server, ..)| server).collect()
    }

    /// Notes that a server stands at the chosen fence now, with the hold in it.
    pub fn note_raised(&mut self, server: usize) {
        self.raised[server] = true;
    }

    /// The grant, once a majority stands at `fence`; its time to live is what the majority has.
    pub fn grant(&self, fence: Fence) -> Option<Grant> {
        let stands = |(server, has, ttl): (usize, Fence, Duration)| {
            (has == fence || self.raised[server]).then_some(ttl)
        };
        let ttl = nth_largest(self.granted().filter_map(stands).collect(), self.needed())?;
        Some(Grant { fence, ttl: ttl.saturating_sub(DRIFT), claimed: true, since: None })
    }

    /// What has to be taken back when there is no grant: what this request put there. `fence` is the
    /// one that servers were raised to.
    pub fn undo(&self, fence: Option<Fence>) -> Vec<Undo> {
        let mut undo = Vec::new();
        for (server, vote) in self.votes.iter().enumerate() {
            if let Some(Ok(Vote::Granted { fence: has, is_new: true, .. })) = vote {
                let fence = fence.filter(|_| self.raised[server]).unwrap_or(*has);
                undo.push(Undo { server, fence });
            }
        }
        undo
    }

    /// What a request that has no grant is told. `waiters` is how many wait.
    ///
    /// # Errors
    /// When so many servers are away that nobody can be granted anything.
    pub fn refusal(&self, waiters: u32) -> Result<Attempt, BackendError> {
        let (servers, needed) = (self.votes.len(), self.needed());
        let voted = |vote: &&Result<Vote, BackendError>| vote.is_ok();
        let cancelled = self.votes.iter().flatten().filter(|vote| **vote == Ok(Vote::Cancelled));
        if cancelled.count() > servers - needed {
            return Ok(Attempt::Cancelled);
        }
        if self.votes.iter().flatten().filter(voted).count() < needed {
            return Err(shortage(&self.votes));
        }
        // A server that would have granted is free now; one that is away may be free soon.
        let mut free: Vec<Duration> = self
            .votes
            .iter()
            .filter_map(|vote| match vote {
                Some(Ok(Vote::Granted { .. })) => Some(Duration::ZERO),
                Some(Ok(Vote::Locked { retry_after })) => Some(*retry_after),
                Some(Ok(Vote::Cancelled) | Err(_)) | None => None,
            })
            .collect();
        free.sort_unstable();
        let last = free.last().copied().unwrap_or(MAX_PATIENCE);
        let retry_after = free.get(needed - 1).copied().unwrap_or(last);
        Ok(Attempt::Locked { retry_after, waiters })
    }

    fn needed(&self) -> usize {
        majority(self.votes.len())
    }

    fn granted(&self) -> impl Iterator<Item = (usize, Fence, Duration)> + Clone {
        self.votes.iter().enumerate().filter_map(|(server, vote)| match vote {
            Some(Ok(Vote::Granted { fence, ttl, .. })) => Some((server, *fence, *ttl)),
            _ => None,
        })
    }
}

/// The outcome of a renewal that was sent to all; `None` to wait for more answers. `is_over` when
/// no more will come.
pub fn renewal(answers: &Answers<Renewal>, is_over: bool) -> Option<Result<Renewal, BackendError>> {
    let needed = majority(answers.len());
    let left = |renewal: &Renewal| match renewal {
        Renewal::Renewed { ttl } => Some(*ttl),
        Renewal::Lost => None,
    };
    let renewed: Vec<Duration> = oks(answers).filter_map(left).collect();
    let lost = oks(answers).count() - renewed.len();
    if let Some(ttl) = nth_largest(renewed, needed) {
        return Some(Ok(Renewal::Renewed { ttl: ttl.saturating_sub(DRIFT) }));
    }
    if lost > answers.len() - needed {
        return Some(Ok(Renewal::Lost));
    }
    is_last(answers, is_over).then(|| Err(shortage(answers)))
}

/// The outcome of a release that was sent to all, as [`renewal`].
pub fn release(answers: &Answers<Release>, is_over: bool) -> Option<Result<Release, BackendError>> {
    let needed = majority(answers.len());
    let released = oks(answers).filter(|release| **release == Release::Released).count();
    if released >= needed {
        return Some(Ok(Release::Released));
    }
    if !is_last(answers, is_over) {
        return None;
    }
    let answered = oks(answers).count();
    if answered < needed {
        return Some(Err(shortage(answers)));
    }
    // Servers that are away may have had it: together with them, a majority knew it.
    let is_known = released > 0 && released + (answers.len() - answered) >= needed;
    Some(Ok(if is_known { Release::Released } else { Release::NotHeld }))
}

/// The outcome of something that a majority must have done, as [`renewal`].
pub fn done<T>(answers: &Answers<T>, is_over: bool) -> Option<Result<(), BackendError>> {
    if oks(answers).count() >= majority(answers.len()) {
        return Some(Ok(()));
    }
    is_last(answers, is_over).then(|| Err(shortage(answers)))
}

fn nth_largest<T: Ord + Copy>(mut all: Vec<T>, nth: usize) -> Option<T> {
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.get(nth.checked_sub(1)?).copied()
}

fn oks<T>(answers: &Answers<T>) -> impl Iterator<Item = &T> + Clone {
    answers.iter().flatten().filter_map(|answer| answer.as_ref().ok())
}

fn is_last<T>(answers: &Answers<T>, is_over: bool) -> bool {
    is_over || answers.iter().all(Option::is_some)
}

/// Why there is no majority.
///
/// What a majority says is what all say. Else the outcome is unknown if servers that have not
/// answered could still make up a majority with those that have.
pub fn shortage<T>(answers: &Answers<T>) -> BackendError {
    let (servers, needed) = (answers.len(), majority(answers.len()));
    let errors = || answers.iter().flatten().filter_map(|answer| answer.as_ref().err());
    let is_decided = |code: &str| errors().filter(|e| e.code() == code).count() > servers - needed;
    if let Some(error) = errors().find(|error| is_decided(error.code()))
        && matches!(
            error,
            BackendError::Epoch | BackendError::Forbidden(_) | BackendError::NotFound(_)
        )
    {
        return error.clone();
    }
    let mut why: Vec<String> = Vec::new();
    for (server, answer) in answers.iter().enumerate() {
        match answer {
            Some(Ok(_)) => {}
            Some(Err(error)) => why.push(format!("server {}: {}", server + 1, reason(error))),
            None => why.push(format!("server {}: no answer in time", server + 1)),
        }
    }
    let what = format!(
        "{} of {servers} servers vote now, and {needed} are needed ({})",
        servers - why.len(),
        why.join("; ")
    );
    let open = answers
        .iter()
        .filter(|answer| matches!(answer, None | Some(Ok(_) | Err(BackendError::Unknown(_)))));
    if open.count() >= needed {
        BackendError::Unknown(what)
    } else {
        BackendError::Unavailable(what)
    }
}

/// What an error says, without what sort it is of: that is said once for all.
fn reason(error: &BackendError) -> String {
    match error {
        BackendError::Unavailable(text) | BackendError::Unknown(text) => text.clone(),
        BackendError::Epoch
        | BackendError::Forbidden(_)
        | BackendError::NotFound(_)
        | BackendError::Internal(_) => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
