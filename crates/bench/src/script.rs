//! The lock's own Redis function with nothing around it: the work that no server can avoid.

use holdfast_backend::redis::{
    KnownEpoch, RedisAdmin, RedisConfig, keys,
    keys::ObjectKeys,
    scripts::{Scripts, Transition},
};
use holdfast_core::{Address, ClassName, HoldId, Key, Kind, SessionId};
use redis::{Cmd, aio::MultiplexedConnection};

/// The namespace of the bench.
pub const NAMESPACE: &str = "bench";
/// Generation, times and limits of a class, as the backend encodes them.
const POLICY: &str = "1:0:0:1000:5000:1:0";
const TTL: &str = "15000";

/// Makes a namespace's epoch known to the store and to us.
pub async fn open(address: &str) -> anyhow::Result<KnownEpoch> {
    let admin = RedisAdmin::connect(&RedisConfig::new(address).map_err(anyhow::Error::msg)?)?;
    admin.load_library().await?;
    admin.open_epoch(NAMESPACE, 1).await?;
    Ok(KnownEpoch::of_one(1, admin.probe().await?.replid, true))
}

/// One connection as everybody shares it.
pub async fn connect(address: &str) -> anyhow::Result<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://{address}/"))?;
    Ok(client.get_multiplexed_async_connection().await?)
}

/// Acquires and releases one key by turns.
pub struct Cycle {
    at: Address,
    hold: HoldId,
    session: SessionId,
    epoch: KnownEpoch,
    held: bool,
}

impl Cycle {
    /// On a key of its own.
    pub fn new(key: usize, epoch: KnownEpoch) -> anyhow::Result<Self> {
        let at = Address {
            kind: Kind::Lock,
            namespace: NAMESPACE.into(),
            class: ClassName::new("floor")?,
            key: Key::new(format!("k{key}"))?,
        };
        let session = SessionId::random();
        Ok(Cycle { at, hold: HoldId::random(), session, epoch, held: false })
    }

    /// The next call.
    pub fn next(&mut self) -> Cmd {
        let names = ObjectKeys::new(&self.at);
        let mut keys = vec![names.record(), names.queue(), names.waiters()];
        let transition = if self.held { Transition::LockRelease } else { Transition::LockAcquire };
        if !self.held {
            self.hold = HoldId::random();
            keys.push(names.tomb(&self.hold));
        }
        let mut command = redis::cmd("FCALL");
        command.arg(Scripts::shared().function(transition)).arg(keys.len()).arg(&keys);
        command
            .arg(keys::marker(NAMESPACE))
            .arg(self.epoch.number)
            .arg(&self.epoch.replid)
            .arg("s");
        command.arg(POLICY).arg(keys::channel_prefix(NAMESPACE)).arg(self.hold.as_str());
        if !self.held {
            command.arg(self.session.as_str()).arg(TTL).arg("0").arg("0").arg("bench");
        }
        self.held = !self.held;
        command
    }
}

/// A check of a rate limit that never refuses, on a key of its own.
pub fn check(key: usize) -> Cmd {
    let mut command = redis::cmd("FCALL");
    command.arg(Scripts::shared().function(Transition::RatelimitCheck)).arg(1);
    command.arg(format!("hf:{NAMESPACE}:{{ratelimit/floor/k{key}}}:r"));
    // 100,000,000 a minute: three microseconds give back five.
    command.arg("1;t,3,5,100000000").arg("1").arg("e").arg("0").arg("0");
    command
}
