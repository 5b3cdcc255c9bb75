//! From a release to the next waiter's answer, beside a bare BLPOP; and a thousand waiters on a key.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_backend::hub::lock;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Bench,
    figures::{Figure, Target, median, per_mille},
    load::Connection,
    process::{ANY, FIRST, SECOND, Server, run_on},
    script,
    throughput::{classes, sidecar},
};

/// Calls of scripts and functions that a Redis has carried out.
pub async fn calls(redis: &str) -> anyhow::Result<u64> {
    let mut connection = script::connect(redis).await?;
    let text: String = redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await?;
    let count = |line: &str| {
        let (name, rest) = line.split_once(":calls=")?;
        let is_call = matches!(name, "cmdstat_fcall" | "cmdstat_evalsha" | "cmdstat_eval");
        is_call.then(|| rest.split(',').next()?.parse::<u64>().ok())?
    };
    Ok(text.lines().filter_map(count).sum())
}

/// How many contend for the one lock, and for how long each has it.
const CONTENDERS: usize = 8;
const HELD: Duration = Duration::from_millis(5);
/// Contenders of several sidecars begin one after the other, all of them while the first one has the lock.
const BETWEEN: Duration = Duration::from_micros(500);
/// Whoever has released asks again after this: a releaser that steps back.
const STEPS_BACK: Duration = Duration::from_millis(1);

/// What contenders tell each other, beside the lock: when it was released last.
#[derive(Default)]
struct Relay {
    released: Mutex<Option<Instant>>,
    took: Mutex<Vec<f64>>,
}

impl Relay {
    /// One has the lock: how long after the release. Then it keeps it for a while.
    async fn taken(&self) {
        let now = Instant::now();
        if let Some(begun) = lock(&self.released).take() {
            lock(&self.took).push((now - begun).as_secs_f64());
        }
        sleep(HELD).await;
        *lock(&self.released) = Some(Instant::now());
    }

    fn is_over(&self, rounds: usize) -> bool {
        lock(&self.took).len() >= rounds
    }
}

/// Runs contenders until so many hand-overs are over: seconds from each release to the next holder.
async fn contend<F: Future<Output = anyhow::Result<()>> + Send + 'static>(
    relay: Arc<Relay>,
    contenders: Vec<F>,
) -> anyhow::Result<Vec<f64>> {
    let mut tasks: JoinSet<_> = contenders.into_iter().collect();
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(std::mem::take(&mut *lock(&relay.took)))
}

/// Seconds from a release to the answer of the next holder. Contenders of several sidecars take turns,
/// as they came: each hand-over is then to another one's.
async fn through(ports: &[u16], rounds: usize) -> anyhow::Result<Vec<f64>> {
    let (relay, is_staggered) = (Arc::new(Relay::default()), ports.len() > 1);
    let mut contenders = Vec::new();
    for (n, port) in (0..).zip(ports.iter().cycle().take(CONTENDERS)) {
        let (mut connection, relay) = (Connection::open(*port).await?, relay.clone());
        contenders.push(async move {
            // One after the other, so that those of several sidecars stand in line by turns.
            if is_staggered {
                sleep(BETWEEN * n).await;
            }
            while !relay.is_over(rounds) {
                let hold = connection.acquire("key=hand&waitSeconds=30").await?;
                relay.taken().await;
                connection.release(&hold).await?;
                sleep(STEPS_BACK).await;
            }
            anyhow::Ok(())
        });
    }
    contend(relay, contenders).await
}

/// Seconds that a bare server takes for one call of the lock's function, as rested as it is before a
/// release: the one who released last has asked again meanwhile.
async fn alone(port: u16, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let mut connection = Connection::open(port).await?;
    let mut took = Vec::new();
    for _ in 0..rounds {
        sleep(STEPS_BACK).await;
        connection.call("GET", "/").await?;
        sleep(HELD - STEPS_BACK).await;
        let begun = Instant::now();
        connection.call("GET", "/").await?;
        took.push(begun.elapsed().as_secs_f64());
    }
    Ok(took)
}

/// A bare lock: whoever releases leaves a wake token, whoever waits pops it and takes the key.
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) \
                       redis.call('RPUSH', KEYS[2], '1') return 1 end return 0";

/// The same with nothing but SET NX, BLPOP and a script of one comparison: no HTTP, no queue.
async fn bare(redis: &str, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let relay = Arc::new(Relay::default());
    let mut admin = script::connect(redis).await?;
    redis::cmd("RPUSH").arg("{bare}:wake").arg(1).query_async::<u64>(&mut admin).await?;
    let mut contenders = Vec::new();
    for contender in 0..CONTENDERS {
        let (mut connection, relay) = (script::connect(redis).await?, relay.clone());
        contenders.push(async move {
            while !relay.is_over(rounds) {
                let mut pop = redis::cmd("BLPOP");
                pop.arg("{bare}:wake").arg(30);
                pop.query_async::<(String, String)>(&mut connection).await?;
                let mut take = redis::cmd("SET");
                take.arg("{bare}").arg(contender).arg("NX").arg("PX").arg(15_000);
                take.query_async::<String>(&mut connection).await?;
                relay.taken().await;
                let mut release = redis::cmd("EVAL");
                release.arg(RELEASE).arg(2).arg("{bare}").arg("{bare}:wake").arg(contender);
                release.query_async::<u64>(&mut connection).await?;
                sleep(STEPS_BACK).await;
            }
            anyhow::Ok(())
        });
    }
    let took = contend(relay, contenders).await;
    redis::cmd("DEL").arg("{bare}:wake").query_async::<u64>(&mut admin).await?;
    took
}

