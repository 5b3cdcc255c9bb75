//! A Redis Cluster: objects on every shard, slots that move under them, shards that fail (C1, C4, C9).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use holdfast_backend::{
    hub::Hub,
    redis::{
        Credentials, KnownEpoch, Marker, RedisAdmin, RedisConfig, RedisLocks, RedisRateLimits,
        keys::{ObjectKeys, marker_at},
        slots::slot_of,
    },
};
use holdfast_core::{
    Address, BackendError, ClassName, HoldId, Kind, SessionId,
    lock::{Attempt, Consistency, LockBackend, LockConfig, Push, Release, Renewal},
    ratelimit::{Algorithm, Check, Limit, Mode, Outcome, Policy, RateLimitBackend, Rule},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    fixture::{
        NAMESPACE, PATIENCE, Session, TTL, command_as, eventually, mk_address, mk_config,
        mk_redis_at, pushed,
    },
    redis_cluster::{RedisCluster, open_epoch},
};

/// For so long who is hurried waits out what a cluster says while it changes, or says nothing.
const HURRY: Duration = Duration::from_secs(2);

struct Bed {
    cluster: RedisCluster,
    epoch: watch::Sender<Option<KnownEpoch>>,
}

impl Bed {
    async fn start(primaries: usize, replicas: usize) -> Self {
        let cluster = RedisCluster::start(primaries, replicas);
        // Who has no replica is not replaced.
        Self::on(if replicas == 0 { cluster.patient() } else { cluster }).await
    }

    async fn on(cluster: RedisCluster) -> Self {
        let bed = Bed { cluster, epoch: watch::channel(None).0 };
        bed.open(0, 1, &[]).await;
        bed
    }

    /// Opens an epoch, with what the server of an index knows of the cluster.
    async fn open(&self, asked: usize, number: u64, closed: &[String]) {
        let address = self.cluster.servers[asked].address();
        let known = open_epoch(&address, NAMESPACE, number, closed).await;
        self.epoch.send_replace(Some(known));
    }

    /// Only one server is named: the others are learnt from it.
    fn config(&self) -> RedisConfig {
        let mut config = RedisConfig::from_seeds(&self.cluster.addresses()[..1]).unwrap();
        config.response_timeout = PATIENCE;
        config
    }

    fn hurried(&self) -> RedisConfig {
        let mut config = self.config();
        config.response_timeout = HURRY;
        config
    }

    fn session(&self) -> Session {
        self.session_as(self.config())
    }

    fn session_as(&self, config: RedisConfig) -> Session {
        let (id, hub, epoch) = (SessionId::random(), Hub::new(), self.epoch.subscribe());
        let locks = RedisLocks::connect(config, NAMESPACE, id.clone(), hub.clone(), epoch).unwrap();
        Session { id, hub, locks }
    }

    /// A key whose lock is on the server of an index now.
    fn key_on(&self, server: usize) -> Address {
        let on = |at: &Address| self.cluster.owner(slot(at)) == server;
        (0..).map(|n| mk_address(&format!("k{n}"))).find(on).unwrap()
    }
}

fn slot(at: &Address) -> u16 {
    slot_of(&ObjectKeys::new(at).record())
}

