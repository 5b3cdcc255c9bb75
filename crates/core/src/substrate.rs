//! Where state lives, what each substrate can promise, and the one kind × substrate matrix.

use serde::{Deserialize, Serialize};

use crate::Kind;

/// What stores the state of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Substrate {
    /// The memory of one process: development and tests.
    Memory,
    /// One Redis or Valkey primary.
    Redis,
    /// `coordination.k8s.io` Leases, that is the API server's etcd.
    Lease,
}

impl Substrate {
    /// Lower case, as in metric labels: `redis`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Substrate::Memory => "memory",
            Substrate::Redis => "redis",
            Substrate::Lease => "lease",
        }
    }
}

/// What a class really promises; shown in `status.guarantee` and in every grant.
///
/// None of these is "exactly one holder": a stale holder is kept out only by a resource that checks
/// fences. The guarantee says what it takes for two *grants* to overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guarantee {
    /// Grants are conditional writes to etcd. Overlap needs clocks that run more than 10 % apart.
    Consensus,
    /// As `BestEffort`, and this many replicas had acknowledged the grant before it was answered.
    PrimaryAck(u8),
    /// Grants live on one primary. A failover or lost data opens a new epoch; until it is noticed,
    /// an old hold and a new one may overlap.
    BestEffort,
    /// Grants live in one process and end with it.
    Process,
}

impl std::fmt::Display for Guarantee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Guarantee::Consensus => f.write_str("Consensus"),
            Guarantee::PrimaryAck(n) => write!(f, "PrimaryAck({n})"),
            Guarantee::BestEffort => f.write_str("BestEffort"),
            Guarantee::Process => f.write_str("Process"),
        }
    }
}

/// The kind × substrate matrix: the guarantee of a pair, or a sentence saying why there is none.
///
/// # Errors
/// A sentence for the user: what cannot be done and what to choose instead.
pub fn supports(kind: Kind, substrate: Substrate) -> Result<Guarantee, &'static str> {
    match (kind, substrate) {
        (Kind::Lock | Kind::LeaderElection, Substrate::Memory) => Ok(Guarantee::Process),
        (Kind::Lock | Kind::LeaderElection, Substrate::Redis) => Ok(Guarantee::BestEffort),
        (Kind::Lock | Kind::LeaderElection, Substrate::Lease) => Ok(Guarantee::Consensus),
        (Kind::Semaphore, Substrate::Memory) => Ok(Guarantee::Process),
        (Kind::Semaphore, Substrate::Redis) => Ok(Guarantee::BestEffort),
        (Kind::Semaphore, Substrate::Lease) => Ok(Guarantee::Consensus),
        (Kind::RateLimit, Substrate::Memory) => Ok(Guarantee::Process),
        (Kind::RateLimit, Substrate::Redis) => Ok(Guarantee::BestEffort),
        (Kind::RateLimit, Substrate::Lease) => Err(
            "a rate limit cannot live on Leases, each check would be a write to etcd: set backend to \
             the name of a Redis Backend",
        ),
    }
}
