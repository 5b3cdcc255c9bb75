//! A real Redis Cluster of redis-servers on free ports; they end with the value.

use std::{thread::sleep, time::Duration};

use holdfast_backend::redis::{KnownEpoch, KnownRun, RedisAdmin, RedisConfig};

use crate::server::RedisServer;

/// The servers: primaries first, then their replicas in the same order.
pub struct RedisCluster {
    pub servers: Vec<RedisServer>,
    primaries: usize,
}

#[allow(dead_code, reason = "not every suite that shares this file needs all of it")]
impl RedisCluster {
    /// So many primaries with so many replicas each. A shard that is down does not keep the others
    /// from serving.
    pub fn start(primaries: usize, replicas: usize) -> Self {
        Self::of(primaries, replicas, RedisServer::start)
    }

    /// As [`RedisCluster::start`], of the newest Valkey.
    pub fn valkey(primaries: usize, replicas: usize) -> Self {
        Self::of(primaries, replicas, RedisServer::valkey)
    }

    /// A slow server is not a dead one, nor when the machine's clock steps: for tests in which none
    /// is to be replaced.
    pub fn patient(self) -> Self {
        self.servers.iter().for_each(be_patient);
        self
    }

    fn of(primaries: usize, replicas: usize, start: fn(&[&str]) -> RedisServer) -> Self {
        let count = primaries * (1 + replicas);
        let servers: Vec<RedisServer> = (0..count).map(|_| run(start)).collect();
        let cluster = RedisCluster { servers, primaries };
        for (index, server) in cluster.servers.iter().enumerate() {
            server.command(&format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1));
        }
        for server in &cluster.servers[1..] {
            cluster.meet(server);
        }
        let known = format!("cluster_known_nodes:{count}");
        cluster.until("all servers know each other", || {
            cluster.servers.iter().all(|server| server.ask("CLUSTER INFO").contains(&known))
        });
        let share = 16_384 / primaries;
        for (index, server) in cluster.servers[..primaries].iter().enumerate() {
            let last = if index + 1 == primaries { 16_383 } else { (index + 1) * share - 1 };
            server.command(&format!("CLUSTER ADDSLOTSRANGE {} {last}", index * share));
        }
        for (index, server) in cluster.servers[primaries..].iter().enumerate() {
            let primary = cluster.id(index % primaries);
            server.command(&format!("CLUSTER REPLICATE {primary}"));
        }
        cluster.until("the cluster serves", || {
            cluster.servers.iter().all(|server| {
                let info = server.ask("CLUSTER INFO");
                info.contains("cluster_state:ok") && info.contains("cluster_slots_assigned:16384")
            })
        });
        for server in &cluster.servers[..primaries] {
            let online = "state=online";
            cluster.until("replicas follow", || {
                server.ask("INFO replication").matches(online).count() == replicas
            });
        }
        cluster
    }

    fn until(&self, what: &str, condition: impl Fn() -> bool) {
        for _ in 0..1_500 {
            if condition() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        panic!("never happened: {what}");
    }

    fn meet(&self, server: &RedisServer) {
        let (address, bus) = (self.servers[0].address(), bus_of(server));
        let first = address.replace(':', " ");
        server.command(&format!("CLUSTER MEET {first} {}", bus_of(&self.servers[0])));
        assert!(bus > 0);
    }

    /// `host:port` of every server.
    pub fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(RedisServer::address).collect()
    }

    /// The first servers, which were primaries at the start.
    pub fn primaries(&self) -> &[RedisServer] {
        &self.servers[..self.primaries]
    }

    /// The node id of a server.
    pub fn id(&self, index: usize) -> String {
        self.servers[index].ask("CLUSTER MYID").lines().nth(1).unwrap().to_owned()
    }

    /// Which server has a slot, by what that server itself says.
    pub fn owner(&self, slot: u16) -> usize {
        let has = |index: &usize| self.knows(*index, &self.id(*index), slot);
        (0..self.servers.len()).find(has).expect("nobody has the slot")
    }

    /// Whether a server knows a slot to be the one's with this node id.
    fn knows(&self, asked: usize, id: &str, slot: u16) -> bool {
        let nodes = self.servers[asked].ask("CLUSTER NODES");
        let line = nodes.lines().find(|line| line.starts_with(id));
        line.into_iter().flat_map(|line| line.split_ascii_whitespace().skip(8)).any(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            match (from.parse::<u16>(), to.parse::<u16>()) {
                (Ok(from), Ok(to)) => (from..=to).contains(&slot),
                // In brackets: it is being moved.
                _ => false,
            }
        })
    }

    /// One more primary, without slots, and as patient as the others. Its index.
    pub fn add(&mut self) -> usize {
        let server = run(RedisServer::start);
        let timeout = |server: &RedisServer| server.ask("CONFIG GET cluster-node-timeout");
        if timeout(&server) != timeout(&self.servers[0]) {
            be_patient(&server);
        }
        self.meet(&server);
        let id = server.ask("CLUSTER MYID").lines().nth(1).unwrap().to_owned();
        self.servers.push(server);
        self.until("all servers know the new one, and it knows that all is well", || {
            self.servers.iter().all(|server| {
                server.ask("CLUSTER NODES").contains(&id)
                    && server.ask("CLUSTER INFO").contains("cluster_state:ok")
            })
        });
        self.servers.len() - 1
    }

    /// Begins to move a slot.
    pub fn begin_move(&self, slot: u16, to: usize) -> usize {
        let from = self.owner(slot);
        let (source, target) = (self.id(from), self.id(to));
        self.servers[to].command(&format!("CLUSTER SETSLOT {slot} IMPORTING {source}"));
        self.servers[from].command(&format!("CLUSTER SETSLOT {slot} MIGRATING {target}"));
        from
    }

    /// Moves at most so many names of a slot; how many.
    pub fn move_names(&self, slot: u16, from: usize, to: usize, at_most: usize) -> usize {
        let reply = self.servers[from].ask(&format!("CLUSTER GETKEYSINSLOT {slot} {at_most}"));
        let names: Vec<&str> = reply.lines().filter(|line| line.starts_with("hf:")).collect();
        if !names.is_empty() {
            let address = self.servers[to].address().replace(':', " ");
            let line = format!("MIGRATE {address} \"\" 0 5000 KEYS {}", names.join(" "));
            self.servers[from].command(&line);
        }
        names.len()
    }

    /// Ends it. All servers know of it then: a slot that moves on before that may be nobody's, since
    /// two servers can choose the same config epoch, and the one to choose again may be the older owner.
    pub fn end_move(&self, slot: u16, from: usize, to: usize) {
        while self.move_names(slot, from, to, 100) > 0 {}
        let id = self.id(to);
        let line = format!("CLUSTER SETSLOT {slot} NODE {id}");
        self.servers[to].command(&line);
        // One that has given its last slot away has made itself a replica by then, and refuses.
        self.servers[from].try_ask(&line);
        self.until("all servers know who has the slot", || {
            (0..self.servers.len()).all(|asked| self.knows(asked, &id, slot))
        });
    }

    /// Moves a slot with all that is in it, as redis-cli does.
    pub fn move_slot(&self, slot: u16, to: usize) {
        if self.owner(slot) != to {
            let from = self.begin_move(slot, to);
            self.end_move(slot, from, to);
        }
    }
}

