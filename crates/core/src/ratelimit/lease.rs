//! The tokens of one key that a process has in hand. Pure: the store's answers and time come in.
//!
//! Invariants: a token is charged in the store before it is used, and used once; never more than a
//! batch is in hand; none is used after its staleness, nor in another window than it was charged in.

use std::{sync::Arc, time::Duration};

use super::{Check, Decision, MAX_LIMITS, Mode, Outcome, Policy, Rule, Taken, Verdict};
use crate::{Deadline, Stamp};

/// What a class allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The most in hand.
    pub batch: u64,
    /// For how long.
    pub staleness: Duration,
}

/// What to do with a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is decided.
    Decided(Decision),
    /// Ask the store this, one at a time, and report with [`Tokens::note`].
    Ask(Check),
}

/// This cost, and more, does not pass for a while.
#[derive(Clone, Copy, Debug)]
struct Denied {
    cost: u64,
    since: Stamp,
    /// For how long that is believed.
    lasts: Duration,
    /// After how long it could pass.
    retry: Duration,
}

/// What is in hand of one key.
#[derive(Clone, Debug)]
pub struct Tokens {
    policy: Arc<Policy>,
    left: u64,
    at_us: u64,
    deadline: Deadline,
    /// How much to ask for next: grows while all of it is used, shrinks when it is not.
    want: u64,
    seen: Decision,
    denied: Option<Denied>,
}

impl Tokens {
    /// Nothing in hand.
    pub fn new(policy: &Arc<Policy>, now: Stamp) -> Self {
        let verdicts = [Verdict::default(); MAX_LIMITS];
        let outcome = Outcome::Allowed { wait_us: 0 };
        Tokens {
            policy: policy.clone(),
            left: 0,
            at_us: 0,
            deadline: Deadline::new(now, Duration::ZERO),
            want: 1,
            seen: Decision { outcome, count: 0, verdicts, taken: Taken::default() },
            denied: None,
        }
    }

    /// How many are in hand.
    pub const fn in_hand(&self) -> u64 {
        self.left
    }

    /// Whether it may be forgotten.
    pub fn is_idle(&self, now: Stamp) -> bool {
        self.left == 0
            && self.deadline.passed(now)
            && self.denied.is_none_or(|denied| now.since(denied.since) >= denied.lasts)
    }

    /// Everything in hand, to be put back; nothing is in hand afterwards.
    pub fn give_up(&mut self) -> Option<(Arc<Policy>, Taken)> {
        let amount = std::mem::take(&mut self.left);
        (amount > 0).then(|| (self.policy.clone(), Taken { amount, at_us: self.at_us }))
    }

    /// Lets go of what may not be used any more.
    pub fn expire(&mut self, policy: &Arc<Policy>, now: Stamp) -> Option<(Arc<Policy>, Taken)> {
        if !Arc::ptr_eq(&self.policy, policy) && self.policy.token != policy.token {
            let left = self.give_up();
            *self = Tokens::new(policy, now);
            return left;
        }
        if self.left > 0 && self.deadline.passed(now) {
            self.want = (self.want / 2).max(1);
            return self.give_up();
        }
        None
    }

    /// As [`Tokens::expire`], where nobody asks.
    pub fn tidy(&mut self, now: Stamp) -> Option<(Arc<Policy>, Taken)> {
        let policy = self.policy.clone();
        self.expire(&policy, now)
    }

    /// Decides a check from what is in hand, or says what to ask.
    pub fn serve(&mut self, terms: Terms, now: Stamp, check: &Check) -> Step {
        let cost = check.cost;
        if cost <= self.left && !self.deadline.passed(now) {
            self.left -= cost;
            return Step::Decided(self.shown(now, Outcome::Allowed { wait_us: 0 }, 0));
        }
        let ask = Check { mode: Mode::Enforce, max_wait_us: 0, ..*check };
        if cost > self.policy.capacity() {
            return Step::Ask(Check { least: cost, ..ask });
        }
        if let Some(denied) = self.denied
            && cost >= denied.cost
            && now.since(denied.since) < denied.lasts
        {
            let left = denied.retry.saturating_sub(now.since(denied.since));
            let retry_us = (left.as_micros() as u64).max(1);
            return Step::Decided(self.shown(now, Outcome::Limited { retry_us }, retry_us));
        }
        let most = cost.max(self.want.min(terms.batch));
        let left = self.left;
        Step::Ask(Check { cost: most - left, least: cost - left, ..ask })
    }

    /// Takes down the store's answer to what [`Tokens::serve`] asked for a check; `sent` was read
    /// before. The decision of the check itself.
    pub fn note(
        &mut self,
        terms: Terms,
        sent: Stamp,
        check: &Check,
        answer: &Decision,
    ) -> Decision {
        self.seen = *answer;
        match answer.outcome {
            Outcome::TooLarge => {}
            Outcome::Limited { retry_us } => {
                let retry = Duration::from_micros(retry_us);
                let lasts = retry.min(terms.staleness);
                self.denied = Some(Denied { cost: check.cost, since: sent, lasts, retry });
            }
            Outcome::Allowed { .. } => {
                // What was in hand goes first: all that is left now was charged by this answer. Where
                // the least was asked, nothing is reported and nothing is left.
                self.left = (self.left + answer.taken.amount).saturating_sub(check.cost);
                (self.at_us, self.denied) = (answer.taken.at_us, None);
                let ends = self.policy.rules.iter().zip(answer.verdicts());
                let ends = ends.filter_map(|(rule, verdict)| match rule {
                    Rule::SlidingWindow { .. } | Rule::FixedWindow { .. } => {
                        Some(Duration::from_micros(verdict.reset_us))
                    }
                    Rule::TokenBucket { .. } | Rule::Concurrency { .. } => None,
                });
                let lasts = ends.fold(terms.staleness, Duration::min);
                self.deadline = Deadline::new(sent, lasts);
                self.want = (2 * self.want.max(check.cost)).min(terms.batch);
            }
        }
        let mut decision = *answer;
        decision.taken = Taken::default();
        let passed = matches!(answer.outcome, Outcome::Allowed { .. });
        for verdict in decision.verdicts.iter_mut().take(answer.count) {
            verdict.remaining += self.left;
            // Of the next one, where this one passed.
            verdict.wait_us = if passed { 0 } else { verdict.wait_us };
        }
        decision
    }

    /// What the store said last, and how old that is.
    fn shown(&self, now: Stamp, outcome: Outcome, wait_us: u64) -> Decision {
        let passed = now.since(self.deadline.since()).as_micros() as u64;
        let mut decision = Decision { outcome, taken: Taken::default(), ..self.seen };
        for verdict in decision.verdicts.iter_mut().take(self.seen.count) {
            verdict.remaining += self.left;
            verdict.reset_us = verdict.reset_us.saturating_sub(passed);
            verdict.wait_us = if verdict.wait_us > 0 { wait_us } else { 0 };
        }
        decision
    }
}

#[cfg(test)]
mod tests;
