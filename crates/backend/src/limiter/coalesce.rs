//! Checks of one key that come while the store is asked about it share the next call. No timer and
//! no window: a key that is asked about seldom is asked at once, a key that is asked about often in
//! as few calls as round trips fit.
//!
//! Invariants: a check is counted by a call that is sent after it came; of one key, one call at a
//! time is under way; a check that nobody waits for any more is not asked for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use foldhash::quality::RandomState;
use holdfast_core::{
    Address, BackendError, Substrate,
    ratelimit::{Check, Decision, Policy, coalesce},
};
use tokio::sync::oneshot;

use super::Limiter;
use crate::hub::lock;

type Answer = Result<Decision, BackendError>;

/// The keys that a call is under way for, and who waits for the next one.
#[derive(Default)]
pub(super) struct Lines {
    keys: Mutex<HashMap<Address, Vec<Waiting>, RandomState>>,
}

struct Waiting {
    policy: Arc<Policy>,
    answer: oneshot::Sender<Answer>,
}

/// A call of a key that is under way. When it ends, in whatever way, the next one begins.
struct Turn<'a> {
    limiter: &'a Arc<Limiter>,
    at: &'a Address,
}

impl Limiter {
    /// Asks the store, with others if others ask the same.
    pub(super) async fn ask_store(
        self: &Arc<Self>,
        at: &Address,
        policy: &Arc<Policy>,
        check: &Check,
    ) -> Answer {
        // Memory answers before anybody else can come.
        if self.store.substrate() == Substrate::Memory || !coalesce::may_share(policy, check) {
            return self.store.check(at, policy, check).await;
        }
        match self.lines.join(at, policy) {
            Some(answer) => answer
                .await
                .unwrap_or_else(|_| Err(BackendError::Unavailable("the process ends".into()))),
            None => {
                let _turn = Turn { limiter: self, at };
                self.store.check(at, policy, check).await
            }
        }
    }

    /// Asks for those who wait, until nobody does.
    async fn ask_for_line(self: Arc<Self>, at: Address) {
        while let Some(batch) = self.lines.next(&at) {
            let Some(Waiting { policy, .. }) = batch.first() else { continue };
            let many = batch.len() as u64;
            let answer = self.store.check(&at, policy, &coalesce::ask(many)).await;
            for (nth, waiting) in batch.into_iter().enumerate() {
                let told = answer.clone();
                let told = told.map(|answer| coalesce::told(&answer, many, nth as u64));
                // Who is gone meanwhile was counted, as one who goes while its own call is under way.
                drop(waiting.answer.send(told));
            }
        }
    }
}

impl Lines {
    /// A place among those who wait; `None` when no call is under way: the caller makes one.
    fn join(&self, at: &Address, policy: &Arc<Policy>) -> Option<oneshot::Receiver<Answer>> {
        let mut keys = lock(&self.keys);
        let Some(line) = keys.get_mut(at) else {
            keys.insert(at.clone(), Vec::new());
            return None;
        };
        let (answer, told) = oneshot::channel();
        line.push(Waiting { policy: policy.clone(), answer });
        Some(told)
    }

    /// Those whom the next call is for: the first ones of one policy. `None`, and no call is under way
    /// any more, when nobody waits.
    fn next(&self, at: &Address) -> Option<Vec<Waiting>> {
        let mut keys = lock(&self.keys);
        let line = keys.get_mut(at)?;
        line.retain(|waiting| !waiting.answer.is_closed());
        let Some(first) = line.first() else {
            keys.remove(at);
            return None;
        };
        let token = &first.policy.token;
        let same = line.iter().take_while(|waiting| waiting.policy.token == *token).count();
        let rest = line.split_off(same);
        Some(std::mem::replace(line, rest))
    }

    /// Ends a call; whether others wait.
    fn is_waited(&self, at: &Address) -> bool {
        let mut keys = lock(&self.keys);
        let waited = keys.get(at).is_some_and(|line| !line.is_empty());
        if !waited {
            keys.remove(at);
        }
        waited
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.limiter.lines.is_waited(self.at) {
            return;
        }
        // The one who asked may be gone, and those who wait for it are not: a task of its own.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                drop(runtime.spawn(self.limiter.clone().ask_for_line(self.at.clone())));
            }
            Err(_) => drop(lock(&self.limiter.lines.keys).remove(self.at)),
        }
    }
}
