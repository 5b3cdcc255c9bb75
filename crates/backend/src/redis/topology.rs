//! Which servers a Redis Cluster has, and which slots are on each: what CLUSTER SLOTS says.

use holdfast_core::BackendError;
use redis::{Value, from_redis_value};

use super::{reply::unexpected, slots::Slots};

/// A server of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id: the same for as long as it is in the cluster.
    pub id: String,
    /// `host:port`, as clients are to reach it.
    pub address: String,
}

/// A primary with slots, and its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Who serves the slots.
    pub primary: Node,
    /// Who may take over.
    pub replicas: Vec<Node>,
    /// The slots.
    pub slots: Slots,
}

/// The servers of a cluster, as one of them sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Those with slots, and their replicas. A primary without slots is not among them.
    pub shards: Vec<Shard>,
}

impl Topology {
    /// Reads the reply of CLUSTER SLOTS from the server at `asked`, which may leave out its own host.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn from_slots(reply: Value, asked: &str) -> Result<Self, BackendError> {
        let Value::Array(ranges) = reply else { return Err(unexpected("no list of slots")) };
        let mut shards: Vec<Shard> = Vec::new();
        for range in ranges {
            let Value::Array(parts) = range else { return Err(unexpected("no range of slots")) };
            let mut parts = parts.into_iter();
            let mut end = || {
                let value = parts.next().ok_or_else(|| unexpected("a range without an end"))?;
                from_redis_value::<u16>(value).map_err(unexpected)
            };
            let (from, to) = (end()?, end()?);
            let nodes: Vec<Node> =
                parts.map(|node| read_node(node, asked)).collect::<Result<_, _>>()?;
            let Some((primary, replicas)) = nodes.split_first() else { continue };
            match shards.iter_mut().find(|shard| shard.primary.id == primary.id) {
                Some(shard) => shard.slots.add(from, to),
                None => {
                    let mut slots = Slots::default();
                    slots.add(from, to);
                    let (primary, replicas) = (primary.clone(), replicas.to_vec());
                    shards.push(Shard { primary, replicas, slots });
                }
            }
        }
        Ok(Topology { shards })
    }

    /// Every server that clients may be sent to, primaries first.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        let replicas = self.shards.iter().flat_map(|shard| &shard.replicas);
        self.shards.iter().map(|shard| &shard.primary).chain(replicas)
    }
}

fn read_node(node: Value, asked: &str) -> Result<Node, BackendError> {
    let Value::Array(parts) = node else { return Err(unexpected("no server of a slot")) };
    let mut parts = parts.into_iter();
    let mut next = || parts.next().ok_or_else(|| unexpected("too little of a server"));
    let host: Option<String> = from_redis_value(next()?).map_err(unexpected)?;
    let port: u16 = from_redis_value(next()?).map_err(unexpected)?;
    let id: String = from_redis_value(next()?).map_err(unexpected)?;
    Ok(Node { id, address: mk_address(host.as_deref().unwrap_or_default(), port, asked) })
}

/// The address of a server that another one names; without a host it is on that one's.
pub(super) fn mk_address(host: &str, port: u16, asked: &str) -> String {
    let own = || asked.rsplit_once(':').map_or(asked, |(host, _)| host);
    match host {
        // Of a server that does not know its own name, or must not tell it.
        "" | "?" => format!("{}:{port}", own()),
        host if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        host => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn node(host: Value, port: i64, id: &str) -> Value {
        Value::Array(vec![host, Value::Int(port), text(id), Value::Array(Vec::new())])
    }

    #[test]
    fn ranges_of_one_primary_are_one_shard() {
        let range = |from, to, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(from), Value::Int(to)], nodes].concat())
        };
        let reply = Value::Array(vec![
            range(0, 5, vec![node(text("10.0.0.1"), 1, "a"), node(text("::1"), 2, "b")]),
            range(6, 6, vec![node(Value::Nil, 3, "c")]),
            range(9, 9, vec![node(text("10.0.0.1"), 1, "a")]),
        ]);
        let topology = Topology::from_slots(reply, "seed:7000").unwrap();
        assert_eq!(topology.shards.len(), 2);
        assert_eq!(topology.shards[0].slots.count(), 7);
        let addresses: Vec<_> = topology.nodes().map(|node| node.address.as_str()).collect();
        assert_eq!(addresses, ["10.0.0.1:1", "seed:3", "[::1]:2"]);
        assert!(Topology::from_slots(Value::Okay, "seed:1").is_err());
    }
}