/// What a hand-over takes, beside a bare one of the same round. Rounds are short and many: the machine
/// is faster in one second than in the next, for both.
#[derive(Default)]
struct Beside {
    halves: Vec<f64>,
    between: Vec<f64>,
    floors: Vec<f64>,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// Hand-overs of servers on these cores.
async fn beside(bench: &Bench, cores: &str) -> anyhow::Result<Beside> {
    let (rounds, each) = if bench.quick { (4, 50) } else { (42, 50) };
    let (classes, redis) = (classes()?, Server::redis(cores).await?);
    let address = format!("127.0.0.1:{}", redis.port);
    let pods = [
        sidecar(bench, cores, &classes, Some(&address)).await?,
        sidecar(bench, cores, &classes, Some(&address)).await?,
    ];
    let ports = pods.each_ref().map(|pod| pod.port);
    let words =
        |port: u16| ["f1", &port.to_string(), &address, "--function"].map(str::to_owned).into();
    let f1 = Server::start(cores, &std::env::current_exe()?, words).await?;
    let mut seen = Beside::default();
    for _ in 0..rounds {
        let mut bare = bare(&address, each).await?;
        let mut within = through(&ports[..1], each).await?;
        let bare_half = per_mille(&mut bare, 500);
        seen.between.push(per_mille(&mut through(&ports, each).await?, 500) / bare_half);
        seen.floors.push(per_mille(&mut alone(f1.port, each).await?, 500) / bare_half);
        seen.halves.push(per_mille(&mut within, 500) / bare_half);
        seen.ours.append(&mut within);
        seen.theirs.append(&mut bare);
    }
    Ok(seen)
}

/// Hand-over on Redis beside the bare one: where the scheduler puts all of it, and on one core, where
/// nobody has to wake another core and what is left is the work.
pub async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut placed = beside(bench, ANY).await?;
    run_on(FIRST)?;
    let one_core = beside(bench, FIRST).await;
    run_on(ANY)?;
    let mut one_core = one_core?;
    let mut figures = Vec::new();
    // On one core the load is part of both sides: what it costs itself pulls the ratio towards one.
    let beside_it = [
        ("", &mut placed, [Target::AtMost(1.5), Target::AtMost(2.0)]),
        (", all on one core", &mut one_core, [Target::None, Target::None]),
    ];
    for (where_, of, [half_target, tail_target]) in beside_it {
        let mut micros =
            |mille| (per_mille(&mut of.ours, mille) * 1e6, per_mille(&mut of.theirs, mille) * 1e6);
        let ((ours, theirs), (our_tail, their_tail)) = (micros(500), micros(990));
        let half = format!("hand-over p50 ÷ BLPOP's{where_}");
        let tail = format!("hand-over p99 ÷ BLPOP's{where_}");
        let between = format!("hand-over between two pods, p50 ÷ BLPOP's{where_}");
        let floor = format!("one call over F1 (FCALL) after the same rest ÷ it{where_}");
        figures.extend([
            Figure::new(&half, median(of.halves.clone()), "", half_target)
                .note(format!("{ours:.0} of {theirs:.0} µs")),
            Figure::new(&tail, our_tail / their_tail, "", tail_target)
                .note(format!("{our_tail:.0} of {their_tail:.0} µs")),
            Figure::new(&between, median(of.between.clone()), "", Target::None)
                .note("the store is asked, and pushes to another sidecar"),
            Figure::new(&floor, median(of.floors.clone()), "", Target::None)
                .note("what one Function and one HTTP request cost by themselves"),
        ]);
    }
    Ok(figures)
}

/// A thousand waiters on one key: what they cost while nothing happens, and at each release.
pub async fn crowd(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let (waiters, releases) = if bench.quick { (100, 10) } else { (999, 100) };
    let (classes, redis) = (classes()?, Server::redis(SECOND).await?);
    let address = format!("127.0.0.1:{}", redis.port);
    let sidecar = sidecar(bench, FIRST, &classes, Some(&address)).await?;
    let mut holder = Connection::open(sidecar.port).await?;
    let mut hold = holder.acquire("key=crowd").await?;
    let (answered, mut next) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = JoinSet::new();
    for _ in 0..waiters {
        let mut connection = Connection::open(sidecar.port).await?;
        let answered = answered.clone();
        waiting.spawn(async move {
            if let Ok(hold) = connection.acquire("key=crowd&waitSeconds=60").await {
                drop(answered.send(hold));
            }
        });
    }
    sleep(Duration::from_secs(2)).await;
    let (quiet, idle) =
        (Duration::from_secs(if bench.quick { 3 } else { 8 }), calls(&address).await?);
    sleep(quiet).await;
    let idle = (calls(&address).await? - idle) as f64 / quiet.as_secs_f64();
    let (before, mut woken) = (calls(&address).await?, 0);
    for _ in 0..releases {
        holder.release(&hold).await?;
        if let Some(held) = next.recv().await {
            hold = held;
            woken += 1;
        }
    }
    sleep(Duration::from_millis(200)).await;
    let herd = std::iter::from_fn(|| next.try_recv().ok()).count();
    let per_release = (calls(&address).await? - before) as f64 / f64::from(releases);
    Ok(vec![
        Figure::new("1,000 waiters: calls/s while nothing changes", idle, "", Target::AtMost(1.0))
            .note("a beat per key and session is the safety net"),
        Figure::new(
            "1,000 waiters: wake-ups a release",
            (f64::from(woken) + herd as f64) / f64::from(releases),
            "",
            Target::AtMost(1.0),
        ),
        Figure::new("1,000 waiters: calls a release", per_release, "", Target::AtMost(2.5))
            .note("the release; a new hold that lasts is renewed"),
    ])
}
