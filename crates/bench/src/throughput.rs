//! Acquire and release, as fast as 32 connections can, beside the floors.

use std::{path::PathBuf, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Bench,
    figures::{Figure, Target, median},
    handover::calls,
    load::Connection,
    process::{FIRST, SECOND, Server},
    script::{self, By, Cycle},
};

const CONNECTIONS: usize = 32;

/// What a server is asked.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Any request, two of them a cycle.
    Floor,
    /// Acquire and release.
    Sidecar,
}

/// One slice: requests per second, CPU µs per request.
async fn slice(server: &Server, kind: Kind, lasts: Duration) -> anyhow::Result<(f64, f64)> {
    let mut tasks = JoinSet::new();
    let (begun, cpu) = (Instant::now(), server.cpu()?);
    for key in 0..CONNECTIONS {
        let mut connection = Connection::open(server.port).await?;
        tasks.spawn(async move {
            let (mut requests, query) = (0u64, format!("key=k{key}"));
            while begun.elapsed() < lasts {
                match kind {
                    Kind::Floor => {
                        connection.call("GET", "/").await?;
                        connection.call("GET", "/").await?;
                    }
                    Kind::Sidecar => {
                        let hold = connection.acquire(&query).await?;
                        connection.release(&hold).await?;
                    }
                }
                requests += 2;
            }
            anyhow::Ok(requests)
        });
    }
    let mut requests = 0;
    while let Some(done) = tasks.join_next().await {
        requests += done??;
    }
    let (took, used) = (begun.elapsed().as_secs_f64(), server.cpu()? - cpu);
    Ok((requests as f64 / took, used * 1e6 / requests as f64))
}

/// F2: the script with no HTTP, calls per second.
async fn direct(redis: &str, lasts: Duration) -> anyhow::Result<f64> {
    let (epoch, connection) = (script::open(redis).await?, script::connect(redis).await?);
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for key in 0..CONNECTIONS {
        let mut cycle = Cycle::new(1_000 + key, epoch.clone(), By::Script)?;
        let mut connection = connection.clone();
        tasks.spawn(async move {
            let mut calls = 0u64;
            while begun.elapsed() < lasts {
                connection.send_packed_command(&cycle.next()).await?;
                calls += 1;
            }
            anyhow::Ok(calls)
        });
    }
    let mut calls = 0;
    while let Some(done) = tasks.join_next().await {
        calls += done??;
    }
    Ok(calls as f64 / begun.elapsed().as_secs_f64())
}

/// A sidecar that grants: on a Redis, its epoch takes a moment to be known.
pub async fn sidecar(
    bench: &Bench,
    cores: &str,
    classes: &tempfile::TempDir,
    redis: Option<&str>,
) -> anyhow::Result<Server> {
    let server = Server::start(cores, &bench.bin.join("holdfast"), dev(classes, redis)).await?;
    for _ in 0..500 {
        let mut connection = Connection::open(server.port).await?;
        if let Ok(hold) = connection.acquire("key=ready").await {
            connection.release(&hold).await?;
            return Ok(server);
        }
        sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("the sidecar does not grant")
}

/// A file with the class of the bench, and arguments to serve it.
pub fn dev(classes: &tempfile::TempDir, redis: Option<&str>) -> impl FnOnce(u16) -> Vec<String> {
    let file: PathBuf = classes.path().join("bench.yaml");
    let redis = redis.map(str::to_owned);
    move |port| {
        let mut args: Vec<String> =
            ["dev", "--admin", "127.0.0.1:0", "--log", "warn", "-f"].map(str::to_owned).into();
        args.push(file.display().to_string());
        args.extend(["--listen".into(), format!("127.0.0.1:{port}")]);
        args.extend(redis.into_iter().flat_map(|url| ["--redis".into(), format!("redis://{url}")]));
        args
    }
}

/// The class of the bench: any key.
pub fn classes() -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let yaml = "{apiVersion: holdfast.dev/v1alpha1, kind: Lock, metadata: {name: bench}, \
                spec: {backend: any, ttlSeconds: 15, queue: {maxWaiters: 10000}}}\n";
    std::fs::write(dir.path().join("bench.yaml"), yaml)?;
    Ok(dir)
}

