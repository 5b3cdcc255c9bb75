//! What a sidecar costs that does nothing, and one that keeps ten thousand holds.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    Bench,
    figures::{Figure, Target},
    handover::calls,
    load::Connection,
    process::{FIRST, SECOND, Server},
    throughput::{classes, dev, sidecar},
};

/// The size of the release binaries.
pub fn binaries(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for name in ["holdfast", "holdfast-sidecar", "holdfast-operator"] {
        let Ok(about) = std::fs::metadata(bench.bin.join(name)) else { continue };
        let size = about.len() as f64 / 1_048_576.0;
        figures.push(Figure::new(&format!("size of {name}"), size, " MiB", Target::AtMost(20.0)));
    }
    Ok(figures)
}

/// Memory, CPU and the time to start, in dev mode.
pub async fn idle(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let classes = classes()?;
    let server = Server::start(FIRST, &bench.bin.join("holdfast"), dev(&classes, None)).await?;
    sleep(Duration::from_secs(1)).await;
    let (cpu, watched) = (server.cpu()?, if bench.quick { 3.0 } else { 15.0 });
    sleep(Duration::from_secs_f64(watched)).await;
    let busy = (server.cpu()? - cpu) / watched * 100.0;
    Ok(vec![
        Figure::new("idle, dev mode: memory", server.rss()?, " MiB", Target::AtMost(8.0)),
        Figure::new("idle: CPU", busy, " %", Target::AtMost(0.1)),
        Figure::new(
            "from start to ready",
            server.ready.as_secs_f64() * 1e3,
            " ms",
            Target::AtMost(150.0),
        ),
    ])
}

/// Ten thousand holds on Redis that the sidecar renews.
pub async fn many_holds(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let holds: usize = if bench.quick { 1_000 } else { 10_000 };
    let classes = classes()?;
    let redis = Server::redis(SECOND).await?;
    let address = format!("127.0.0.1:{}", redis.port);
    let server = sidecar(bench, FIRST, &classes, Some(&address)).await?;
    let mut connection = Connection::open(server.port).await?;
    let mut ids = Vec::with_capacity(holds);
    for key in 0..holds {
        ids.push(connection.acquire(&format!("key=many{key}")).await?);
    }
    let (before, cpu) = (calls(&address).await?, server.cpu()?);
    let watched = if bench.quick { 20.0 } else { 30.0 };
    sleep(Duration::from_secs_f64(watched)).await;
    let rate = (calls(&address).await? - before) as f64 / watched;
    let busy = (server.cpu()? - cpu) / watched * 100.0;
    let rss = server.rss()?;
    let mut lost = 0;
    for id in &ids {
        lost += usize::from(connection.call("GET", &format!("/v1/holds/{id}")).await.is_err());
    }
    Ok(vec![
        Figure::new(&format!("{holds} holds: memory"), rss, " MiB", Target::AtMost(40.0)),
        Figure::new(&format!("{holds} holds: lost"), lost as f64, "", Target::AtMost(0.0))
            .note(format!("after two times to live; {rate:.0} renewals/s, {busy:.1} % CPU")),
    ])
}
