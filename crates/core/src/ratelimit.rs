//! RateLimit: how much may be done in how long. Configuration, requests, decisions, and the trait
//! that every substrate implements. The rules are in [`state`], one file per algorithm.
//!
//! Time is the store's, in whole microseconds, and never runs backwards for one key. All numbers stay
//! below 2^53, so that Lua's doubles hold them exactly.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Address, BackendError, Guarantee, Substrate};

pub mod accuracy;
pub mod coalesce;
pub mod concurrency;
pub mod fixed_window;
pub mod lease;
pub mod outage;
pub mod share;
pub mod sliding_window;
pub mod state;
pub mod token_bucket;

pub use accuracy::{Accuracy, OverAdmission};

/// The most limits that one class has.
pub const MAX_LIMITS: usize = 8;
/// The longest window: 31 days.
pub const MAX_WINDOW_SECONDS: u32 = 31 * 86_400;
/// The greatest limit.
pub const MAX_LIMIT: u64 = 100_000_000;
/// The most permits that a Concurrency limit has: each one is kept by name.
pub const MAX_PERMITS: u64 = 1_000;
/// A burst is at most so many times the limit.
pub const MAX_BURST_FACTOR: u64 = 100;
/// Permits are named by random numbers below this.
pub const PERMIT_NAMES: u64 = 1 << 52;

/// How a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// Up to `burst` at once, refilled evenly: the generic cell rate algorithm.
    TokenBucket,
    /// A window that slides, estimated from two aligned ones.
    SlidingWindow,
    /// Windows aligned to the epoch. Twice the limit may pass around an edge.
    FixedWindow,
    /// So many at the same time; each permit is released, or ends after the window.
    Concurrency,
}

/// One limit of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// Its name, for people and headers.
    pub name: String,
    /// How it counts.
    pub algorithm: Algorithm,
    /// How much per window.
    pub limit: u64,
    /// The window.
    pub window_seconds: u32,
    /// How much at once; only a token bucket's differs from the limit.
    pub burst: u64,
}

/// What a sidecar does when the store does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnBackendFailure {
    /// Lets everything pass.
    Open,
    /// Answers 503.
    #[default]
    Closed,
    /// Enforces a share of each limit by itself: see [`share`].
    Local {
        /// How much of each limit, 1 to 100.
        share_percent: u32,
    },
}

/// A validated RateLimit class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitConfig {
    /// The class's `metadata.generation`: of two configurations a store keeps the newer.
    pub generation: i64,
    /// The limits, 1 to [`MAX_LIMITS`].
    pub limits: Vec<Limit>,
    /// What happens when the store does not answer.
    pub on_backend_failure: OnBackendFailure,
    /// Whether the limits are only counted and shown, never enforced.
    pub shadow: bool,
    /// Whether each check asks the store.
    #[serde(default)]
    pub accuracy: Accuracy,
}

impl RateLimitConfig {
    /// What each transition carries.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::new(Policy::new(self.generation, self.limits.iter().map(Rule::new).collect()))
    }
}

/// A limit in the numbers that a transition works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A charge of one adds `unit` to a level that falls by `drain` every microsecond and may stand
    /// at `burst * unit`: GCRA's arrival time, times the rate, so that nothing is rounded.
    TokenBucket {
        /// What one costs.
        unit: u64,
        /// What a microsecond gives back.
        drain: u64,
        /// How much at once.
        burst: u64,
    },
    /// Estimated over the last `window_us`.
    SlidingWindow {
        /// How much per window.
        limit: u64,
        /// The window.
        window_us: u64,
    },
    /// Counted from each multiple of `window_us`.
    FixedWindow {
        /// How much per window.
        limit: u64,
        /// The window.
        window_us: u64,
    },
    /// Held at the same time.
    Concurrency {
        /// How much at the same time.
        limit: u64,
        /// How long a permit lasts that is not released.
        ttl_us: u64,
    },
}

impl Rule {
    /// The numbers of a limit.
    pub fn new(limit: &Limit) -> Self {
        let window_us = u64::from(limit.window_seconds) * 1_000_000;
        match limit.algorithm {
            Algorithm::TokenBucket => token_bucket::rule(limit.limit, window_us, limit.burst),
            Algorithm::SlidingWindow => Rule::SlidingWindow { limit: limit.limit, window_us },
            Algorithm::FixedWindow => Rule::FixedWindow { limit: limit.limit, window_us },
            Algorithm::Concurrency => Rule::Concurrency { limit: limit.limit, ttl_us: window_us },
        }
    }

    /// The most that one request may cost; more can never fit.
    pub const fn capacity(&self) -> u64 {
        match *self {
            Rule::TokenBucket { burst, .. } => burst,
            Rule::SlidingWindow { limit, .. }
            | Rule::FixedWindow { limit, .. }
            | Rule::Concurrency { limit, .. } => limit,
        }
    }
}

