//! The state of one key, and its transitions. Memory runs this as it is; `lua/ratelimit.lua` is a
//! transcription of it, and a differential test holds the two together.
//!
//! Invariants: `last_us` never falls; a check that is refused lets time pass and takes a newer policy, no more; a state that [`RateState::is_idle`] says nothing that an empty one does not.

use std::sync::Arc;

use super::{
    Check, Decision, MAX_LIMITS, Mode, Outcome, Policy, Rule, Taken, Verdict,
    concurrency::{self, Permit},
    fixed_window, sliding_window, token_bucket,
};

/// What one limit has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Slot {
    Bucket { level: u64 },
    Sliding { start: u64, previous: u64, current: u64 },
    Fixed { start: u64, count: u64 },
    Permits(Vec<Permit>),
}

/// Most classes have one limit: it needs no allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Slots {
    One(Slot),
    Many(Box<[Slot]>),
}

impl Slots {
    fn as_mut(&mut self) -> &mut [Slot] {
        match self {
            Slots::One(slot) => std::slice::from_mut(slot),
            Slots::Many(slots) => slots,
        }
    }
}

/// What is known of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateState {
    policy: Arc<Policy>,
    last_us: u64,
    slots: Slots,
}

impl Slot {
    /// A slot at a time, with so much already spent.
    fn new(rule: &Rule, now_us: u64, spent: u64) -> Self {
        let spent = spent.min(rule.capacity());
        match *rule {
            Rule::TokenBucket { unit, .. } => Slot::Bucket { level: spent * unit },
            Rule::SlidingWindow { window_us, .. } => Slot::Sliding {
                start: fixed_window::start_of(now_us, window_us),
                previous: 0,
                current: spent,
            },
            Rule::FixedWindow { window_us, .. } => {
                Slot::Fixed { start: fixed_window::start_of(now_us, window_us), count: spent }
            }
            // Permits have names: nobody could release what is carried over.
            Rule::Concurrency { .. } => Slot::Permits(Vec::new()),
        }
    }

    /// Lets time pass.
    fn roll(&mut self, rule: &Rule, last_us: u64, now_us: u64) {
        match (self, rule) {
            (Slot::Bucket { level }, Rule::TokenBucket { drain, .. }) => {
                *level = token_bucket::drained(*level, *drain, now_us - last_us);
            }
            (Slot::Sliding { start, previous, current }, Rule::SlidingWindow { window_us, .. }) => {
                let begun = fixed_window::start_of(now_us, *window_us);
                if begun > *start {
                    *previous = if begun == *start + window_us { *current } else { 0 };
                    (*start, *current) = (begun, 0);
                }
            }
            (Slot::Fixed { start, count }, Rule::FixedWindow { window_us, .. }) => {
                let begun = fixed_window::start_of(now_us, *window_us);
                if begun > *start {
                    (*start, *count) = (begun, 0);
                }
            }
            (Slot::Permits(held), Rule::Concurrency { .. }) => {
                held.retain(|permit| permit.expires_us > now_us);
            }
            // A slot is made from its rule, and remade when that changes.
            (
                Slot::Bucket { .. } | Slot::Sliding { .. } | Slot::Fixed { .. } | Slot::Permits(_),
                _,
            ) => {}
        }
    }

    fn judge(&self, rule: &Rule, now_us: u64, cost: u64) -> Verdict {
        match (self, *rule) {
            (Slot::Bucket { level }, Rule::TokenBucket { unit, drain, burst }) => {
                token_bucket::judge(*level, unit, drain, burst, cost)
            }
            (
                Slot::Sliding { start, previous, current },
                Rule::SlidingWindow { limit, window_us },
            ) => {
                let left = (start + window_us).saturating_sub(now_us).min(window_us);
                sliding_window::judge(left, *previous, *current, limit, window_us, cost)
            }
            (Slot::Fixed { start, count }, Rule::FixedWindow { limit, window_us }) => {
                fixed_window::judge(now_us, *start, *count, limit, window_us, cost)
            }
            (Slot::Permits(held), Rule::Concurrency { limit, .. }) => {
                concurrency::judge(now_us, held, limit, cost)
            }
            (
                Slot::Bucket { .. } | Slot::Sliding { .. } | Slot::Fixed { .. } | Slot::Permits(_),
                _,
            ) => Verdict::default(),
        }
    }

    fn charge(&mut self, rule: &Rule, now_us: u64, cost: u64, permit: u64) {
        match self {
            Slot::Bucket { level } => {
                if let Rule::TokenBucket { unit, .. } = rule {
                    *level += cost * unit;
                }
            }
            Slot::Sliding { current: count, .. } | Slot::Fixed { count, .. } => *count += cost,
            Slot::Permits(held) => {
                if let Rule::Concurrency { ttl_us, .. } = rule {
                    let expires_us = now_us + ttl_us;
                    held.push(Permit { name: permit, cost, expires_us });
                }
            }
        }
    }

