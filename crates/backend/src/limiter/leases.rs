//! Tokens in hand, by key: fetched by one call at a time, served from memory, put back when they are
//! too old or the process ends.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use foldhash::quality::RandomState;
use futures::future::join_all;
use holdfast_core::{
    Address, BackendError, Stamp,
    ratelimit::{
        Check, Decision, Policy, Taken,
        lease::{Step, Terms, Tokens},
    },
};

use super::{Limiter, Plan};
use crate::hub::lock;

/// How often tokens that are too old are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// What of whom is to be put back.
type Rest = (Address, Arc<Policy>, Taken);

#[derive(Default)]
pub(super) struct Leases {
    keys: Mutex<HashMap<Address, Entry, RandomState>>,
    is_tidied: AtomicBool,
    is_closed: AtomicBool,
}

struct Entry {
    tokens: Tokens,
    /// Who may fetch. Made by the first who must, gone with the last: a key costs nothing but itself.
    turn: Option<Arc<tokio::sync::Mutex<()>>>,
}

/// What becomes of a check.
enum Next {
    Decided(Decision),
    /// To ask for, in turn.
    Ask(Check, Arc<tokio::sync::Mutex<()>>),
}

impl Entry {
    fn next(&mut self, terms: Terms, now: Stamp, check: &Check) -> Next {
        match self.tokens.serve(terms, now, check) {
            Step::Decided(decision) => Next::Decided(decision),
            Step::Ask(ask) => Next::Ask(ask, self.turn.get_or_insert_default().clone()),
        }
    }
}

/// Who fetches tokens of a key, until dropped.
struct Turn<'a> {
    leases: &'a Leases,
    at: &'a Address,
    _guard: tokio::sync::OwnedMutexGuard<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Turns are given with the table locked: two know of this one, the table and the guard, unless
        // somebody waits for it.
        if let Some(entry) = lock(&self.leases.keys).get_mut(self.at) {
            entry.turn.take_if(|turn| Arc::strong_count(turn) <= 2);
        }
    }
}

impl Leases {
    pub(super) fn in_hand(&self) -> u64 {
        lock(&self.keys).values().map(|entry| entry.tokens.in_hand()).sum()
    }

    /// Everything that may not be used any more; with `all`, everything.
    fn rest(&self, limiter: &Limiter, all: bool) -> Vec<Rest> {
        let now = limiter.clock.now();
        let mut rest = Vec::new();
        lock(&self.keys).retain(|at, entry| {
            let given = match all {
                true => entry.tokens.give_up(),
                false => entry.tokens.tidy(now),
            };
            rest.extend(given.map(|(policy, taken)| (at.clone(), policy, taken)));
            // Who has a turn, or waits for one, comes back to this entry.
            let in_use = entry.turn.as_ref().is_some_and(|turn| Arc::strong_count(turn) > 1);
            in_use || !entry.tokens.is_idle(now)
        });
        rest
    }
}

impl Limiter {
    pub(super) async fn check_leased(
        self: &Arc<Self>,
        at: &Address,
        plan: &Plan,
        terms: Terms,
        check: &Check,
    ) -> Result<(Decision, bool), BackendError> {
        let turn = match self.serve(at, plan, terms, check) {
            Next::Decided(decision) => return Ok((decision, false)),
            Next::Ask(_, turn) => turn,
        };
        self.keep_tidy();
        let _turn = Turn { leases: &self.leases, at, _guard: turn.lock_owned().await };
        // Who was here before may have fetched enough for us too.
        let ask = match self.serve(at, plan, terms, check) {
            Next::Decided(decision) => return Ok((decision, false)),
            Next::Ask(ask, _) => ask,
        };
        let sent = self.clock.now();
        let Some(answer) = self.ask(at, plan, &ask).await? else {
            return self.decide_alone(at, plan, check).await;
        };
        let decision = match lock(&self.leases.keys).get_mut(at) {
            Some(entry) => entry.tokens.note(terms, sent, check, &answer),
            None => answer,
        };
        if self.leases.is_closed.load(Relaxed) {
            self.put_back(self.leases.rest(self, true)).await;
        }
        Ok((decision, false))
    }

    /// Decides from what is in hand, or says what to ask, and in whose turn.
    fn serve(self: &Arc<Self>, at: &Address, plan: &Plan, terms: Terms, check: &Check) -> Next {
        let now = self.clock.now();
        let mut keys = lock(&self.leases.keys);
        if let Some(entry) = keys.get_mut(at) {
            let stale = entry.tokens.expire(&plan.policy, now);
            let next = entry.next(terms, now, check);
            drop(keys);
            if let Some((policy, taken)) = stale {
                let (limiter, at) = (self.clone(), at.clone());
                tokio::spawn(async move { limiter.put_back(vec![(at, policy, taken)]).await });
            }
            return next;
        }
        let mut entry = Entry { tokens: Tokens::new(&plan.policy, now), turn: None };
        let next = entry.next(terms, now, check);
        keys.insert(at.clone(), entry);
        next
    }

    /// Puts back what is in hand, and takes no more: the process ends.
    pub async fn close(&self) {
        self.leases.is_closed.store(true, Relaxed);
        self.put_back(self.leases.rest(self, true)).await;
    }

    async fn put_back(&self, rest: Vec<Rest>) {
        join_all(rest.iter().map(|(at, policy, taken)| async move {
            if let Err(error) = self.store.put_back(at, policy, *taken).await {
                tracing::debug!(%at, %error, "tokens could not be put back; time gives them back");
            }
        }))
        .await;
    }

    /// Starts, once, what puts back the tokens of keys that nobody asks for any more.
    fn keep_tidy(self: &Arc<Self>) {
        if self.leases.is_tidied.swap(true, Relaxed) {
            return;
        }
        let weak: Weak<Limiter> = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TIDY_EVERY).await;
                let Some(limiter) = weak.upgrade() else { return };
                limiter.put_back(limiter.leases.rest(&limiter, false)).await;
            }
        });
    }
}
