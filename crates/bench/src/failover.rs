//! From a leader's end to the next leader, in processes of their own on one Redis.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Bench,
    figures::{Figure, Target, median},
    load::Connection,
    process::{ANY, Server},
};

/// As the class says.
const LEASE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(1);

/// A pod that stands.
async fn candidate(
    bench: &Bench,
    classes: &tempfile::TempDir,
    redis: &Server,
) -> anyhow::Result<Server> {
    let file = classes.path().join("election.yaml").display().to_string();
    let server = Server::start(ANY, &bench.bin.join("holdfast"), |port| {
        let words = ["dev", "--admin", "127.0.0.1:0", "--log", "warn", "-f"].map(str::to_owned);
        let (listen, redis) =
            (format!("127.0.0.1:{port}"), format!("redis://127.0.0.1:{}", redis.port));
        [&words[..], &[file, "--listen".into(), listen, "--redis".into(), redis]].concat()
    })
    .await?;
    Connection::open(server.port).await?.call("POST", "/v1/elections/boss/campaign").await?;
    Ok(server)
}

/// How long it takes until this one leads.
async fn until_leads(server: &Server, begun: Instant) -> anyhow::Result<f64> {
    let mut connection = Connection::open(server.port).await?;
    let leads = async {
        while connection.call("GET", "/v1/elections/boss/leading").await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(30), leads).await.context("nobody leads")?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Crashes and resignations.
pub async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let rounds = if bench.quick { 1 } else { 7 };
    let (classes, redis) = (tempfile::tempdir()?, Server::redis(ANY).await?);
    let yaml = "{apiVersion: holdfast.dev/v1alpha1, kind: LeaderElection, metadata: {name: boss}, \
                spec: {leaseDurationSeconds: 3, retryPeriodSeconds: 1}}\n";
    std::fs::write(classes.path().join("election.yaml"), yaml)?;
    let mut leader = candidate(bench, &classes, &redis).await?;
    until_leads(&leader, Instant::now()).await?;
    let (mut crashed, mut resigned) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let next = candidate(bench, &classes, &redis).await?;
        let begun = Instant::now();
        leader.kill()?;
        crashed.push(until_leads(&next, begun).await?);

        let after = candidate(bench, &classes, &redis).await?;
        sleep(Duration::from_millis(500)).await;
        let mut connection = Connection::open(next.port).await?;
        let begun = Instant::now();
        let resigning = connection.call("POST", "/v1/elections/boss/resign?withdraw=true");
        let (led, done) = tokio::join!(until_leads(&after, begun), resigning);
        done?;
        resigned.push(led?);
        leader = after;
    }
    let worst = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    let lease = Target::AtMost((LEASE + RETRY).as_secs_f64());
    let note = format!("median {:.2} s; lease 3 s, retry 1 s", median(crashed.clone()));
    let middle = format!("median {:.1} ms", median(resigned.clone()) * 1e3);
    let (killed, gave) = (worst(&crashed), worst(&resigned) * 1e3);
    Ok(vec![
        Figure::new("a leader killed: next one, at worst", killed, " s", lease).note(note),
        Figure::new("a leader resigns: next one, at worst", gave, " ms", Target::AtMost(200.0))
            .note(middle),
    ])
}