    fn refund(&mut self, rule: &Rule, cost: u64) {
        match self {
            Slot::Bucket { level } => {
                if let Rule::TokenBucket { unit, .. } = rule {
                    *level = level.saturating_sub(cost.saturating_mul(*unit));
                }
            }
            Slot::Sliding { current: count, .. } | Slot::Fixed { count, .. } => {
                *count = count.saturating_sub(cost);
            }
            Slot::Permits(_) => {}
        }
    }

    /// Gives back what was charged at a time and never used. A bucket that was charged stands higher
    /// than it would have by what was charged, less what has drained since, at the least; a window
    /// that has ended has forgotten it.
    fn put_back(&mut self, rule: &Rule, now_us: u64, taken: Taken) {
        match (self, *rule) {
            (Slot::Bucket { level }, Rule::TokenBucket { unit, drain, .. }) => {
                let charged = taken.amount.saturating_mul(unit);
                let gone = now_us.saturating_sub(taken.at_us).saturating_mul(drain);
                *level = level.saturating_sub(charged.saturating_sub(gone));
            }
            (Slot::Sliding { start, current: count, .. }, _)
            | (Slot::Fixed { start, count }, _) => {
                if *start <= taken.at_us {
                    *count = count.saturating_sub(taken.amount);
                }
            }
            (Slot::Bucket { .. } | Slot::Permits(_), _) => {}
        }
    }

    /// What was spent and is not back yet.
    fn spent(&self, rule: &Rule, now_us: u64) -> u64 {
        match (self, *rule) {
            (Slot::Bucket { level }, Rule::TokenBucket { unit, .. }) => level.div_ceil(unit),
            (Slot::Fixed { count, .. }, _) => *count,
            (Slot::Sliding { start, previous, current }, Rule::SlidingWindow { window_us, .. }) => {
                let left = (start + window_us).saturating_sub(now_us).min(window_us);
                sliding_window::carried(*previous, left, window_us) + current
            }
            (Slot::Bucket { .. } | Slot::Sliding { .. } | Slot::Permits(_), _) => 0,
        }
    }

    /// When it says nothing any more, from now.
    fn ends_us(&self, rule: &Rule, now_us: u64) -> u64 {
        match (self, *rule) {
            (Slot::Bucket { level }, Rule::TokenBucket { drain, .. }) => level.div_ceil(drain),
            (Slot::Fixed { start, .. }, Rule::FixedWindow { window_us, .. }) => {
                (start + window_us).saturating_sub(now_us)
            }
            (Slot::Sliding { start, .. }, Rule::SlidingWindow { window_us, .. }) => {
                (start + 2 * window_us).saturating_sub(now_us)
            }
            (Slot::Permits(held), _) => {
                held.last().map_or(0, |permit| permit.expires_us.saturating_sub(now_us))
            }
            (Slot::Bucket { .. } | Slot::Sliding { .. } | Slot::Fixed { .. }, _) => 0,
        }
    }
}

fn mk_slots(rules: &[Rule], mut slot: impl FnMut(usize, &Rule) -> Slot) -> Slots {
    match rules {
        [rule] => Slots::One(slot(0, rule)),
        rules => Slots::Many(rules.iter().enumerate().map(|(i, rule)| slot(i, rule)).collect()),
    }
}

impl RateState {
    /// A key that nothing is known of.
    pub fn new(policy: &Arc<Policy>, now_us: u64) -> Self {
        let slots = mk_slots(&policy.rules, |_, rule| Slot::new(rule, now_us, 0));
        RateState { policy: policy.clone(), last_us: now_us, slots }
    }

    /// What every transition starts with: time goes on, never back, and the newest class wins.
    fn begin(&mut self, policy: &Arc<Policy>, now_us: u64) -> u64 {
        let now_us = now_us.max(self.last_us);
        for (slot, rule) in self.slots.as_mut().iter_mut().zip(&self.policy.rules) {
            slot.roll(rule, self.last_us, now_us);
        }
        self.last_us = now_us;
        let same = Arc::ptr_eq(&self.policy, policy) || self.policy.token == policy.token;
        if !same && policy.generation >= self.policy.generation {
            let (old, rules) = (&self.policy, &policy.rules);
            let before = self.slots.as_mut();
            let slots = mk_slots(rules, |i, rule| match (before.get_mut(i), old.rules.get(i)) {
                (Some(slot), Some(was)) if was == rule => slot.clone(),
                // What runs on keeps its names and its expiry.
                (Some(Slot::Permits(held)), _) if matches!(rule, Rule::Concurrency { .. }) => {
                    Slot::Permits(std::mem::take(held))
                }
                (Some(slot), Some(was)) => Slot::new(rule, now_us, slot.spent(was, now_us)),
                _ => Slot::new(rule, now_us, 0),
            });
            self.slots = slots;
            self.policy = policy.clone();
        }
        now_us
    }

