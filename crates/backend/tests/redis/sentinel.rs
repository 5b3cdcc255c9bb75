//! A primary, two replicas and three Sentinels: clients follow a failover, and no fence goes back.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use holdfast_backend::hub::Hub;
use holdfast_backend::redis::{LocalEpoch, RedisConfig, RedisLocks, Sentinels};
use holdfast_core::{
    BackendError, HoldId, SessionId,
    lock::{LockBackend, Release, Renewal},
};
use tempfile::TempDir;

use crate::{
    fixture::{NAMESPACE, Session, TTL, command_as, eventually, mk_address, mk_config},
    server::RedisServer,
};

const MASTER: &str = "main";

/// A Sentinel of Debian's redis-server, which ends with the value.
struct Sentinel {
    port: u16,
    child: Child,
    _dir: TempDir,
}

impl Sentinel {
    fn start(primary: &RedisServer) -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-sentinel").tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = primary.address().replace(':', " ");
        let config = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER} {address} 2\n\
             sentinel down-after-milliseconds {MASTER} 500\n\
             sentinel failover-timeout {MASTER} 3000\n",
            dir.path().display()
        );
        let file = dir.path().join("sentinel.conf");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null());
        Sentinel { port, child: command.spawn().unwrap(), _dir: dir }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Whether it knows both replicas and both other Sentinels.
    async fn is_ready(&self) -> bool {
        let url = format!("redis://{}/", self.address());
        let info: redis::RedisResult<String> = command_as(&url, &["INFO", "sentinel"]).await;
        info.is_ok_and(|info| info.contains("status=ok") && info.contains("slaves=2,sentinels=3"))
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Bed {
    primary: RedisServer,
    replicas: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
}

impl Bed {
    async fn start() -> Self {
        let primary = RedisServer::start(&["--repl-diskless-sync-delay", "0"]);
        let address = primary.address();
        let (host, port) = address.split_once(':').unwrap();
        let of = ["--replicaof", host, port, "--repl-diskless-sync-delay", "0"];
        let replicas = vec![RedisServer::start(&of), RedisServer::start(&of)];
        let url = format!("redis://{address}/");
        eventually("both replicas follow", async || {
            let info: String = command_as(&url, &["INFO", "replication"]).await.ok()?;
            (info.matches("state=online").count() == 2).then_some(())
        })
        .await;
        let sentinels: Vec<_> = (0..3).map(|_| Sentinel::start(&primary)).collect();
        let bed = Bed { primary, replicas, sentinels };
        for sentinel in &bed.sentinels {
            eventually("a Sentinel knows all the others", async || {
                tokio::time::sleep(Duration::from_millis(20)).await;
                sentinel.is_ready().await.then_some(())
            })
            .await;
        }
        bed
    }

    fn config(&self) -> RedisConfig {
        let addresses = self.sentinels.iter().map(Sentinel::address).collect();
        RedisConfig::from_sentinels(Sentinels { addresses, master_name: MASTER.into() }).unwrap()
    }

    fn session(&self, epoch: &LocalEpoch) -> Session {
        let (id, hub) = (SessionId::random(), Hub::new());
        let (config, known) = (self.config(), epoch.known());
        let locks = RedisLocks::connect(config, NAMESPACE, id.clone(), hub.clone(), known).unwrap();
        Session { id, hub, locks }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_follows_a_failover_and_no_fence_goes_back() {
    let mut bed = Bed::start().await;
    // The first to be asked is away: the others tell.
    bed.sentinels[0].child.kill().unwrap();
    let quarantine = Duration::from_millis(500);
    let epoch = LocalEpoch::start(bed.config(), NAMESPACE, quarantine).unwrap();
    assert!(epoch.opened(Duration::from_secs(10)).await);
    let before = epoch.known().borrow().clone().unwrap();
    let (session, other) = (bed.session(&epoch), bed.session(&epoch));
    assert!(session.locks.subscribed(Duration::from_secs(10)).await);
    let (at, config, hold) = (mk_address("a"), mk_config(), HoldId::random());
    let granted = session.grant(&at, &config, &hold).await;
    let record = format!("hf:{NAMESPACE}:{{lock/orders/a}}:l");
    for replica in &bed.replicas {
        let url = format!("redis://{}/", replica.address());
        eventually("a replica has the hold", async || {
            command_as::<Option<String>>(&url, &["GET", &record]).await.ok().flatten()
        })
        .await;
    }

    bed.primary.kill();
    // What was known of the old primary opens nothing on the new one.
    let mut opened = epoch.known();
    loop {
        let refused = session.locks.renew(&at, &config, &hold, TTL).await;
        match refused {
            Ok(_) => break,
            Err(BackendError::Epoch | BackendError::Unavailable(_) | BackendError::Unknown(_)) => {}
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let is_next = |known: &Option<_>| {
        known.as_ref().is_some_and(|k: &holdfast_backend::redis::KnownEpoch| {
            k.open && k.number > before.number
        })
    };
    let after = opened.wait_for(is_next).await.unwrap().clone().unwrap();
    assert_ne!(after.replid, before.replid);

    // The replicas had the hold, so it lives on; nobody else gets it meanwhile.
    let renewed = session.locks.renew(&at, &config, &hold, TTL).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }));
    let released = session.locks.release(&at, &config, &hold).await;
    assert_eq!(released, Ok(Release::Released));
    let next = eventually("another is granted", async || {
        let hold = HoldId::random();
        match other.try_acquire(&at, &config, &hold).await {
            Ok(holdfast_core::lock::Attempt::Granted(grant)) => Some(grant),
            _ => None,
        }
    })
    .await;
    assert!(next.fence > granted.fence, "{} after {}", next.fence, granted.fence);
    // Pushes come from the new primary.
    assert!(session.locks.subscribed(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_sentinel_knows_is_refused_with_a_reason() {
    let bed = Bed::start().await;
    let addresses = bed.sentinels.iter().map(Sentinel::address).collect();
    let sentinels = Sentinels { addresses, master_name: "nobody".into() };
    let config = RedisConfig::from_sentinels(sentinels).unwrap();
    let admin = holdfast_backend::redis::RedisAdmin::connect(&config).unwrap();
    let refused = admin.probe().await.unwrap_err().to_string();
    assert!(refused.contains("knows no primary \"nobody\""), "{refused}");
}
