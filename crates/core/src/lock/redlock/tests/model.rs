//! Random histories of several servers and several clients, with messages that are lost, late and out
//! of order, server clocks that jump, and holders that do not know that they have lost.
//!
//! What must be true of the answered grants, whatever the clocks do: no fence twice, and a request
//! that began after another was answered has the higher fence. The controls leave out one rule each,
//! and are found out.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::super::*;
use crate::{
    HoldId, Holder, SessionId,
    lock::{
        Fairness, Policy,
        state::{Acquired, LockState},
    },
    queue::Ticket,
};

/// What may be left out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rules {
    All,
    /// The highest vote is the fence, and no server is told.
    NoRaise,
    /// A server that has lost its memory votes at once.
    NoAbsence,
}

const POLICY: Policy = Policy {
    generation: 1,
    min_hold_ms: 0,
    lock_delay_ms: 0,
    max_waiters: 0,
    beat_ms: 100,
    fairness: Fairness::None,
    fence_floor: 0,
};
const TTL_MS: u64 = 100;

struct Server {
    state: LockState,
    clock_ms: u64,
    /// It has lost its memory, and is refused by its epoch.
    absent: bool,
}

#[derive(Clone, Debug)]
enum Ask {
    Acquire,
    Raise(u64),
    Undo,
}

struct Message {
    client: usize,
    round: usize,
    server: usize,
    ask: Ask,
}

struct Client {
    round: usize,
    began: usize,
    ballot: Ballot,
    fence: Option<Fence>,
}

#[derive(Debug)]
struct Answered {
    fence: u64,
    began: usize,
    at: usize,
}

fn hold(client: usize, round: usize) -> HoldId {
    HoldId::new(format!("h{client}-{round}")).unwrap()
}

struct World {
    rng: StdRng,
    rules: Rules,
    servers: Vec<Server>,
    clients: Vec<Client>,
    messages: Vec<Message>,
    answered: Vec<Answered>,
    step: usize,
}

impl World {
    fn new(servers: usize, clients: usize, rules: Rules, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // Clocks that are far apart.
        let server = |rng: &mut StdRng| Server {
            state: LockState::new(POLICY),
            clock_ms: rng.random_range(0..500),
            absent: false,
        };
        let all = (0..servers).map(|_| server(&mut rng)).collect();
        let client = |_| Client { round: 0, began: 0, ballot: Ballot::new(servers), fence: None };
        let clients = (0..clients).map(client).collect();
        World { rng, rules, servers: all, clients, messages: vec![], answered: vec![], step: 0 }
    }

    fn send(&mut self, client: usize, server: usize, ask: Ask) {
        let round = self.clients[client].round;
        self.messages.push(Message { client, round, server, ask });
    }

    fn begin(&mut self, client: usize) {
        let servers = self.servers.len();
        let Client { round, began, ballot, fence } = &mut self.clients[client];
        *round += 1;
        (*began, *ballot, *fence) = (self.step, Ballot::new(servers), None);
        for server in 0..servers {
            self.send(client, server, Ask::Acquire);
        }
    }

    /// A server carries out a message; its answer arrives, if the client still waits for it.
    fn deliver(&mut self, at: usize) {
        let Message { client, round, server, ask } = self.messages.swap_remove(at);
        let to = &mut self.servers[server];
        if to.absent {
            return;
        }
        let (now, hold) = (to.clock_ms, hold(client, round));
        let is_lost = self.rng.random_bool(0.1);
        let of = &mut self.clients[client];
        let hears = of.round == round && !is_lost;
        match ask {
            Ask::Acquire => {
                let want = Ticket {
                    hold,
                    session: SessionId::new(format!("s{client}")).unwrap(),
                    holder: Holder::new("pod").unwrap(),
                    ttl_ms: TTL_MS,
                    max_hold_ms: 0,
                    permits: 1,
                };
                let vote = match to.state.acquire(now, now, POLICY, want, false).0 {
                    Acquired::Granted { seq, ttl_ms } => Vote::Granted {
                        fence: Fence::new(seq),
                        ttl: Duration::from_millis(ttl_ms),
                        is_new: true,
                    },
                    _ => Vote::Locked { retry_after: Duration::from_millis(1) },
                };
                if hears {
                    of.ballot.note(server, Ok(vote));
                }
            }
            Ask::Raise(seq) => {
                let (raised, _) = to.state.raise(now, now, POLICY, Some(&hold), seq);
                if raised && hears {
                    of.ballot.note_raised(server);
                }
            }
            Ask::Undo => {
                to.state.release(now, now, POLICY, &hold);
            }
        }
    }

