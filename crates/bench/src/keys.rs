//! What a million keys of one rate limit cost a Redis, beside the least that could keep their state:
//! a string under the same name with nothing but the numbers that the algorithm needs.

use holdfast_backend::redis::{keys::ObjectKeys, scripts::Scripts, scripts::Transition};
use holdfast_core::{
    Address, ClassName, Key, Kind,
    ratelimit::{Algorithm, Limit, Policy, Rule},
};
use redis::aio::MultiplexedConnection;

use crate::{
    Bench,
    figures::{Figure, Target},
    process::{SECOND, Server},
    script::{NAMESPACE, connect, open},
};

/// Commands that go to the server at once.
const AT_ONCE: usize = 1_000;
/// Long enough for no key to end while it is measured, in seconds and milliseconds.
const WINDOW: u32 = 3_600;
const ENDS_MS: u32 = 3_600_000;

fn names(from: usize, to: usize) -> anyhow::Result<Vec<String>> {
    let class = ClassName::new("many")?;
    let name = |key: usize| {
        let key = Key::new(format!("user/{key:07}"))?;
        let (kind, namespace) = (Kind::RateLimit, NAMESPACE.into());
        anyhow::Ok(ObjectKeys::new(&Address { kind, namespace, class: class.clone(), key }).rate())
    };
    (from..to).map(name).collect()
}

async fn used(connection: &mut MultiplexedConnection) -> anyhow::Result<f64> {
    let text: String = redis::cmd("INFO").arg("memory").query_async(connection).await?;
    let line = text.lines().find_map(|line| line.strip_prefix("used_memory:"));
    Ok(line.unwrap_or_default().trim().parse()?)
}

/// Of a record, the numbers without which its algorithm could not go on.
fn least(algorithm: Algorithm, record: &str) -> String {
    let mut numbers = record.split(' ').skip(1);
    match algorithm {
        // The generic cell rate algorithm can do with one time.
        Algorithm::TokenBucket => numbers.next().unwrap_or_default().to_owned(),
        Algorithm::SlidingWindow | Algorithm::FixedWindow | Algorithm::Concurrency => {
            numbers.skip(1).collect::<Vec<_>>().join(" ")
        }
    }
}

/// Bytes a key, and of the least that could be kept instead.
async fn weigh(algorithm: Algorithm, count: usize) -> anyhow::Result<[f64; 2]> {
    let (ours, plain) = (Server::redis(SECOND).await?, Server::redis(SECOND).await?);
    let address = |server: &Server| format!("127.0.0.1:{}", server.port);
    open(&address(&ours)).await?;
    let mut ours = connect(&address(&ours)).await?;
    let mut plain = connect(&address(&plain)).await?;
    let limit =
        Limit { name: "l".into(), algorithm, limit: 100, window_seconds: WINDOW, burst: 100 };
    let policy = Policy::new(1, vec![Rule::new(&limit)]);
    let before = [used(&mut ours).await?, used(&mut plain).await?];
    for from in (0..count).step_by(AT_ONCE) {
        let names = names(from, (from + AT_ONCE).min(count))?;
        let (mut checks, mut reads, mut writes) = (redis::pipe(), redis::pipe(), redis::pipe());
        for name in &names {
            let function = Scripts::shared().function(Transition::RatelimitCheck);
            let check = checks.cmd("FCALL").arg(function).arg(1).arg(name).arg(&policy.token);
            check.arg("90").arg("e").arg("0").arg("0").ignore();
            reads.cmd("GET").arg(name);
        }
        checks.exec_async(&mut ours).await?;
        let records: Vec<String> = reads.query_async(&mut ours).await?;
        for (name, record) in names.iter().zip(&records) {
            let write = writes.cmd("SET").arg(name).arg(least(algorithm, record));
            write.arg("PX").arg(ENDS_MS).ignore();
        }
        writes.exec_async(&mut plain).await?;
    }
    let after = [used(&mut ours).await?, used(&mut plain).await?];
    for connection in [&mut ours, &mut plain] {
        let there: usize = redis::cmd("DBSIZE").query_async(connection).await?;
        anyhow::ensure!(there >= count, "{there} keys of {count}");
    }
    Ok([0, 1].map(|i| (after[i] - before[i]) / count as f64))
}

/// Memory of a key, beside the least.
pub async fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (algorithm, what, count) in [
        (Algorithm::TokenBucket, "TokenBucket", 1_000_000),
        (Algorithm::SlidingWindow, "SlidingWindow", 100_000),
        (Algorithm::FixedWindow, "FixedWindow", 100_000),
    ] {
        let count = if bench.quick { 10_000 } else { count };
        let [ours, least] = weigh(algorithm, count).await?;
        let what = format!("{count} keys, {what}: memory ÷ the least");
        figures.push(
            Figure::new(&what, ours / least, "", Target::AtMost(1.5))
                .note(format!("{ours:.0} of {least:.0} bytes a key, its name and end included")),
        );
    }
    Ok(figures)
}
