//! What carries a check: a Unix socket beside TCP, and system calls.
//!
//! System calls are counted by `perf` while a known number of checks runs; a tracer that stops the
//! server at each of them would make it batch more than it does. Where there is no perf, there is no
//! figure.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Bench,
    figures::{Figure, Target, median},
    load::Connection,
    process::{FIRST, SECOND, Server},
    rls,
    steady::{EXACT, classes, sidecar, socket},
};

const CONNECTIONS: usize = 32;
/// Requests that a connection has in flight, where it has several.
const IN_FLIGHT: usize = 8;

/// Until when a connection asks.
#[derive(Clone, Copy)]
enum Until {
    Time(Instant),
    Count(usize),
}

/// Checks over one connection; how many.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<S>,
    (method, path): (&str, String),
    until: Until,
) -> anyhow::Result<usize> {
    let mut asked = 0;
    while match until {
        Until::Time(end) => Instant::now() < end,
        Until::Count(all) => asked < all,
    } {
        connection.call(method, &path).await?;
        asked += 1;
    }
    Ok(asked)
}

fn question(path: &str, key: usize) -> (&'static str, String) {
    match path {
        "/" => ("GET", path.to_owned()),
        path => ("POST", format!("{path}?key=k{key}")),
    }
}

/// Checks over TCP or, if there is one, a Unix socket; how many.
async fn load(
    server: &Server,
    unix: Option<&Path>,
    path: &str,
    until: Until,
) -> anyhow::Result<usize> {
    let mut tasks = JoinSet::new();
    for key in 0..CONNECTIONS {
        let question = question(path, key);
        match unix {
            None => {
                let connection = Connection::open(server.port).await?;
                tasks.spawn(ask(connection, question, until));
            }
            Some(unix) => {
                let connection = Connection::open_unix(unix).await?;
                tasks.spawn(ask(connection, question, until));
            }
        }
    }
    let mut asked = 0;
    while let Some(done) = tasks.join_next().await {
        asked += done??;
    }
    Ok(asked)
}

