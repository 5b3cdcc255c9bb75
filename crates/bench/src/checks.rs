//! Checks of rate limits, as fast as 32 connections can, beside the floors: one request each.

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
};

const CONNECTIONS: usize = 32;
/// What the servers are asked, in the order in which they are measured.
const EXACT: &str = "/v1/ratelimits/exact/check";
const LEASED: &str = "/v1/ratelimits/leased/check";
/// All connections at once, where each one of the others has a key of its own.
const ONE_KEY: &str = "/v1/ratelimits/exact/check?key=one";

/// Two classes that never refuse what the bench asks.
fn classes() -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let class = |name: &str, more: &str| {
        format!(
            "---\n{{apiVersion: holdfast.dev/v1alpha1, kind: RateLimit, metadata: {{name: {name}}}, \
             spec: {{backend: any, limits: [{{name: l, limit: 100000000, windowSeconds: 60}}]{more}}}}}\n"
        )
    };
    let leased = ", accuracy: Leased, leased: {batch: 1000, maxStalenessSeconds: 5}";
    let yaml = [class("exact", ""), class("leased", leased)].concat();
    std::fs::write(dir.path().join("checks.yaml"), yaml)?;
    Ok(dir)
}

async fn sidecar(
    bench: &Bench,
    classes: &tempfile::TempDir,
    redis: Option<&str>,
) -> anyhow::Result<Server> {
    let file: PathBuf = classes.path().join("checks.yaml");
    let redis = redis.map(|url| format!("redis://{url}"));
    let args = |port: u16| {
        let mut args: Vec<String> =
            ["dev", "--admin", "127.0.0.1:0", "--log", "warn", "-f"].map(str::to_owned).into();
        args.push(file.display().to_string());
        args.extend(["--listen".into(), format!("127.0.0.1:{port}")]);
        args.extend(redis.into_iter().flat_map(|url| ["--redis".into(), url]));
        args
    };
    let server = Server::start(FIRST, &bench.bin.join("holdfast"), args).await?;
    for _ in 0..500 {
        let mut connection = Connection::open(server.port).await?;
        if connection.call("POST", EXACT).await.is_ok() {
            return Ok(server);
        }
        sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("the sidecar does not answer checks")
}

/// One slice: requests per second.
async fn slice(server: &Server, path: &'static str, lasts: Duration) -> anyhow::Result<f64> {
    let (mut tasks, begun) = (JoinSet::new(), Instant::now());
    for key in 0..CONNECTIONS {
        let mut connection = Connection::open(server.port).await?;
        let (method, path) = match path {
            "/" => ("GET", path.to_owned()),
            path if path.contains('?') => ("POST", path.to_owned()),
            path => ("POST", format!("{path}?key=k{key}")),
        };
        tasks.spawn(async move {
            let mut requests = 0u64;
            while begun.elapsed() < lasts {
                connection.call(method, &path).await?;
                requests += 1;
            }
            anyhow::Ok(requests)
        });
    }
    let mut requests = 0;
    while let Some(done) = tasks.join_next().await {
        requests += done??;
    }
    Ok(requests as f64 / begun.elapsed().as_secs_f64())
}

/// Rates beside the floors'.
pub async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let (rounds, lasts) = if bench.quick { (2, 1) } else { (7, 3) };
    let lasts = Duration::from_secs(lasts);
    let (own, classes) = (std::env::current_exe()?, classes()?);
    let redis = Server::redis(SECOND).await?;
    let address = format!("127.0.0.1:{}", redis.port);
    let words = |floor: &str, port: u16| vec![floor.to_owned(), port.to_string()];
    let f0 = Server::start(FIRST, &own, |port| words("f0", port)).await?;
    let f1 = Server::start(FIRST, &own, |port| {
        [words("f1", port), vec![address.clone(), "--check".into()]].concat()
    })
    .await?;
    let memory = sidecar(bench, &classes, None).await?;
    let on_redis = sidecar(bench, &classes, Some(&address)).await?;
    let asked = [
        (&f0, "/"),
        (&f1, "/"),
        (&memory, EXACT),
        (&on_redis, EXACT),
        (&on_redis, LEASED),
        (&on_redis, ONE_KEY),
    ];
    let mut rates: [Vec<f64>; 6] = Default::default();
    let mut wire: [Vec<f64>; 6] = Default::default();
    for round in 0..=rounds {
        for (index, (server, path)) in asked.iter().enumerate() {
            let before = calls(&address).await?;
            let rate = slice(server, path, lasts).await?;
            // The first round warms up.
            if round > 0 {
                rates[index].push(rate);
                let requests = rate * lasts.as_secs_f64();
                wire[index].push((calls(&address).await? - before) as f64 / requests);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    let figure = |what: &str, ours: usize, its: usize, target: Target| {
        let ratios = rates[ours].iter().zip(&rates[its]).map(|(ours, its)| ours / its).collect();
        let (ours, its) = (median(rates[ours].clone()), median(rates[its].clone()));
        Figure::new(what, median(ratios), "", target)
            .note(format!("{ours:.0} of {its:.0} requests/s"))
    };
    let [.., leased_calls, one_key_calls] = wire;
    Ok(vec![
        figure("checks on Redis, Exact ÷ F1 (FCALL)", 3, 1, Target::AtLeast(0.85)),
        figure("checks on Redis, Exact, of one key ÷ F1 (FCALL)", 5, 1, Target::AtLeast(1.3)),
        Figure::new("checks of one key: calls a check", median(one_key_calls), "", Target::None),
        figure("checks in memory ÷ F0", 2, 0, Target::AtLeast(0.8)),
        figure("checks on Redis, Leased ÷ F0", 4, 0, Target::AtLeast(0.8)),
        Figure::new(
            "checks, Leased: calls a check",
            median(leased_calls),
            "",
            Target::AtMost(0.05),
        ),
    ])
}
