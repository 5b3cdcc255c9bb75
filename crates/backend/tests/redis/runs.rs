//! Which run of a server a transition is in: what a Function remembers of it, and for how long.

use std::{sync::LazyLock, time::Duration};

use holdfast_backend::redis::{
    KnownEpoch,
    client::Client,
    scripts::{Scripts, Transition},
};
use holdfast_core::{BackendError, HoldId};
use tokio::time::{Instant, sleep};

use crate::{
    fixture::{Store, command_as, eventually, mk_address, mk_config, mk_redis},
    server::RedisServer,
};

/// For so long a Function need not ask again, and a little more: `SURE_MS` of `prelude.lua`.
pub const SURE: Duration = Duration::from_millis(120);

/// A store whose clock stands still: what a Function remembers is never too old.
const FROZEN: &str = "local function store_ms() return 1800000000000 end\n\
                      local function store_us() return 1800000000000000 end\n";
static FROZEN_SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts::compose(FROZEN));

async fn asked(store: &Store) -> u64 {
    let stats: String = store.command(&["INFO", "commandstats"]).await.unwrap();
    let line = stats.lines().find(|line| line.starts_with("cmdstat_info:")).unwrap();
    line.split(['=', ',']).nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_busy_store_is_asked_now_and_then_which_run_it_is() {
    let store = Store::start(&[]).await;
    let (session, at, config) = (store.session(), mk_address("a"), mk_config());
    session.fence(&at, &config).await;
    let (before, began) = (asked(&store).await, Instant::now());
    const ROUNDS: u64 = 300;
    for _ in 0..ROUNDS {
        session.fence(&at, &config).await;
    }
    let most = began.elapsed().as_millis() as u64 / 100 + 2;
    let times = asked(&store).await - before;
    assert!(times <= most, "{times} times in {ROUNDS} rounds, {most} at most");
    let before = asked(&store).await;
    sleep(SURE).await;
    session.grant(&at, &config, &HoldId::random()).await;
    // Once for the transition, and once for the look before.
    assert_eq!(asked(&store).await - before, 2, "asked once more after a pause");
}

/// Two servers, the second one a replica of the first.
struct Pair {
    first: Store,
    second: RedisServer,
}

impl Pair {
    async fn start() -> Self {
        // Pings are writes, too: a primary must not have any that its replica does not have.
        let args = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "3600"];
        let (first, second) = (RedisServer::start(&args), RedisServer::start(&args));
        let pair = Pair { first: Store::on(first).await, second };
        follow(&pair.second, &pair.first.server).await;
        // A server takes another replication id when its first replica comes.
        pair.first.open(2).await;
        pair
    }

    /// The second one takes over, and the first one follows it and takes over again.
    async fn there_and_back(&self) {
        follow(&self.first.server, &self.second).await;
        run(&self.first.server, &["REPLICAOF", "NO", "ONE"]).await;
    }
}

async fn run(server: &RedisServer, words: &[&str]) {
    command_as::<()>(&format!("redis://{}/", server.address()), words).await.unwrap();
}

/// A number that a server tells of its replication.
async fn told(server: &RedisServer, what: &str) -> u64 {
    let url = format!("redis://{}/", server.address());
    let info: String = command_as(&url, &["INFO", "replication"]).await.unwrap();
    let number = info.lines().find_map(|line| line.strip_prefix(what));
    number.unwrap().trim().parse().unwrap()
}

async fn follow(server: &RedisServer, primary: &RedisServer) {
    let address = primary.address();
    let (host, port) = address.split_once(':').unwrap();
    run(server, &["REPLICAOF", host, port]).await;
    let url = format!("redis://{}/", server.address());
    eventually("it follows", async || {
        let info: String = command_as(&url, &["INFO", "replication"]).await.ok()?;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_primary_that_was_a_replica_meanwhile_is_in_doubt() {
    let pair = Pair::start().await;
    let (session, at, config) = (pair.first.session(), mk_address("a"), mk_config());
    session.fence(&at, &config).await;
    run(&pair.second, &["REPLICAOF", "NO", "ONE"]).await;
    pair.there_and_back().await;
    sleep(SURE).await;
    let refused = session.try_acquire(&at, &config, &HoldId::random()).await;
    assert_eq!(refused, Err(BackendError::Epoch));
}

/// A call of a library whose clock stands still: a release of what nobody holds, or a look.
async fn call(
    client: &Client,
    known: &KnownEpoch,
    transition: Transition,
) -> Result<(), BackendError> {
    let (number, hold) = (known.number.to_string(), HoldId::random());
    let args = ["hf:shop:epoch", &number, &known.replid, "s", "1:0:0:10:1000:1:0", "c:"];
    let more = [hold.as_str(), "", ""];
    let more = if transition == Transition::LockRelease { &more[..] } else { &[] };
    let keys = ["l", "q", "w"].map(|kind| format!("hf:shop:{{lock/orders/a}}:{kind}"));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    client.call(transition, &keys, &[&args[..], more].concat()).await.map(drop)
}

async fn release(client: &Client, known: &KnownEpoch) -> Result<(), BackendError> {
    call(client, known, Transition::LockRelease).await
}

/// A look changes nothing, so a replica answers it: as the run that it follows.
#[tokio::test]
async fn a_replica_that_was_looked_at_remembers_nothing() {
    let pair = Pair::start().await;
    let known = pair.first.epoch.borrow().clone().unwrap();
    let first = Client::with_scripts(mk_redis(&pair.first.server), &FROZEN_SCRIPTS);
    eventually("it answers", async || release(&first, &known).await.ok()).await;
    let second = Client::with_scripts(mk_redis(&pair.second), &FROZEN_SCRIPTS);
    eventually("a look is answered", async || {
        call(&second, &known, Transition::LockNewest).await.ok()
    })
    .await;
    run(&pair.second, &["REPLICAOF", "NO", "ONE"]).await;
    assert_eq!(release(&second, &known).await, Err(BackendError::Epoch));
}

/// What makes a short memory safe, whatever the clock says: who has written since another took over
/// cannot go on as its replica, but gets all anew, and the library with it.
#[tokio::test]
async fn who_wrote_after_another_took_over_forgets_which_run_it_was() {
    for writes_after in [true, false] {
        let pair = Pair::start().await;
        let client = Client::with_scripts(mk_redis(&pair.first.server), &FROZEN_SCRIPTS);
        let known = pair.first.epoch.borrow().clone().unwrap();
        eventually("it answers", async || release(&client, &known).await.ok()).await;
        let sent = told(&pair.first.server, "master_repl_offset:").await;
        eventually("the second one has all of it", async || {
            (told(&pair.second, "slave_repl_offset:").await >= sent).then_some(())
        })
        .await;
        run(&pair.second, &["REPLICAOF", "NO", "ONE"]).await;
        if writes_after {
            release(&client, &known).await.unwrap();
        }
        pair.there_and_back().await;
        let after =
            eventually("the connection is back", async || match release(&client, &known).await {
                Err(BackendError::Unknown(_) | BackendError::Unavailable(_)) => None,
                answered => Some(answered),
            })
            .await;
        // The control: who has written nothing goes on where it was, and only time tells it.
        let expected = if writes_after { Err(BackendError::Epoch) } else { Ok(()) };
        assert_eq!(after, expected, "writes after: {writes_after}");
    }
}