/// Checks a second over a Unix socket beside those over TCP, of one server in memory.
pub async fn sockets(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let (rounds, lasts) = if bench.quick { (2, 1) } else { (7, 3) };
    let lasts = Duration::from_secs(lasts);
    let classes = classes()?;
    let server = sidecar(bench, FIRST, &classes, None).await?;
    let unix = socket(&classes, None);
    let (mut rates, mut costs): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
    for round in 0..=rounds {
        for (index, unix) in [None, Some(&*unix)].into_iter().enumerate() {
            let (begun, cpu) = (Instant::now(), server.cpu()?);
            let asked = load(&server, unix, EXACT, Until::Time(begun + lasts)).await?;
            // The first round warms up.
            if round > 0 {
                rates[index].push(asked as f64 / begun.elapsed().as_secs_f64());
                costs[index].push((server.cpu()? - cpu) * 1e6 / asked as f64);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    let ratio = |over: &[f64], under: &[f64]| {
        median(over.iter().zip(under).map(|(over, under)| over / under).collect())
    };
    let rate = ratio(&rates[1], &rates[0]);
    let cost = ratio(&costs[0], &costs[1]);
    let [tcp, unix] = rates.map(median);
    let [tcp_cost, unix_cost] = costs.map(median);
    Ok(vec![
        Figure::new("checks over a Unix socket ÷ TCP", rate, "", Target::AtLeast(1.3))
            .note(format!("{unix:.0} of {tcp:.0} requests/s, in memory")),
        Figure::new("CPU of a check over TCP ÷ a Unix socket's", cost, "", Target::None)
            .note(format!("{tcp_cost:.1} of {unix_cost:.1} µs")),
    ])
}

/// So many checks over each connection, eight of them in flight at a time; how many.
async fn pipelined(server: &Server, each: usize) -> anyhow::Result<usize> {
    let mut tasks = JoinSet::new();
    for key in 0..CONNECTIONS {
        let mut connection = Connection::open(server.port).await?;
        let (method, path) = question(EXACT, key);
        tasks.spawn(async move {
            for _ in 0..each / IN_FLIGHT {
                connection.pipeline(method, &path, IN_FLIGHT).await?;
            }
            anyhow::Ok(each / IN_FLIGHT * IN_FLIGHT)
        });
    }
    let mut asked = 0;
    while let Some(done) = tasks.join_next().await {
        asked += done??;
    }
    Ok(asked)
}

/// A perf that counts a process's system calls until it is asked for them.
struct Counter {
    perf: Child,
    text: tempfile::NamedTempFile,
}

impl Counter {
    async fn start(server: &Server) -> anyhow::Result<Self> {
        let text = tempfile::NamedTempFile::new()?;
        let perf = Command::new("perf")
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p"])
            .arg(server.pid().to_string())
            .arg("-o")
            .arg(text.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("perf cannot be run")?;
        // It says nothing when it has begun.
        sleep(Duration::from_millis(500)).await;
        Ok(Counter { perf, text })
    }

    fn stop(mut self) -> anyhow::Result<f64> {
        Command::new("kill").args(["-INT", &self.perf.id().to_string()]).status()?;
        self.perf.wait()?;
        let text = std::fs::read_to_string(self.text.path())?;
        let line = text.lines().find(|line| line.contains("raw_syscalls:sys_enter"));
        let count = line.and_then(|line| line.split(',').next()?.parse::<f64>().ok());
        count.context("perf does not count system calls here")
    }
}

/// System calls of a server for each of its answers.
async fn each(
    server: &Server,
    checks: impl Future<Output = anyhow::Result<usize>>,
) -> anyhow::Result<f64> {
    let counter = Counter::start(server).await?;
    let asked = checks.await?;
    Ok(counter.stop()? / asked as f64)
}

/// System calls for each check, beside the floors'.
pub async fn syscalls(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    if Command::new("perf").arg("version").stdout(Stdio::null()).status().is_err() {
        println!("no perf here: system calls are not counted");
        return Ok(Vec::new());
    }
    let (rounds, count) = if bench.quick { (1, 200) } else { (5, 2_000) };
    let (own, classes) = (std::env::current_exe()?, classes()?);
    let redis = Server::redis(SECOND).await?;
    let address = format!("127.0.0.1:{}", redis.port);
    let f0 = Server::start(FIRST, &own, |port| vec!["f0".into(), port.to_string()]).await?;
    let f1 = Server::start(FIRST, &own, |port| {
        ["f1".to_owned(), port.to_string(), address.clone(), "--check".into()].into()
    })
    .await?;
    let memory = sidecar(bench, FIRST, &classes, None).await?;
    let on_redis = sidecar(bench, FIRST, &classes, Some(&address)).await?;
    let (envoys, _classes) = rls::sidecar(bench).await?;
    let asked = [(&f0, "/"), (&f1, "/"), (&memory, EXACT), (&on_redis, EXACT)];
    let mut calls: [Vec<f64>; 6] = Default::default();
    for _ in 0..rounds {
        for (index, (server, path)) in asked.into_iter().enumerate() {
            let checks = load(server, None, path, Until::Count(count));
            calls[index].push(each(server, checks).await?);
        }
        calls[4].push(each(&envoys, rls::ask_often(&envoys, count)).await?);
        calls[5].push(each(&on_redis, pipelined(&on_redis, count)).await?);
    }
    let [f0, f1, memory, on_redis, envoys, pipelined] = calls.map(median);
    Ok(vec![
        Figure::new("syscalls a check on Redis, 8 in flight", pipelined, "", Target::AtMost(1.5))
            .note("HTTP/1.1 pipelining over 32 connections"),
        Figure::new("syscalls a check on Redis, 1 in flight", on_redis, "", Target::None)
            .note(format!("{memory:.2} in memory; F0 {f0:.2}, F1 {f1:.2}")),
        Figure::new("syscalls a check, Envoy's gRPC", envoys, "", Target::AtMost(1.5))
            .note("8 in flight on a connection share its reads and writes"),
    ])
}