    /// Decides, and charges all limits or none.
    pub fn check(&mut self, policy: &Arc<Policy>, now_us: u64, check: &Check) -> Decision {
        let now_us = self.begin(policy, now_us);
        let policy = &self.policy;
        let slots = self.slots.as_mut();
        let mut cost = check.cost;
        if check.least < cost {
            let left = slots
                .iter()
                .zip(&policy.rules)
                .map(|(slot, rule)| slot.judge(rule, now_us, 0).remaining);
            cost = left.min().unwrap_or(0).clamp(check.least, cost);
        }
        let mut verdicts = [Verdict::default(); MAX_LIMITS];
        let (mut too_large, mut refused, mut wait_us) = (false, false, 0);
        let rules = policy.rules.iter().take(MAX_LIMITS);
        for ((slot, rule), verdict) in slots.iter().zip(rules).zip(&mut verdicts) {
            if cost > rule.capacity() {
                too_large = true;
                *verdict = slot.judge(rule, now_us, 0);
                continue;
            }
            *verdict = slot.judge(rule, now_us, cost);
            let has_slots = matches!(rule, Rule::TokenBucket { .. });
            let may_wait = if has_slots { check.max_wait_us } else { 0 };
            refused |= verdict.wait_us > may_wait;
            wait_us = wait_us.max(verdict.wait_us);
        }
        let outcome = match (too_large, refused) {
            (true, _) => Outcome::TooLarge,
            (false, true) => Outcome::Limited { retry_us: wait_us },
            (false, false) => Outcome::Allowed { wait_us },
        };
        let mut taken = Taken::default();
        if matches!(outcome, Outcome::Allowed { .. }) && check.mode == Mode::Enforce {
            if check.least < check.cost {
                taken = Taken { amount: cost, at_us: now_us };
            }
            for ((slot, rule), verdict) in slots.iter_mut().zip(&policy.rules).zip(&mut verdicts) {
                slot.charge(rule, now_us, cost, check.permit);
                // Who is content with less wants to know when there is more.
                let more = if check.least < check.cost { check.least } else { 0 };
                let after = slot.judge(rule, now_us, more);
                let wait_us = if more > 0 { after.wait_us } else { verdict.wait_us };
                *verdict = Verdict { wait_us, ..after };
            }
        }
        Decision { outcome, count: slots.len(), verdicts, taken }
    }

    /// What a check would say. Changes nothing.
    pub fn peek(&self, policy: &Arc<Policy>, now_us: u64, cost: u64) -> Decision {
        let check = Check { cost, mode: Mode::Peek, max_wait_us: 0, permit: 0, least: cost };
        self.clone().check(policy, now_us, &check)
    }

    /// Gives back what a check charged.
    pub fn refund(&mut self, policy: &Arc<Policy>, now_us: u64, cost: u64) {
        self.begin(policy, now_us);
        for (slot, rule) in self.slots.as_mut().iter_mut().zip(&self.policy.rules) {
            slot.refund(rule, cost);
        }
    }

    /// Gives back what was taken and not used, as far as it still counts. Nothing, when the class has
    /// changed since: what was spent has been converted then.
    pub fn put_back(&mut self, policy: &Arc<Policy>, now_us: u64, taken: Taken) {
        let same = self.policy.token == policy.token;
        let now_us = self.begin(policy, now_us);
        if same {
            for (slot, rule) in self.slots.as_mut().iter_mut().zip(&self.policy.rules) {
                slot.put_back(rule, now_us, taken);
            }
        }
    }

    /// Gives back a permit; whether it was held.
    pub fn release(&mut self, policy: &Arc<Policy>, now_us: u64, permit: u64) -> bool {
        self.begin(policy, now_us);
        let mut found = false;
        for slot in self.slots.as_mut() {
            if let Slot::Permits(held) = slot {
                let before = held.len();
                held.retain(|one| one.name != permit);
                found |= held.len() < before;
            }
        }
        found
    }

    /// After how long from `now_us` it says nothing that an empty state does not.
    pub fn ends_us(&mut self) -> u64 {
        let now_us = self.last_us;
        let rules = &self.policy.rules;
        let slots = self.slots.as_mut().iter().zip(rules);
        slots.map(|(slot, rule)| slot.ends_us(rule, now_us)).max().unwrap_or(0)
    }

    /// Whether it says nothing any more: it may be forgotten.
    pub fn is_idle(&mut self, now_us: u64) -> bool {
        now_us.saturating_sub(self.last_us) >= self.ends_us() && now_us > self.last_us
    }
}

#[cfg(test)]
mod tests;
