//! Several real redis-servers that know nothing of each other, with one epoch that the test keeps as the
//! operator does.

use std::sync::{Arc, Mutex};

use holdfast_backend::{
    hub::Hub,
    redis::{KnownEpoch, KnownRun, RedisAdmin, RedisConfig, Redlocks},
};
use holdfast_core::{Clock, SessionId};
use tokio::sync::watch;

use crate::server::RedisServer;

/// The servers.
pub struct Servers {
    pub servers: Mutex<Vec<RedisServer>>,
    pub admins: Vec<RedisAdmin>,
    pub addresses: Vec<String>,
    pub epoch: watch::Sender<Option<KnownEpoch>>,
    namespace: String,
}

impl Servers {
    /// So many, each open in epoch 1.
    pub async fn start(count: usize, namespace: &str) -> Self {
        let servers: Vec<RedisServer> = (0..count).map(|_| RedisServer::start(&[])).collect();
        let addresses: Vec<String> = servers.iter().map(RedisServer::address).collect();
        let admin =
            |address: &String| RedisAdmin::connect(&RedisConfig::new(address).unwrap()).unwrap();
        let all = Servers {
            admins: addresses.iter().map(admin).collect(),
            servers: Mutex::new(servers),
            addresses,
            epoch: watch::channel(None).0,
            namespace: namespace.to_owned(),
        };
        for admin in &all.admins {
            admin.load_library().await.unwrap();
        }
        all.open(1, &(0..count).collect::<Vec<_>>()).await;
        all
    }

    /// Marks these servers with an epoch and says that it is open there; the others are closed.
    pub async fn open(&self, number: u64, which: &[usize]) {
        let mut runs = Vec::new();
        for &server in which {
            let admin = &self.admins[server];
            let mut probe = admin.probe().await;
            // A connection that a crash has broken is found out by the first call.
            for _ in 0..200 {
                if probe.is_ok() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                probe = admin.probe().await;
            }
            admin.load_library().await.unwrap();
            admin.open_epoch(&self.namespace, number).await.unwrap();
            runs.push(KnownRun {
                server: self.addresses[server].clone(),
                replid: probe.unwrap().replid,
                tags: Vec::new(),
                open: true,
            });
        }
        let epoch = KnownEpoch { number, replid: String::new(), open: true, runs };
        self.epoch.send_replace(Some(epoch));
    }

    /// A session's locks on a majority of them.
    pub fn connect(
        &self,
        session: SessionId,
        hub: Arc<Hub>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Redlocks> {
        let config = RedisConfig::new(&self.addresses[0]).unwrap();
        let (epoch, who) = (self.epoch.subscribe(), (session, hub, clock));
        Redlocks::connect(&config, &self.addresses, &self.namespace, who, &epoch).unwrap()
    }

    /// Does something to one of the servers.
    #[allow(dead_code, reason = "not every suite that shares this file needs it")]
    pub fn with<T>(&self, server: usize, act: impl FnOnce(&mut RedisServer) -> T) -> T {
        act(&mut self.servers.lock().unwrap()[server])
    }
}
