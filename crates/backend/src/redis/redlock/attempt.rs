//! One request for a lock: votes, the fence that a majority stands at, or everything taken back.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use holdfast_core::{
    Address, BackendError, Deadline, Fence, HoldId,
    lock::{
        Acquire, Attempt, Grant,
        redlock::{self, Ballot, Vote},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::{Incoming, Inner};

/// The votes of one request. Dropping it leaves no request open whose outcome has arrived.
struct Votes {
    inner: Arc<Inner>,
    hold: HoldId,
    incoming: Incoming<Vote>,
}

/// An attempt under way.
struct Campaign<'a> {
    inner: &'a Arc<Inner>,
    at: &'a Address,
    request: &'a Acquire,
    ballot: Ballot,
    votes: Votes,
    /// Servers that may or may not stand at the chosen fence.
    unsure: Vec<usize>,
}

impl Inner {
    /// Asks every server for its vote; a grant when a majority stands at one fence in time.
    ///
    /// Nothing of a request without a grant is left on the servers that answer; on the others it is
    /// being settled.
    pub(super) async fn attempt(
        self: &Arc<Self>,
        at: &Address,
        request: &Acquire,
    ) -> Result<Attempt, BackendError> {
        // Before the first byte.
        let start = self.clock.now();
        let began = Instant::now();
        let mut ballot = Ballot::new(self.servers.len());
        let votes = self.call_for_votes(at, request, &mut ballot);
        let unsure = Vec::new();
        let mut campaign = Campaign { inner: self, at, request, ballot, votes, unsure };
        let patience = redlock::patience(request.ttl);
        let open = |ballot: &Ballot| !ballot.is_granted() && !ballot.is_lost();
        campaign.count(began + patience, open).await;
        let mut fence = None;
        if campaign.ballot.is_granted() {
            let grace = redlock::grace(began.elapsed(), request.ttl);
            campaign.count(Instant::now() + grace, |_| true).await;
            fence = campaign.ballot.fence();
        }
        let granted = match fence {
            Some(fence) => campaign.stand_at(fence, Instant::now() + patience).await,
            None => None,
        };
        match granted {
            Some(grant) if !Deadline::new(start, grant.ttl).passed(self.clock.now()) => {
                campaign.follow_up(grant.fence);
                Ok(Attempt::Granted(grant))
            }
            late => {
                let refusal = match late {
                    None => campaign.ballot.refusal(self.lines.count(at)),
                    Some(_) => Err(BackendError::Unavailable(
                        "the votes took so long that nothing is left of the hold; try again".into(),
                    )),
                };
                campaign.take_back(fence, patience).await;
                refusal
            }
        }
    }

    fn call_for_votes(
        self: &Arc<Self>,
        at: &Address,
        request: &Acquire,
        ballot: &mut Ballot,
    ) -> Votes {
        let mut request = request.clone();
        request.enqueue = false;
        let asked = Arc::new((at.clone(), request));
        let (sender, incoming) = mpsc::unbounded_channel();
        let hold = asked.1.hold.clone();
        for (server, locks) in self.servers.iter().enumerate() {
            if self.open.is_open(&hold, server) {
                let what = "an earlier request of this hold is still being settled there";
                ballot.note(server, Err(BackendError::Unavailable(what.into())));
                continue;
            }
            self.open.begin(&hold, server);
            let (inner, asked) = (self.clone(), asked.clone());
            let (locks, sender) = (locks.clone(), sender.clone());
            tokio::spawn(async move {
                let vote = locks.vote(&asked.0, &asked.1).await;
                if let Err(unheard) = sender.send((server, vote))
                    && is_known(&unheard.0.1)
                {
                    inner.open.end(&asked.1.hold, server);
                }
            });
        }
        Votes { inner: self.clone(), hold, incoming }
    }
}

impl Votes {
    /// The next vote, and whether it is known now what became of the request.
    async fn next(&mut self, until: Instant) -> Option<(usize, Result<Vote, BackendError>)> {
        let (server, vote) = timeout_at(until, self.incoming.recv()).await.ok().flatten()?;
        if is_known(&vote) {
            self.inner.open.end(&self.hold, server);
        }
        Some((server, vote))
    }
}

impl Drop for Votes {
    fn drop(&mut self) {
        self.incoming.close();
        while let Ok((server, vote)) = self.incoming.try_recv() {
            if is_known(&vote) {
                self.inner.open.end(&self.hold, server);
            }
        }
    }
}

