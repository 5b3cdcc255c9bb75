//! The list of primitives. Every other list of kinds in the project is a match on this one.

use serde::{Deserialize, Serialize};

/// A primitive. Matched without `_` everywhere, so that adding one makes the compiler name every
/// place that still lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Mutual exclusion with fencing tokens.
    Lock,
    /// One leader at a time, with a term that only grows.
    LeaderElection,
    /// How much may be done in how long.
    RateLimit,
    /// So many permits at the same time.
    Semaphore,
}

impl Kind {
    /// Every kind there is.
    pub const ALL: &'static [Kind] =
        &[Kind::Lock, Kind::LeaderElection, Kind::RateLimit, Kind::Semaphore];

    /// The Kubernetes kind, such as `Lock`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Lock => "Lock",
            Kind::LeaderElection => "LeaderElection",
            Kind::RateLimit => "RateLimit",
            Kind::Semaphore => "Semaphore",
        }
    }

    /// Lower case, as in keys, labels and command lines: `lock`.
    pub const fn singular(self) -> &'static str {
        match self {
            Kind::Lock => "lock",
            Kind::LeaderElection => "leaderelection",
            Kind::RateLimit => "ratelimit",
            Kind::Semaphore => "semaphore",
        }
    }

    /// The resource: `locks`.
    pub const fn plural(self) -> &'static str {
        match self {
            Kind::Lock => "locks",
            Kind::LeaderElection => "leaderelections",
            Kind::RateLimit => "ratelimits",
            Kind::Semaphore => "semaphores",
        }
    }

    /// Whether it grants holds, and so fences.
    pub const fn has_holds(self) -> bool {
        match self {
            Kind::Lock | Kind::LeaderElection | Kind::Semaphore => true,
            Kind::RateLimit => false,
        }
    }

    /// The segment in the sidecar's routes: `/v1/locks`, `/v1/elections`.
    pub const fn route(self) -> &'static str {
        match self {
            Kind::Lock => "locks",
            Kind::LeaderElection => "elections",
            Kind::RateLimit => "ratelimits",
            Kind::Semaphore => "semaphores",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
