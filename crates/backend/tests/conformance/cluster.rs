//! The suite on a real Redis Cluster of three primaries, and histories while their slots move.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use holdfast_backend::{
    hub::Hub,
    redis::{
        KnownEpoch, RedisAdmin, RedisConfig, RedisLocks, RedisSemaphores, keys::ObjectKeys,
        slots::slot_of,
    },
};
use holdfast_core::{Address, Fence, SessionId, Substrate};
use tokio::sync::watch;

use crate::{
    fixture::{PermitsWorld, Sidecar, World, patient},
    redis_cluster::{RedisCluster, open_epoch},
};

/// The namespace of the suite's addresses.
const NAMESPACE: &str = "default";

pub struct ClusterWorld {
    cluster: Arc<RedisCluster>,
    config: RedisConfig,
    epoch: watch::Sender<Option<KnownEpoch>>,
    /// The slots of the objects that are tested.
    slots: Arc<Mutex<Vec<u16>>>,
}

impl ClusterWorld {
    pub async fn start() -> Self {
        let cluster = RedisCluster::start(3, 0).patient();
        let config = patient(RedisConfig::from_seeds(&cluster.addresses()).unwrap());
        let known = open_epoch(&cluster.servers[0].address(), NAMESPACE, 1, &[]).await;
        let (epoch, slots) = (watch::channel(Some(known)).0, Arc::default());
        ClusterWorld { cluster: Arc::new(cluster), config, epoch, slots }
    }

    async fn locks(&self, session: &SessionId, hub: &Arc<Hub>) -> Arc<RedisLocks> {
        let (config, epoch) = (self.config.clone(), self.epoch.subscribe());
        let locks = RedisLocks::connect(config, NAMESPACE, session.clone(), hub.clone(), epoch);
        let locks = locks.unwrap();
        assert!(locks.subscribed(Duration::from_secs(5)).await, "no pushes");
        locks
    }
}

#[async_trait]
impl World for ClusterWorld {
    fn substrate(&self) -> Substrate {
        Substrate::Redis
    }

    async fn sidecar(&self, name: &str) -> Sidecar {
        let (session, hub) = (SessionId::random(), Hub::new());
        let locks = self.locks(&session, &hub).await;
        Sidecar::new(name, session, locks, hub)
    }

    async fn provision(&self, at: &Address) {
        self.slots.lock().unwrap().push(slot_of(&ObjectKeys::new(at).record()));
    }

    async fn recreate(&self, at: &Address) -> Fence {
        let admin = RedisAdmin::connect(&self.config).unwrap();
        Fence::new(admin.purge_class(&at.namespace, at.kind, &at.class).await.unwrap())
    }
}

#[async_trait]
impl PermitsWorld for ClusterWorld {
    async fn pod(&self, name: &str) -> Sidecar {
        let (session, hub) = (SessionId::random(), Hub::new());
        let locks = self.locks(&session, &hub).await;
        Sidecar::new(name, session, RedisSemaphores::beside(locks), hub)
    }
}

semaphores_everywhere!(permits, crate::cluster::ClusterWorld);

everywhere!(
    locks,
    crate::cluster::ClusterWorld,
    [waiters_are_served_first_come_first_served, a_dead_waiter_costs_its_heartbeat_not_a_hold]
);

/// C9: the slot of the lock goes round all the time, and some of its names at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_legal_while_slots_move() {
    let world = Arc::new(ClusterWorld::start().await);
    let (stop, moves) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mover = std::thread::spawn({
        let (cluster, slots) = (world.cluster.clone(), world.slots.clone());
        let (stop, moves) = (stop.clone(), moves.clone());
        move || {
            while !stop.load(Relaxed) {
                let slots = slots.lock().unwrap().clone();
                for slot in slots {
                    let to = (cluster.owner(slot) + 1) % 3;
                    let from = cluster.begin_move(slot, to);
                    cluster.move_names(slot, from, to, 1);
                    std::thread::sleep(Duration::from_millis(3));
                    cluster.end_move(slot, from, to);
                    moves.fetch_add(1, Relaxed);
                }
                std::thread::sleep(Duration::from_millis(15));
            }
        }
    });
    let passed = crate::history::random_histories_are_legal(&*world, 200, 200).await;
    stop.store(true, Relaxed);
    mover.join().unwrap();
    let moves = moves.load(Relaxed);
    println!("{moves} moves of the slot");
    assert!(moves >= 100 && passed >= 10, "too little: {moves} moves, {passed} passed on");
}