impl Campaign<'_> {
    /// Counts votes as long as `more` are wanted.
    async fn count(&mut self, until: Instant, more: impl Fn(&Ballot) -> bool) {
        while more(&self.ballot) && self.ballot.pending().next().is_some() {
            let Some((server, vote)) = self.votes.next(until).await else { return };
            self.ballot.note(server, vote);
        }
    }

    /// Raises those who granted to one fence; the grant, once a majority stands at it.
    async fn stand_at(&mut self, fence: Fence, until: Instant) -> Option<Grant> {
        self.unsure = self.ballot.to_raise(fence);
        let (sender, mut raises) = mpsc::unbounded_channel();
        for &server in &self.unsure {
            let (locks, sender) = (self.inner.servers[server].clone(), sender.clone());
            let (at, request) = (self.at.clone(), self.request.clone());
            tokio::spawn(async move {
                let raised = locks.raise(&at, &request.config, Some(&request.hold), fence).await;
                // Who has its majority does not wait for the rest.
                let _ = sender.send((server, raised));
            });
        }
        drop(sender);
        loop {
            if let Some(grant) = self.ballot.grant(fence) {
                return Some(grant);
            }
            let (server, raised) = timeout_at(until, raises.recv()).await.ok().flatten()?;
            match raised {
                Ok(true) => self.ballot.note_raised(server),
                Ok(false) => {}
                Err(BackendError::Unknown(_)) => continue,
                Err(error) => tracing::debug!(server, %error, "a server was not raised"),
            }
            self.unsure.retain(|unsure| *unsure != server);
        }
    }

    /// Late votes are votes too: they are raised as the others were.
    fn follow_up(self, fence: Fence) {
        if self.ballot.pending().next().is_none() {
            return;
        }
        let (inner, at, request) = (self.inner.clone(), self.at.clone(), self.request.clone());
        let mut votes = self.votes;
        tokio::spawn(async move {
            let until = Instant::now() + super::PATIENCE;
            while let Some((server, vote)) = votes.next(until).await {
                if matches!(vote, Ok(Vote::Granted { fence: has, .. }) if has < fence) {
                    let (locks, hold) = (&inner.servers[server], Some(&request.hold));
                    // Without it this server shows a lower fence; the majority decides.
                    let _ = locks.raise(&at, &request.config, hold, fence).await;
                }
            }
        });
    }

    /// Takes back what this request put on the servers, and waits a little for that.
    async fn take_back(self, fence: Option<Fence>, patience: Duration) {
        let Campaign { inner, at, request, ballot, votes, unsure } = self;
        let (config, hold) = (&request.config, &request.hold);
        // Somebody else here uses the hold: what is not known to be this request's stays.
        let is_used = inner.hub.users(hold) > 1;
        let mut known = Vec::new();
        for undo in ballot.undo(fence) {
            // No gap in which another request could count on it.
            inner.open.begin(hold, undo.server);
            if unsure.contains(&undo.server) {
                inner.settle(undo.server, at, config, hold);
            } else {
                known.push(undo);
            }
        }
        for server in ballot.unknown() {
            if !is_used {
                inner.settle(server, at, config, hold);
            }
        }
        if ballot.pending().next().is_some() {
            tokio::spawn(take_back_late(inner.clone(), at.clone(), request.clone(), votes));
        }
        let undone = join_all(known.into_iter().map(|undo| {
            let (inner, at, request) = (inner.clone(), at.clone(), request.clone());
            tokio::spawn(async move {
                let what = (&at, &*request.config);
                inner.take_back(undo.server, what, &request.hold, undo.fence).await;
            })
        }));
        let _ = timeout(patience, undone).await;
    }
}

/// Votes that come when there is nothing to be granted any more.
async fn take_back_late(inner: Arc<Inner>, at: Address, request: Acquire, mut votes: Votes) {
    let (config, hold) = (&request.config, &request.hold);
    // Not by `next`: the request stays open until it is taken back.
    while let Some((server, vote)) = votes.incoming.recv().await {
        match vote {
            Ok(Vote::Granted { fence, is_new: true, .. }) => {
                inner.take_back(server, (&at, config), hold, fence).await;
            }
            vote if is_known(&vote) => inner.open.end(hold, server),
            _ if inner.hub.users(hold) > 1 => {}
            _ => inner.settle(server, &at, config, hold),
        }
    }
}

/// Whether nothing of the request can happen later.
fn is_known(vote: &Result<Vote, BackendError>) -> bool {
    !matches!(vote, Err(BackendError::Unknown(_)))
}