/// All rules of a class, and how a store writes them down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The class's `metadata.generation`.
    pub generation: i64,
    /// The rules, in the order of the limits.
    pub rules: Vec<Rule>,
    /// `<generation>` and `;<letter>,<number>,…` for each rule.
    pub token: String,
}

impl Policy {
    /// A policy of these rules.
    pub fn new(generation: i64, rules: Vec<Rule>) -> Self {
        use std::fmt::Write;
        let mut token = generation.to_string();
        for rule in &rules {
            // Writing to a string cannot fail.
            let _ = match *rule {
                Rule::TokenBucket { unit, drain, burst } => {
                    write!(token, ";t,{unit},{drain},{burst}")
                }
                Rule::SlidingWindow { limit, window_us } => {
                    write!(token, ";s,{limit},{window_us},0")
                }
                Rule::FixedWindow { limit, window_us } => write!(token, ";f,{limit},{window_us},0"),
                Rule::Concurrency { limit, ttl_us } => write!(token, ";c,{limit},{ttl_us},0"),
            };
        }
        Policy { generation, rules, token }
    }

    /// The most that one request may cost.
    pub fn capacity(&self) -> u64 {
        self.rules.iter().map(Rule::capacity).min().unwrap_or(0)
    }
}

/// What a check does with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Charges when all limits allow it.
    Enforce,
    /// Changes nothing.
    Peek,
}

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// How much, at least 1.
    pub cost: u64,
    /// Whether to charge.
    pub mode: Mode,
    /// Takes a slot at most so far in the future; the caller waits for it. Token buckets only: the
    /// other algorithms have no slots to give.
    pub max_wait_us: u64,
    /// What to call the permits of Concurrency limits, below [`PERMIT_NAMES`].
    pub permit: u64,
    /// Charges less when there is less, but at least so much: [`cost`](Self::cost) for all or nothing.
    /// What is taken so is reported as [`Decision::taken`].
    pub least: u64,
}

/// What a check took that was content with less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// How much was charged.
    pub amount: u64,
    /// When, in the store's time: a later refund is measured from it.
    pub at_us: u64,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All limits allow it.
    Allowed {
        /// The slot is so far in the future; zero unless the caller was ready to wait.
        wait_us: u64,
    },
    /// At least one limit does not, and nothing was charged.
    Limited {
        /// After so long the same check could pass, if nobody else came.
        retry_us: u64,
    },
    /// It costs more than a limit ever has.
    TooLarge,
}

/// How one limit stands after a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What is left.
    pub remaining: u64,
    /// When all of it is back, or the window ends.
    pub reset_us: u64,
    /// After how long this limit alone would allow the check; zero when it does. Of a check that was
    /// content with less and charged: when it would allow [`Check::least`] once more.
    pub wait_us: u64,
}

/// A decision, with no allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What came of it.
    pub outcome: Outcome,
    /// How many limits there are.
    pub count: usize,
    /// How each one stands; the first `count` of them.
    pub verdicts: [Verdict; MAX_LIMITS],
    /// What was charged, where the check was content with less than its cost.
    pub taken: Taken,
}

impl Decision {
    /// How each limit stands.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts[..self.count.min(MAX_LIMITS)]
    }
}

/// What keeps the counts of rate limits.
///
/// # Guarantees
/// - Each call is one atomic transition of [`state::RateState`], or has no effect: a check charges
///   all limits or none.
/// - In store time, any window of length `w` admits at most `burst + rate * w` of a token bucket.
/// - The newest [`Policy::generation`] that a key has seen is the one that is applied. What was spent
///   before a change stays spent.
///
/// # Caveats
/// A store that loses its data forgets what was spent: at most one burst or window more is admitted.
///
/// # Errors
/// [`BackendError`]; every call is bounded in time by the backend. After `Unknown`, a check may have
/// been charged.
#[async_trait]
pub trait RateLimitBackend: Send + Sync + 'static {
    /// Which substrate this is.
    fn substrate(&self) -> Substrate;
    /// What its counts promise.
    fn guarantee(&self) -> Guarantee;
    /// Decides, and charges all limits or none.
    async fn check(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        check: &Check,
    ) -> Result<Decision, BackendError>;
    /// Gives back what a check charged. Permits are given back by [`release`](Self::release).
    async fn refund(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        cost: u64,
    ) -> Result<(), BackendError>;
    /// Gives back what was [`Taken`] and not used, as far as it still counts: what time has given
    /// back already is not given back again.
    async fn put_back(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        taken: Taken,
    ) -> Result<(), BackendError>;
    /// Gives back a permit; whether it was still held.
    async fn release(
        &self,
        at: &Address,
        policy: &Arc<Policy>,
        permit: u64,
    ) -> Result<bool, BackendError>;
    /// Forgets a key.
    async fn reset(&self, at: &Address) -> Result<(), BackendError>;
}
