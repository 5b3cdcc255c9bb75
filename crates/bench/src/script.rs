//! The lock's own Redis script with nothing around it: the work that no server can avoid.

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

/// How a server is asked to run it.
#[derive(Clone, Copy, PartialEq)]
pub enum By {
    /// EVALSHA: as anybody would, and on every server.
    Script,
    /// FCALL: as Holdfast does where it can. A Function is compiled once and remembers.
    Function,
}

impl By {
    fn command(self, transition: Transition) -> Cmd {
        let scripts = Scripts::shared();
        let (command, name) = match self {
            By::Script => ("EVALSHA", scripts.script(transition).sha1.as_str()),
            By::Function => ("FCALL", scripts.function(transition)),
        };
        let mut command = redis::cmd(command);
        command.arg(name);
        command
    }
}

/// Makes a namespace's epoch known to the store and to us, and the store know what it is to run.
pub async fn open(address: &str) -> anyhow::Result<KnownEpoch> {
    let admin = RedisAdmin::connect(&RedisConfig::new(address).map_err(anyhow::Error::msg)?)?;
    admin.load_library().await?;
    admin.open_epoch(NAMESPACE, 1).await?;
    let mut connection = connect(address).await?;
    for transition in [Transition::LockAcquire, Transition::LockRelease] {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(&Scripts::shared().script(transition).code);
        load.query_async::<String>(&mut connection).await?;
    }
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
    by: By,
    held: bool,
}

impl Cycle {
    /// On a key of its own.
    pub fn new(key: usize, epoch: KnownEpoch, by: By) -> anyhow::Result<Self> {
        let at = Address {
            kind: Kind::Lock,
            namespace: NAMESPACE.into(),
            class: ClassName::new("floor")?,
            key: Key::new(format!("k{key}"))?,
        };
        let session = SessionId::random();
        Ok(Cycle { at, hold: HoldId::random(), session, epoch, by, held: false })
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
        let mut command = self.by.command(transition);
        command
            .arg(keys.len())
            .arg(&keys)
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
    let mut command = By::Function.command(Transition::RatelimitCheck);
    command.arg(1);
    command.arg(format!("hf:{NAMESPACE}:{{ratelimit/floor/k{key}}}:r"));
    // 100,000,000 a minute: three microseconds give back five.
    command.arg("1;t,3,5,100000000").arg("1").arg("e").arg("0").arg("0");
    command
}
