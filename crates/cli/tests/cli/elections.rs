//! Leaders in processes of their own, on a real Redis: how they end, and when the next one leads.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    server::RedisServer,
    support::{Dev, classes, field},
};

const LEASE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(1);
/// The lock is there for the greeting that the support waits for.
const CLASSES: &str = "\
apiVersion: holdfast.dev/v1alpha1
kind: LeaderElection
metadata: {name: boss}
spec: {leaseDurationSeconds: 3, retryPeriodSeconds: 1}
---
apiVersion: holdfast.dev/v1alpha1
kind: Lock
metadata: {name: any}
spec: {}
";

/// A pod that stands, and leads if nobody else does.
fn candidate(files: &Path, redis: &RedisServer, wait: u32) -> Dev {
    let dev = Dev::start(files, &["--redis", &format!("redis://{}", redis.address())]);
    let stands = dev.post(&format!("/v1/elections/boss/campaign?waitSeconds={wait}"));
    assert!(stands.contains("200 OK"), "{stands}");
    dev
}

/// How long it takes until this one leads, and its term.
fn until_leads(dev: &Dev, begun: Instant) -> (Duration, u64) {
    while begun.elapsed() < Duration::from_secs(30) {
        let answer = dev.get("/v1/elections/boss/leading");
        if answer.contains("200 OK") {
            return (begun.elapsed(), field(&answer, "term").parse().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("nobody leads");
}

#[test]
fn a_killed_leader_is_replaced_within_its_lease_and_one_retry() {
    let (_dir, files) = classes(CLASSES);
    let redis = RedisServer::start(&[]);
    let leader = candidate(&files, &redis, 10);
    let (_, first) = until_leads(&leader, Instant::now());
    let (next, other) = (candidate(&files, &redis, 0), candidate(&files, &redis, 0));
    let begun = Instant::now();
    // Signal 9: nothing is released.
    drop(leader);
    let (took, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            while begun.elapsed() < LEASE + RETRY {
                if other.get("/v1/elections/boss/leading").contains("200 OK") {
                    return Some(begun.elapsed());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            None
        });
        // Who asked first is next; the other stands by.
        let next = until_leads(&next, begun);
        assert_eq!(other.join().unwrap(), None, "two leaders");
        next
    });
    assert!(took <= LEASE + RETRY, "{took:?}");
    assert!(second > first, "{second} after {first}");
}

#[test]
fn a_leader_that_resigns_or_is_stopped_is_replaced_at_once() {
    let (_dir, files) = classes(CLASSES);
    let redis = RedisServer::start(&[]);
    let leader = candidate(&files, &redis, 10);
    let (_, first) = until_leads(&leader, Instant::now());
    let next = candidate(&files, &redis, 0);
    // It stands in the queue of the store by then.
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let resigned = leader.post("/v1/elections/boss/resign?withdraw=true");
    assert!(resigned.contains("200 OK"), "{resigned}");
    let (took, second) = until_leads(&next, begun);
    assert!(took <= Duration::from_millis(200), "{took:?}");
    assert!(second > first);

    let last = candidate(&files, &redis, 0);
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let pid = next.pid().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let (took, third) = until_leads(&last, begun);
    assert!(took <= Duration::from_millis(500), "its term was released: {took:?}");
    assert!(third > second);
}
