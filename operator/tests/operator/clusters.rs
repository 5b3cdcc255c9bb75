//! Backends that are a Redis Cluster: a shard that fails, is flushed, or takes slots over (C1, C3, C9).

use std::time::Duration;

use holdfast_api::v1alpha1::backend::{EpochStatus, RunStatus};
use holdfast_backend::redis::{keys::ObjectKeys, slots::slot_of};
use holdfast_core::Address;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    fixture::{Bed, acquire, acquire_soon, eventually, object},
    servers::RedisCluster,
};

fn declare(bed: &Bed<'_>, name: &str, cluster: &RedisCluster) {
    // Two are named: the others are learnt from them.
    let addresses = cluster.addresses()[..2].join("', '");
    let spec = format!("{{redis: {{mode: Cluster, addresses: ['{addresses}']}}}}");
    bed.kubectl_cluster(&["apply", "-f", "-"], &object("Backend", name, &spec)).unwrap();
}

fn slot(at: &Address) -> u16 {
    slot_of(&ObjectKeys::new(at).record())
}

/// A key of the class `orders` that is on a server now.
fn key_on(bed: &Bed<'_>, cluster: &RedisCluster, server: usize) -> Address {
    let on = |at: &Address| cluster.owner(slot(at)) == server;
    (0..).map(|n| bed.at("orders", &format!("k{n}"))).find(on).unwrap()
}

async fn epoch(bed: &Bed<'_>, name: &str) -> EpochStatus {
    bed.get_backend(name).await.unwrap().status.unwrap().epoch.unwrap()
}

async fn until_epoch(
    bed: &Bed<'_>,
    name: &str,
    what: &str,
    is: impl Fn(&EpochStatus) -> bool,
) -> EpochStatus {
    let mut seen = None;
    eventually(what, async || {
        seen = bed.get_backend(name).await.unwrap().status.and_then(|status| status.epoch);
        seen.as_ref().is_some_and(&is)
    })
    .await;
    seen.unwrap()
}

fn run<'a>(epoch: &'a EpochStatus, server: &str) -> &'a RunStatus {
    epoch.runs.iter().find(|run| run.server == server).unwrap()
}

/// Acquires with what sidecars are told by then.
async fn takes(bed: &Bed<'_>, backend: &str, at: &Address) -> Option<holdfast_core::Fence> {
    let (locks, config) = (bed.redis(backend).await, bed.config("orders").await);
    let (hold, fence) = acquire(&*locks, at, &config, "pod").await?;
    holdfast_core::lock::LockBackend::release(&*locks, at, &config, &hold).await.ok()?;
    Some(fence)
}