fn run(start: fn(&[&str]) -> RedisServer) -> RedisServer {
    // The bus gets a free port: see [`RedisServer::start`].
    start(&[
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        "0",
        "--cluster-node-timeout",
        "1000",
        "--cluster-require-full-coverage",
        "no",
        "--cluster-replica-validity-factor",
        "0",
        "--repl-diskless-sync-delay",
        "0",
    ])
}

fn be_patient(server: &RedisServer) {
    server.command("CONFIG SET cluster-node-timeout 60000");
}

fn bus_of(server: &RedisServer) -> u16 {
    let reply = server.ask("CONFIG GET cluster-port");
    reply.lines().nth(4).and_then(|port| port.parse().ok()).unwrap()
}

/// Does what the operator does: the library, markers of this number on every primary that is not
/// `closed`, and what sidecars are told.
#[allow(dead_code, reason = "not every suite that shares this file needs it")]
pub async fn open_epoch(
    asked: &str,
    namespace: &str,
    number: u64,
    closed: &[String],
) -> KnownEpoch {
    let of = |address: &str| RedisAdmin::connect(&RedisConfig::new(address).unwrap()).unwrap();
    let topology = of(asked).cluster(asked).await.unwrap().topology;
    let mut runs = Vec::new();
    for shard in topology.shards {
        let admin = of(&shard.primary.address);
        let Ok(probe) = admin.probe().await else { continue };
        admin.load_library().await.unwrap();
        let (server, tags) = (shard.primary.id, shard.slots.places(&[]));
        let open = !closed.contains(&server);
        if open {
            admin.open_epoch_at(namespace, &tags, number).await.unwrap();
        }
        runs.push(KnownRun { server, replid: probe.replid, tags, open });
    }
    KnownEpoch { number, replid: String::new(), open: runs.iter().any(|run| run.open), runs }
}
