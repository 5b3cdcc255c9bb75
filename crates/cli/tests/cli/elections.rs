//! Leaders in processes of their own, on a real Redis: how they end, and when the next one leads.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    server::RedisServer,
    support::{Dev, classes, eventually, field},
};

/// An election, and a lock that is there for the greeting that the support waits for.
fn election(lease: Duration, retry: Duration) -> (tempfile::TempDir, PathBuf) {
    classes(&format!(
        "\
apiVersion: holdfast.dev/v1alpha1
kind: LeaderElection
metadata: {{name: boss}}
spec: {{leaseDurationSeconds: {}, retryPeriodSeconds: {}}}
---
apiVersion: holdfast.dev/v1alpha1
kind: Lock
metadata: {{name: any}}
spec: {{}}
",
        lease.as_secs(),
        retry.as_secs()
    ))
}

/// A pod that stands, and leads if nobody else does.
fn candidate(files: &Path, redis: &RedisServer, wait: u32) -> Dev {
    let dev = Dev::start(files, &["--redis", &format!("redis://{}", redis.address())]);
    let stands = dev.post(&format!("/v1/elections/boss/campaign?waitSeconds={wait}"));
    assert!(stands.contains("200 OK"), "{stands}");
    dev
}

/// Waits until so many stand in the queue of the store.
fn until_queued(redis: &RedisServer, count: usize) {
    eventually(&format!("{count} in the queue"), || {
        let queues = redis.keys("hf:*leaderelection/boss/*:q");
        let length = |queue: &String| redis.ask(&format!("LLEN {queue}"));
        queues.iter().any(|queue| length(queue).starts_with(&format!(":{count}\r")))
    });
}

/// How long it takes until this one leads, and its term.
fn until_leads(dev: &Dev, begun: Instant) -> (Duration, u64) {
    while begun.elapsed() < Duration::from_secs(60) {
        let answer = dev.get("/v1/elections/boss/leading");
        if answer.contains("200 OK") {
            return (begun.elapsed(), field(&answer, "term").parse().unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("nobody leads");
}

#[test]
fn a_killed_leader_is_replaced_within_its_lease_and_one_retry() {
    let (lease, retry) = (Duration::from_secs(6), Duration::from_secs(5));
    let (_dir, files) = election(lease, retry);
    let redis = RedisServer::start(&[]);
    let leader = candidate(&files, &redis, 30);
    let (_, first) = until_leads(&leader, Instant::now());
    let next = candidate(&files, &redis, 0);
    until_queued(&redis, 1);
    let other = candidate(&files, &redis, 0);
    until_queued(&redis, 2);
    let begun = Instant::now();
    // Signal 9: nothing is released.
    drop(leader);
    let (took, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            while begun.elapsed() < lease + retry {
                if other.get("/v1/elections/boss/leading").contains("200 OK") {
                    return Some(begun.elapsed());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            None
        });
        // Who asked first is next; the other stands by.
        let next = until_leads(&next, begun);
        assert_eq!(other.join().unwrap(), None, "two leaders");
        next
    });
    assert!(took <= lease + retry, "{took:?}");
    assert!(second > first, "{second} after {first}");
}

/// By the store's word, and not because anybody looks again: that comes after seconds here.
#[test]
fn a_leader_that_resigns_or_is_stopped_is_replaced_at_once() {
    const AT_ONCE: Duration = Duration::from_secs(3);
    let (_dir, files) = election(Duration::from_secs(30), Duration::from_secs(10));
    let redis = RedisServer::start(&[]);
    let leader = candidate(&files, &redis, 30);
    let (_, first) = until_leads(&leader, Instant::now());
    let next = candidate(&files, &redis, 0);
    until_queued(&redis, 1);
    let begun = Instant::now();
    let resigned = leader.post("/v1/elections/boss/resign?withdraw=true");
    assert!(resigned.contains("200 OK"), "{resigned}");
    let (took, second) = until_leads(&next, begun);
    assert!(took <= AT_ONCE, "{took:?}");
    assert!(second > first);

    let last = candidate(&files, &redis, 0);
    until_queued(&redis, 1);
    let begun = Instant::now();
    let pid = next.pid().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let (took, third) = until_leads(&last, begun);
    assert!(took <= AT_ONCE, "its term was released: {took:?}");
    assert!(third > second);
}