/// For how long the servers but the first wait for one of them before they replace it. Short only
/// where one is to be replaced: a slow machine must not make another failover.
fn wait_for_each_other(cluster: &RedisCluster, ms: u32) {
    for server in &cluster.servers[1..] {
        server.command(&format!("CONFIG SET cluster-node-timeout {ms}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_one_shard_closes_only_what_lives_there() {
    let bed = Bed::shared().await;
    let mut cluster = RedisCluster::start(3, 1).patient();
    declare(&bed, "sharded", &cluster);
    bed.lock("orders", "{ttlSeconds: 10, backend: sharded}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let first = epoch(&bed, "sharded").await;
    assert_eq!((first.number, first.runs.len(), first.open), (1, 3, true));
    assert!(first.runs.iter().all(|run| run.open && run.tags.len() == 2), "{first:?}");

    let (lost, kept) = (key_on(&bed, &cluster, 0), key_on(&bed, &cluster, 1));
    let (locks, config) = (bed.redis("sharded").await, bed.config("orders").await);
    let (_, before) = acquire_soon(&*locks, &lost, &config, "pod-1").await;
    acquire_soon(&*locks, &kept, &config, "pod-2").await;
    eventually("holders of two shards in the status", async || {
        // Holds last ten seconds, and a busy machine may take longer to show them.
        acquire(&*locks, &lost, &config, "pod-1").await;
        acquire(&*locks, &kept, &config, "pod-2").await;
        bed.get_lock("orders").await.unwrap().status.unwrap().held == 2
    })
    .await;
    // Every server knows the tenant, those that may be promoted as well.
    let user = format!("user holdfast-{} ", bed.namespace);
    eventually("the user on all servers", async || {
        cluster.servers.iter().all(|server| server.ask("ACL LIST").contains(&user))
    })
    .await;

    wait_for_each_other(&cluster, 1_000);
    let (died, died_at) = (Instant::now(), Timestamp::now());
    cluster.servers[0].kill();
    let raised = until_epoch(&bed, "sharded", "a new number", |epoch| epoch.number > 1).await;
    wait_for_each_other(&cluster, 60_000);
    let promoted = cluster.id(3);
    assert_eq!(raised.number, 2);
    // For longer than a hold of ten seconds, from then on.
    let opens = run(&raised, &promoted).not_before.0;
    assert!(
        !run(&raised, &promoted).open && opens >= died_at + Duration::from_secs(11),
        "{raised:?}"
    );
    for kept in [1, 2] {
        assert!(run(&raised, &cluster.id(kept)).open, "{raised:?}");
    }
    // What lives elsewhere goes on, with the new number; what lived there waits.
    eventually("the other shard with the new number", async || {
        takes(&bed, "sharded", &kept).await.is_some_and(|fence| fence.epoch() == 2)
    })
    .await;
    let taken = takes(&bed, "sharded", &lost).await;
    assert!(taken.is_none() || Timestamp::now() >= opens, "{taken:?} before {opens}");
    until_epoch(&bed, "sharded", "all open", |e| e.runs.iter().all(|run| run.open)).await;
    assert!(Timestamp::now() >= opens, "no quarantine");
    let mut after = None;
    eventually("the shard is open again", async || {
        after = takes(&bed, "sharded", &lost).await;
        after.is_some()
    })
    .await;
    assert!(after.unwrap() > before);
    assert_eq!(epoch(&bed, "sharded").await.number, 2);
    bed.until_ready("orders", "True", "Reconciled").await;
    println!("open again {:?} after the primary was killed", died.elapsed());
    // The sentence was told once.
    let told = bed.kubectl_cluster(
        &["-n", "default", "get", "events", "--field-selector", "reason=EpochRaised"],
        "",
    );
    assert!(told.unwrap().contains(&promoted), "no Event names the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_close_nothing_and_a_flush_closes_one_shard() {
    let bed = Bed::shared().await;
    // With replicas: a primary takes another replication id when its first one comes, and the one that
    // leaves makes itself one.
    let mut cluster = RedisCluster::start(2, 1).patient();
    declare(&bed, "moving", &cluster);
    bed.lock("orders", "{ttlSeconds: 10, backend: moving}");
    bed.until_ready("orders", "True", "Reconciled").await;
    let (a, b) = (cluster.id(0), cluster.id(1));
    let first = epoch(&bed, "moving").await;

    // The slot of a marker: another place is found, and nothing is in doubt.
    let place = slot_of(&run(&first, &a).tags[0]);
    cluster.move_slot(place, 1);
    let again = until_epoch(&bed, "moving", "another place", |epoch| {
        run(epoch, &a).tags.iter().all(|tag| slot_of(tag) != place)
    })
    .await;
    assert_eq!(run(&again, &a).tags.len(), 2);
    assert!(again.number == 1 && again.runs.iter().all(|run| run.open), "{again:?}");

    // One more primary, and the slot of a lock that has been granted.
    let at = key_on(&bed, &cluster, 0);
    let mut before = None;
    eventually("a fence", async || {
        before = takes(&bed, "moving", &at).await;
        before.is_some()
    })
    .await;
    let added = cluster.add();
    cluster.move_slot(slot(&at), added);
    let id = cluster.id(added);
    let more = until_epoch(&bed, "moving", "one more run", |epoch| {
        epoch.runs.iter().any(|run| run.server == id && run.open)
    })
    .await;
    assert_eq!(more.number, 1);
    let mut there = None;
    eventually("its lock on the new server", async || {
        there = takes(&bed, "moving", &at).await;
        there.is_some()
    })
    .await;
    assert!(there > before);

    // It gives its slot back and leaves.
    cluster.move_slot(slot(&at), 1);
    let fewer = until_epoch(&bed, "moving", "two runs", |epoch| epoch.runs.len() == 2).await;
    assert!(fewer.number == 1 && fewer.open, "{fewer:?}");

    let (lost, kept) = (key_on(&bed, &cluster, 1), key_on(&bed, &cluster, 0));
    cluster.servers[1].command("FLUSHALL");
    let raised = until_epoch(&bed, "moving", "a new number", |epoch| epoch.number == 2).await;
    assert!(run(&raised, &a).open && !run(&raised, &b).open, "{raised:?}");
    eventually("the other shard with the new number", async || {
        takes(&bed, "moving", &kept).await.is_some_and(|fence| fence.epoch() == 2)
    })
    .await;
    eventually("the flushed shard is open again", async || {
        takes(&bed, "moving", &lost).await.is_some()
    })
    .await;
    assert_eq!(epoch(&bed, "moving").await.number, 2);
}