fn class() -> ClassName {
    ClassName::new("orders").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_live_on_every_shard_and_are_listed_and_purged_on_all() {
    live_on_every_shard(&Bed::start(3, 0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_valkey_is_the_same() {
    let bed = Bed::on(RedisCluster::valkey(3, 0).patient()).await;
    live_on_every_shard(&bed).await;
    let (session, config, at) = (bed.session(), mk_config(), bed.key_on(0));
    let hold = HoldId::random();
    let granted = session.grant(&at, &config, &hold).await;
    bed.cluster.move_slot(slot(&at), 1);
    assert_eq!(session.grant(&at, &config, &hold).await.fence, granted.fence);
    bed.cluster.servers[1].command("FLUSHALL");
    let refused = session.try_acquire(&at, &config, &hold).await;
    assert_eq!(refused, Err(BackendError::Epoch));
}

async fn live_on_every_shard(bed: &Bed) {
    let (session, other, config) = (bed.session(), bed.session(), mk_config());
    assert!(other.locks.subscribed(Duration::from_secs(10)).await);
    let (mut servers, mut top) = (BTreeSet::new(), 0);
    for n in 0..12 {
        let at = mk_address(&format!("key-{n}"));
        servers.insert(bed.cluster.owner(slot(&at)));
        let (first, second) = (HoldId::random(), HoldId::random());
        let granted = session.grant(&at, &config, &first).await;
        assert_eq!(session.grant(&at, &config, &first).await.fence, granted.fence);
        let mut inbox = other.hub.register(&second);
        let queued = other.try_acquire(&at, &config, &second).await;
        assert_eq!(queued, Ok(Attempt::Queued { position: 1 }));
        let renewed = session.locks.renew(&at, &config, &first, TTL).await;
        assert!(matches!(renewed, Ok(Renewal::Renewed { .. })));
        assert_eq!(session.locks.release(&at, &config, &first).await, Ok(Release::Released));
        // Whichever server it was released on, the one that listens hears of it.
        let Push::Granted { grant, .. } = pushed(&mut inbox).await else { panic!("lost") };
        assert!(grant.fence > granted.fence);
        top = top.max(grant.fence.sequence());
    }
    assert_eq!(servers.len(), 3, "all keys are on {servers:?}");
    let listed = session.locks.list(Kind::Lock, NAMESPACE, &class(), &config, 100).await.unwrap();
    assert_eq!(listed.len(), 12);
    let admin = RedisAdmin::connect(&bed.config()).unwrap();
    assert_eq!(admin.purge_class(NAMESPACE, Kind::Lock, &class()).await, Ok(top));
    assert!(
        session.locks.list(Kind::Lock, NAMESPACE, &class(), &config, 9).await.unwrap().is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_of_one_shard_is_noticed_by_the_very_call_and_closes_that_shard_only() {
    let bed = Bed::start(3, 0).await;
    let (session, config) = (bed.session(), mk_config());
    let (lost, kept) = (bed.key_on(1), bed.key_on(2));
    let before = session.fence(&lost, &config).await;
    let hold = HoldId::random();
    session.grant(&kept, &config, &hold).await;
    bed.cluster.servers[1].command("FLUSHALL");
    for _ in 0..3 {
        let refused = session.try_acquire(&lost, &config, &HoldId::random()).await;
        assert_eq!(refused, Err(BackendError::Epoch));
    }
    assert!(bed.cluster.servers[1].keys("hf:*").is_empty(), "a refused call has left something");
    let best_effort = LockConfig { consistency: Consistency::BestEffort, ..(*config).clone() };
    session.grant(&lost, &Arc::new(best_effort), &HoldId::random()).await;
    session.locks.renew(&kept, &config, &hold, TTL).await.unwrap();
    bed.cluster.servers[1].command("FLUSHALL");

    // The number is raised for all, and the shard stays closed for its quarantine.
    bed.open(0, 2, &[bed.cluster.id(1)]).await;
    let refused = session.try_acquire(&lost, &config, &HoldId::random()).await;
    assert_eq!(refused, Err(BackendError::Epoch));
    session.locks.release(&kept, &config, &hold).await.unwrap();
    assert_eq!(session.grant(&kept, &config, &HoldId::random()).await.fence.epoch(), 2);
    bed.open(0, 2, &[]).await;
    assert!(session.fence(&lost, &config).await > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_knows_an_older_number_still_grants_with_the_newest() {
    let bed = Bed::start(3, 0).await;
    let (old, config, at) = (bed.session(), mk_config(), bed.key_on(0));
    let known = bed.epoch.borrow().clone();
    bed.open(0, 5, &[]).await;
    let newest = old.fence(&at, &config).await;
    // A key that nobody has used yet has no record that would tell.
    let fresh = (0..).map(|n| mk_address(&format!("f{n}")));
    let fresh = fresh.into_iter().find(|at| bed.cluster.owner(slot(at)) == 0).unwrap();
    bed.epoch.send_replace(known);
    assert!(old.fence(&at, &config).await > newest);
    assert_eq!(old.fence(&fresh, &config).await.epoch(), 5);
    // A later number than the server is marked with is told by somebody who knows of a loss.
    let mut later = bed.epoch.borrow().clone().unwrap();
    later.number = 6;
    bed.epoch.send_replace(Some(later));
    let refused = old.try_acquire(&at, &config, &HoldId::random()).await;
    assert_eq!(refused, Err(BackendError::Epoch));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_takes_its_locks_along_and_nothing_is_done_in_part_meanwhile() {
    let bed = Bed::start(3, 0).await;
    let (session, other, config) = (bed.session(), bed.session(), mk_config());
    assert!(other.locks.subscribed(Duration::from_secs(10)).await);
    let at = bed.key_on(0);
    let (hold, waiting) = (HoldId::random(), HoldId::random());
    let granted = session.grant(&at, &config, &hold).await;
    let mut inbox = other.hub.register(&waiting);
    other.try_acquire(&at, &config, &waiting).await.unwrap();

    let hurried = bed.session_as(bed.hurried());
    let from = bed.cluster.begin_move(slot(&at), 1);
    for moved in 0..3 {
        let asked = Instant::now();
        let refused = hurried.locks.release(&at, &config, &hold).await;
        assert!(matches!(refused, Err(BackendError::Unavailable(_))), "{moved} moved: {refused:?}");
        assert!(asked.elapsed() < HURRY * 3, "{:?}", asked.elapsed());
        assert_eq!(bed.cluster.move_names(slot(&at), from, 1, 1), 1);
    }
    let early = tokio::time::timeout(Duration::from_millis(50), inbox.recv()).await;
    assert!(early.is_err(), "granted by a release that was refused");
    bed.cluster.end_move(slot(&at), from, 1);
    assert_eq!(bed.cluster.owner(slot(&at)), 1);

    assert_eq!(session.grant(&at, &config, &hold).await.fence, granted.fence);
    assert_eq!(session.locks.release(&at, &config, &hold).await, Ok(Release::Released));
    let Push::Granted { grant, .. } = pushed(&mut inbox).await else { panic!("lost") };
    assert!(grant.fence > granted.fence);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_a_limit_follows_its_count_through_a_move() {
    let bed = Bed::start(2, 0).await;
    let limits = RedisRateLimits::connect(bed.config(), NAMESPACE).unwrap();
    let (at, policy) = (Address { kind: Kind::RateLimit, ..mk_address("a") }, mk_policy(10));
    let left = async || {
        let check = Check { cost: 1, mode: Mode::Enforce, max_wait_us: 0, permit: 0, least: 1 };
        let decision = limits.check(&at, &policy, &check).await.unwrap();
        assert_eq!(decision.outcome, Outcome::Allowed { wait_us: 0 });
        decision.verdicts[0].remaining
    };
    assert_eq!((left().await, left().await), (9, 8));
    let slot = slot_of(&ObjectKeys::new(&at).rate());
    let to = 1 - bed.cluster.owner(slot);
    let from = bed.cluster.begin_move(slot, to);
    assert_eq!(left().await, 7);
    assert_eq!(bed.cluster.move_names(slot, from, to, 1), 1);
    // The old server says ASK now.
    assert_eq!((left().await, left().await), (6, 5));
    bed.cluster.end_move(slot, from, to);
    assert_eq!(left().await, 4);
}

fn mk_policy(limit: u64) -> Arc<Policy> {
    let limit = Limit {
        name: "l".into(),
        algorithm: Algorithm::FixedWindow,
        limit,
        // A month: so seldom does one end while a test runs.
        window_seconds: 2_678_400,
        burst: 0,
    };
    Arc::new(Policy::new(1, vec![Rule::new(&limit)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_an_answer_is_never_sent_again() {
    let bed = Bed::start(2, 0).await;
    let limits = RedisRateLimits::connect(bed.hurried(), NAMESPACE).unwrap();
    let (at, policy) = (Address { kind: Kind::RateLimit, ..mk_address("a") }, mk_policy(10));
    let check = Check { cost: 1, mode: Mode::Enforce, max_wait_us: 0, permit: 0, least: 1 };
    limits.check(&at, &policy, &check).await.unwrap();
    let owner = &bed.cluster.servers[bed.cluster.owner(slot_of(&ObjectKeys::new(&at).rate()))];
    owner.pause(true);
    let unknown = limits.check(&at, &policy, &check).await;
    assert!(matches!(unknown, Err(BackendError::Unknown(_))), "{unknown:?}");
    owner.pause(false);
    let peek = Check { mode: Mode::Peek, ..check };
    let left = eventually("an answer", async || limits.check(&at, &policy, &peek).await.ok()).await;
    assert_eq!(left.verdicts[0].remaining, 8, "the server had it once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_whose_slot_has_moved_away_leaves_another_one() {
    let bed = Bed::start(2, 0).await;
    let (session, config, at) = (bed.session(), mk_config(), bed.key_on(0));
    session.fence(&at, &config).await;
    let tags = bed
        .epoch
        .borrow()
        .as_ref()
        .unwrap()
        .runs
        .iter()
        .find(|run| run.server == bed.cluster.id(0))
        .unwrap()
        .tags
        .clone();
    assert_eq!(tags.len(), 2);
    let admin = RedisAdmin::connect(&mk_redis_at(&bed.cluster.servers[0].address())).unwrap();
    bed.cluster.move_slot(slot_of(&marker_at(NAMESPACE, &tags[0])), 1);
    let places = admin.markers(NAMESPACE, &tags).await.unwrap();
    assert_eq!(places, [Marker::Elsewhere, Marker::Found(1)]);
    session.fence(&at, &config).await;
    bed.cluster.move_slot(slot_of(&marker_at(NAMESPACE, &tags[1])), 1);
    let refused = session.try_acquire(&at, &config, &HoldId::random()).await;
    assert_eq!(refused, Err(BackendError::Epoch));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_closes_one_shard_until_its_epoch_and_no_fence_goes_back() {
    let mut bed = Bed::start(3, 1).await;
    // A stall of the machine replaces nobody.
    for server in &bed.cluster.servers {
        server.command("CONFIG SET cluster-node-timeout 3000");
    }
    let (session, config) = (bed.session(), mk_config());
    let hurried = bed.session_as(bed.hurried());
    let (lost, kept) = (bed.key_on(0), bed.key_on(1));
    // It learns of the other servers, too.
    let before = hurried.fence(&lost, &config).await;
    let hold = HoldId::random();
    session.grant(&kept, &config, &hold).await;
    let number = bed.epoch.borrow().as_ref().unwrap().number;
    // The one that was named is the one that dies.
    bed.cluster.servers[0].kill();
    let mut grants = 0;
    eventually("the replica is in its place, and refuses", async || {
        session.locks.renew(&kept, &config, &hold, TTL).await.expect("the other shard serves");
        grants += 1;
        match hurried.try_acquire(&lost, &config, &HoldId::random()).await {
            Err(BackendError::Epoch) => Some(()),
            Err(BackendError::Unavailable(_) | BackendError::Unknown(_)) => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    let promoted = bed.cluster.id(3);
    eventually("the one that is asked knows of it", async || {
        let nodes = bed.cluster.servers[1].ask("CLUSTER NODES");
        let line = nodes.lines().find(|line| line.starts_with(&promoted))?;
        line.contains("connected 0-").then_some(())
    })
    .await;
    bed.open(1, number + 1, std::slice::from_ref(&promoted)).await;
    let refused = hurried.try_acquire(&lost, &config, &HoldId::random()).await;
    assert_eq!(refused, Err(BackendError::Epoch));
    session.locks.renew(&kept, &config, &hold, TTL).await.unwrap();
    bed.open(1, number + 1, &[]).await;
    let after = hurried.fence(&lost, &config).await;
    assert!(after > before && grants > 0, "{after} after {before}");
    // Pushes come from another server by now.
    assert!(session.locks.subscribed(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_reaches_its_objects_on_all_servers_and_nobody_elses() {
    let bed = Bed::start(2, 0).await;
    let password = "pass-1".to_owned();
    for server in &bed.cluster.servers {
        let admin = RedisAdmin::connect(&mk_redis_at(&server.address())).unwrap();
        admin.ensure_user(NAMESPACE, "tenant", std::slice::from_ref(&password)).await.unwrap();
    }
    let credentials = Credentials { username: Some("tenant".into()), password: Some(password) };
    let config = bed.config().with_credentials(Arc::new(move || Ok(credentials.clone())));
    let session = bed.session_as(config.clone());
    assert!(session.locks.subscribed(Duration::from_secs(10)).await);
    for server in [0, 1] {
        session.fence(&bed.key_on(server), &mk_config()).await;
    }
    // ASK and all that, with a tenant's rights.
    let limits = RedisRateLimits::connect(config, NAMESPACE).unwrap();
    let at = Address { kind: Kind::RateLimit, ..mk_address("a") };
    let slot = slot_of(&ObjectKeys::new(&at).rate());
    let to = 1 - bed.cluster.owner(slot);
    let from = bed.cluster.begin_move(slot, to);
    let check = Check { cost: 1, mode: Mode::Enforce, max_wait_us: 0, permit: 0, least: 1 };
    limits.check(&at, &mk_policy(10), &check).await.unwrap();
    bed.cluster.end_move(slot, from, to);

    let run = bed.epoch.borrow().as_ref().unwrap().runs[0].clone();
    let marker = marker_at(NAMESPACE, &run.tags[0]);
    let url = format!(
        "redis://tenant:pass-1@{}/",
        bed.cluster.servers[bed.cluster.owner(slot_of(&marker))].address()
    );
    let read: String = command_as(&url, &["GET", &marker]).await.unwrap();
    assert_eq!(read, "1");
    for forbidden in [
        vec!["SET", &marker, "9"],
        vec!["CLUSTER", "RESET"],
        vec!["CLUSTER", "FORGET", "x"],
        vec!["CLUSTER", "SETSLOT", "1", "STABLE"],
        vec!["MIGRATE", "h", "1", "", "0", "1"],
        vec!["FUNCTION", "LIST"],
        vec!["KEYS", "*"],
    ] {
        let refused = command_as::<redis::Value>(&url, &forbidden).await.unwrap_err();
        assert_eq!(refused.code(), Some("NOPERM"), "{forbidden:?}: {refused}");
    }
}