/// Rates and costs beside the floors'.
pub async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let (rounds, lasts) = if bench.quick { (2, 1) } else { (7, 3) };
    let lasts = Duration::from_secs(lasts);
    let own = std::env::current_exe()?;
    let classes = classes()?;
    let redis = Server::redis(SECOND).await?;
    let address = format!("127.0.0.1:{}", redis.port);
    let words = |floor: &str, port: u16| vec![floor.to_owned(), port.to_string()];
    let f0 = Server::start(FIRST, &own, |port| words("f0", port)).await?;
    let f1 = Server::start(FIRST, &own, |port| [words("f1", port), vec![address.clone()]].concat())
        .await?;
    let function = Server::start(FIRST, &own, |port| {
        [words("f1", port), vec![address.clone(), "--function".into()]].concat()
    })
    .await?;
    let memory = sidecar(bench, FIRST, &classes, None).await?;
    let on_redis = sidecar(bench, FIRST, &classes, Some(&address)).await?;
    let servers = [
        (&f0, Kind::Floor),
        (&memory, Kind::Sidecar),
        (&f1, Kind::Floor),
        (&on_redis, Kind::Sidecar),
        (&function, Kind::Floor),
    ];
    let mut rates: [Vec<f64>; 6] = Default::default();
    let mut costs: [Vec<f64>; 5] = Default::default();
    let mut wire = Vec::new();
    for round in 0..=rounds {
        for (index, (server, kind)) in servers.iter().enumerate() {
            let before = calls(&address).await?;
            let (rate, cost) = slice(server, *kind, lasts).await?;
            // The first round warms up.
            if round > 0 {
                rates[index].push(rate);
                costs[index].push(cost);
                if index == 3 {
                    let requests = rate * lasts.as_secs_f64();
                    wire.push((calls(&address).await? - before) as f64 / requests);
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        let rate = direct(&address, lasts / 3).await?;
        if round > 0 {
            rates[5].push(rate);
        }
    }
    let ratio = |a: &[f64], b: &[f64]| median(a.iter().zip(b).map(|(a, b)| a / b).collect());
    let rate = |index: usize| median(rates[index].clone());
    let cost = |index: usize| median(costs[index].clone());
    let from = |ours: usize, floor: &str, its: usize| {
        format!("{:.0} of {:.0} requests/s ({floor})", rate(ours), rate(its))
    };
    let costs_of =
        |ours: usize, its: usize| format!("{:.1} of {:.1} µs a request", cost(ours), cost(its));
    Ok(vec![
        Figure::new(
            "Redis: cycles ÷ (F1 ÷ 2)",
            ratio(&rates[3], &rates[2]),
            "",
            Target::AtLeast(0.85),
        )
        .note(from(3, "F1", 2)),
        Figure::new(
            "memory: cycles ÷ (F0 ÷ 2)",
            ratio(&rates[1], &rates[0]),
            "",
            Target::AtLeast(0.8),
        )
        .note(from(1, "F0", 0)),
        Figure::new("Redis: CPU ÷ F1's", ratio(&costs[3], &costs[2]), "", Target::AtMost(1.25))
            .note(costs_of(3, 2)),
        Figure::new(
            "Redis: cycles ÷ (F1 (FCALL) ÷ 2)",
            ratio(&rates[3], &rates[4]),
            "",
            Target::None,
        )
        .note(from(3, "F1 (FCALL)", 4)),
        Figure::new("Redis: CPU ÷ F1 (FCALL)'s", ratio(&costs[3], &costs[4]), "", Target::None)
            .note(costs_of(3, 4)),
        Figure::new("memory: CPU ÷ F0's", ratio(&costs[1], &costs[0]), "", Target::AtMost(1.25))
            .note(costs_of(1, 0)),
        Figure::new("Redis: calls a request", median(wire), "", Target::AtMost(1.05)),
        Figure::new("F1 ÷ F2", ratio(&rates[2], &rates[5]), "", Target::None)
            .note(format!("F2: {:.0} calls/s with no HTTP", rate(5))),
    ])
}