    /// A client looks at its votes: asks for more, is granted, or gives up.
    fn look(&mut self, client: usize) {
        let of = &self.clients[client];
        if of.ballot.is_lost() || (of.round > 0 && self.rng.random_bool(0.02)) {
            for server in 0..self.servers.len() {
                self.send(client, server, Ask::Undo);
            }
            return self.begin(client);
        }
        if !of.ballot.is_granted() {
            return;
        }
        if of.fence.is_none() {
            let fence = of.ballot.fence().unwrap();
            for server in of.ballot.to_raise(fence) {
                match self.rules {
                    Rules::NoRaise => self.clients[client].ballot.note_raised(server),
                    _ => self.send(client, server, Ask::Raise(fence.get())),
                }
            }
            self.clients[client].fence = Some(fence);
        }
        let of = &self.clients[client];
        let fence = of.fence.unwrap();
        if of.ballot.grant(fence).is_some() {
            self.answered.push(Answered { fence: fence.get(), began: of.began, at: self.step });
            // Half of the holders release; the others are never heard of again.
            if self.rng.random_bool(0.5) {
                for server in 0..self.servers.len() {
                    self.send(client, server, Ask::Undo);
                }
            }
            self.begin(client);
        }
    }

    fn step(&mut self) {
        self.step += 1;
        let client = self.rng.random_range(0..self.clients.len());
        let server = self.rng.random_range(0..self.servers.len());
        match self.rng.random_range(0..100) {
            0..70 if !self.messages.is_empty() => {
                let at = self.rng.random_range(0..self.messages.len());
                self.deliver(at);
            }
            0..75 if !self.messages.is_empty() => {
                let at = self.rng.random_range(0..self.messages.len());
                self.messages.swap_remove(at);
            }
            75..90 => {
                let passed = self.rng.random_range(0..2 * TTL_MS);
                self.servers[server].clock_ms += passed;
            }
            90..92 => {
                let back = self.rng.random_range(0..10 * TTL_MS);
                let to = &mut self.servers[server];
                to.clock_ms = to.clock_ms.saturating_sub(back);
            }
            92 if self.step > 200 => {
                // A minority loses its memory, and its clock is behind besides.
                let absent = self.servers.iter().filter(|server| server.absent).count();
                if absent + 1 < majority(self.servers.len()) {
                    let absent = self.rules != Rules::NoAbsence;
                    let state = LockState::new(POLICY);
                    self.servers[server] = Server { state, clock_ms: 0, absent };
                }
            }
            _ => self.look(client),
        }
    }

    fn check(&self) -> Result<(), String> {
        for (n, one) in self.answered.iter().enumerate() {
            for other in &self.answered[n + 1..] {
                // Answered in this order.
                if one.fence == other.fence {
                    return Err(format!("one fence twice: {one:?} and {other:?}"));
                }
                if one.at < other.began && one.fence > other.fence {
                    return Err(format!("not in order: {one:?} and {other:?}"));
                }
            }
        }
        Ok(())
    }
}

/// Runs histories; how many grants were answered, or what was wrong first.
fn run(servers: usize, rules: Rules, histories: u64) -> Result<usize, String> {
    let first: u64 = rand::random();
    let mut grants = 0;
    for n in 0..histories {
        let seed = first.wrapping_add(n);
        let mut world = World::new(servers, 4, rules, seed);
        for client in 0..4 {
            world.begin(client);
        }
        for _ in 0..3_000 {
            world.step();
        }
        world.check().map_err(|what| format!("seed {seed}: {what}"))?;
        grants += world.answered.len();
    }
    println!("{servers} servers: {grants} grants in {histories} histories");
    Ok(grants)
}

#[test]
fn fences_of_a_majority_are_unique_and_in_order_whatever_clocks_do() {
    for servers in [3, 5] {
        let grants = run(servers, Rules::All, 200).unwrap_or_else(|what| panic!("{what}"));
        assert!(grants > 200, "too little happened: {grants} grants");
    }
}

#[test]
fn without_the_raise_fences_are_wrong() {
    let what = run(3, Rules::NoRaise, 2_000).unwrap_err();
    assert!(what.contains("not in order") || what.contains("twice"), "{what}");
}

#[test]
fn a_server_that_forgets_and_votes_at_once_makes_fences_wrong() {
    let what = run(3, Rules::NoAbsence, 2_000).unwrap_err();
    assert!(what.contains("not in order") || what.contains("twice"), "{what}");
}
