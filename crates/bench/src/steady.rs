//! Checks of rate limits at a fixed rate, far below what the machine can do: how long one takes.

use std::{path::PathBuf, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};

use crate::{
    Bench,
    figures::{Figure, Target, median, per_mille},
    load::Connection,
    process::{ANY, Server},
};

/// Ten connections of a hundred a second: a thousand.
const CONNECTIONS: u64 = 10;
const EVERY: Duration = Duration::from_millis(10);
/// A check that asks the store.
pub const EXACT: &str = "/v1/ratelimits/exact/check";

/// A folder with a class that never refuses what the bench asks.
pub fn classes() -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let yaml = "{apiVersion: holdfast.dev/v1alpha1, kind: RateLimit, metadata: {name: exact}, spec: \
                {backend: any, limits: [{name: l, limit: 100000000, windowSeconds: 60}]}}\n";
    std::fs::write(dir.path().join("checks.yaml"), yaml)?;
    Ok(dir)
}

/// A sidecar that answers checks, on TCP and on a Unix socket in the folder.
pub async fn sidecar(
    bench: &Bench,
    cores: &str,
    classes: &tempfile::TempDir,
    redis: Option<&str>,
) -> anyhow::Result<Server> {
    let args = |port: u16| {
        let mut args: Vec<String> =
            ["dev", "--admin", "127.0.0.1:0", "--log", "warn", "-f"].map(str::to_owned).into();
        args.push(classes.path().join("checks.yaml").display().to_string());
        args.extend(["--listen".into(), format!("127.0.0.1:{port}")]);
        args.extend(["--listen".into(), format!("unix:{}", socket(classes, redis).display())]);
        args.extend(redis.into_iter().flat_map(|url| ["--redis".into(), format!("redis://{url}")]));
        args
    };
    let server = Server::start(cores, &bench.bin.join("holdfast"), args).await?;
    for _ in 0..500 {
        let mut connection = Connection::open(server.port).await?;
        if connection.call("POST", EXACT).await.is_ok() {
            return Ok(server);
        }
        sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("the sidecar does not answer checks")
}

/// Where the sidecar of a folder listens, too.
pub fn socket(classes: &tempfile::TempDir, redis: Option<&str>) -> PathBuf {
    classes.path().join(if redis.is_some() { "redis.sock" } else { "memory.sock" })
}

/// Seconds from each request to its answer, at a thousand a second.
async fn slice(server: &Server, path: &'static str, lasts: Duration) -> anyhow::Result<Vec<f64>> {
    let mut tasks = JoinSet::new();
    let begun = Instant::now() + Duration::from_millis(50);
    for key in 0..CONNECTIONS {
        let mut connection = Connection::open(server.port).await?;
        let (method, path) = match path {
            "/" => ("GET", path.to_owned()),
            path => ("POST", format!("{path}?key=k{key}")),
        };
        tasks.spawn(async move {
            let mut turns = interval_at(begun + Duration::from_millis(key), EVERY);
            turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut took = Vec::new();
            while begun.elapsed() < lasts {
                turns.tick().await;
                let sent = Instant::now();
                connection.call(method, &path).await?;
                took.push(sent.elapsed().as_secs_f64());
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.extend(done??);
    }
    Ok(all)
}

/// The middle of a thousand a second, beside that of F1.
pub async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let (rounds, lasts) = if bench.quick { (2, 1) } else { (7, 3) };
    let lasts = Duration::from_secs(lasts);
    let (own, classes) = (std::env::current_exe()?, classes()?);
    // A latency and not a rate: nothing is pinned, as for the hand-over.
    let redis = Server::redis(ANY).await?;
    let address = format!("127.0.0.1:{}", redis.port);
    let f1 = Server::start(ANY, &own, |port| {
        ["f1".to_owned(), port.to_string(), address.clone(), "--check".into()].into()
    })
    .await?;
    let ours = sidecar(bench, ANY, &classes, Some(&address)).await?;
    let (mut halves, mut tails) = (Vec::new(), Vec::new());
    let mut middles: [Vec<f64>; 2] = Default::default();
    for round in 0..=rounds {
        let mut floor = slice(&f1, "/", lasts).await?;
        let mut took = slice(&ours, EXACT, lasts).await?;
        // The first round warms up.
        if round > 0 {
            let (half, its) = (per_mille(&mut took, 500), per_mille(&mut floor, 500));
            halves.push(half / its);
            tails.push(per_mille(&mut took, 990) / per_mille(&mut floor, 990));
            middles[0].push(half * 1e6);
            middles[1].push(its * 1e6);
        }
    }
    let [half, its] = middles.map(median);
    Ok(vec![
        Figure::new(
            "1,000 checks/s on Redis: p50 ÷ F1 (FCALL)'s",
            median(halves),
            "",
            Target::AtMost(1.2),
        )
        .note(format!("{half:.0} of {its:.0} µs")),
        Figure::new("1,000 checks/s on Redis: p99 ÷ F1 (FCALL)'s", median(tails), "", Target::None),
    ])
}
