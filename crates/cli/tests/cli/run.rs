//! `holdfast run`: a command under a hold, and never longer than it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    server::RedisServer,
    support::{Dev, HOLDFAST, classes, eventually, field, holdfast, now_ms, stderr, stdout},
};

/// A lock whose holds last for four seconds, and one whose holds a slow machine has time to renew
/// and to end.
const CLASSES: &str = "\
apiVersion: holdfast.dev/v1alpha1
kind: Lock
metadata: {name: short}
spec: {ttlSeconds: 4}
---
apiVersion: holdfast.dev/v1alpha1
kind: Lock
metadata: {name: long}
spec: {ttlSeconds: 10, keys: [default, a, b]}
";

/// Appends the time to a file ten times a second, whatever signals come.
const STUBBORN: &str = "trap '' TERM; while :; do date +%s%3N >> \"$1\"; sleep 0.1; done";

fn dev(more: &[&str]) -> (tempfile::TempDir, Dev) {
    let (dir, path) = classes(CLASSES);
    (dir, Dev::start(&path, more))
}

fn run(dev: &Dev, more: &[&str], command: &[&str]) -> std::process::Output {
    holdfast(&[&["run", "--url", &dev.url, "--lock", "short"], more, &["--"], command].concat())
}

/// Starts the stubborn command under a lock; it writes to a file.
fn stubborn(dev: &Dev, lock: &[&str], file: &Path) -> std::process::Child {
    Command::new(HOLDFAST)
        .args(["run", "--url", &dev.url, "--lock"])
        .args(lock)
        .args(["--", "sh", "-c", STUBBORN, "sh"])
        .arg(file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn last_ms(file: &Path) -> u128 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0)
}

#[test]
fn the_command_sees_its_fence_and_its_exit_code_is_passed_on() {
    let (_dir, dev) = dev(&[]);
    let output = run(&dev, &[], &["sh", "-c", "echo $HOLDFAST_FENCE $HOLDFAST_KEY; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    let out = stdout(&output);
    let (fence, key) = out.trim().split_once(' ').unwrap();
    assert!(fence.parse::<u64>().is_ok() && key == "default", "{out}");
    assert!(dev.get("/v1/locks/short").contains("\"held\":false"), "released at the end");
    assert_eq!(run(&dev, &[], &["/no/such/program"]).status.code(), Some(127));
    let killed = run(&dev, &[], &["sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(137));
}

#[test]
fn exit_code_75_when_it_was_not_acquired() {
    let (_dir, dev) = dev(&[]);
    dev.post("/v1/locks/short/acquire");
    for wait in ["0", "0.3"] {
        let output = run(&dev, &["--wait", wait], &["touch", "/never"]);
        assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    }
    let wrong = holdfast(&["run", "--url", &dev.url, "--lock", "shrt", "--", "true"]);
    assert_eq!(wrong.status.code(), Some(75));
    assert!(stderr(&wrong).contains("did you mean \"short\"?"), "{}", stderr(&wrong));
}

#[test]
fn a_command_longer_than_its_time_to_live_keeps_the_lock() {
    let (_dir, dev) = dev(&[]);
    let output = holdfast(&["run", "--url", &dev.url, "--lock", "long", "--", "sleep", "12"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn it_waits_its_turn() {
    let (_dir, dev) = dev(&[]);
    let held = dev.post("/v1/locks/short/acquire?bind=process");
    let waiting = Command::new(HOLDFAST)
        .args(["run", "--url", &dev.url, "--lock", "short", "--", "sleep", "0.5"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it waits", || dev.get("/v1/locks/short").contains("\"waiters\":1"));
    // For longer than its own hold will last.
    std::thread::sleep(Duration::from_secs(6));
    dev.post(&format!("/v1/locks/short/release?holdId={}", field(&held, "holdId")));
    assert!(waiting.wait_with_output().unwrap().status.success());
}

/// A1 and A2: the holder's sidecar is frozen, and the command ignores SIGTERM. It is ended before
/// the deadline of its hold, which is a second before another is granted the lock; also where it is
/// to have no time between the signals.
#[test]
fn the_command_ends_before_another_holds_although_its_sidecar_is_frozen() {
    let redis = RedisServer::start(&[]);
    let url = format!("redis://{}", redis.address());
    let ((_one, frozen), (_two, other)) = (dev(&["--redis", &url]), dev(&["--redis", &url]));
    let dir = tempfile::tempdir().unwrap();
    // They look at their holds at different times.
    let runs = [("default", "2"), ("a", "0"), ("b", "0")].map(|(key, grace)| {
        let file = dir.path().join(key);
        let child = stubborn(&frozen, &["long", "--key", key, "--grace", grace], &file);
        eventually("the command runs", || last_ms(&file) > 0);
        std::thread::sleep(Duration::from_millis(350));
        (key, file, child)
    });
    frozen.pause(true);
    std::thread::scope(|scope| {
        for (key, file, mut child) in runs {
            let other = &other;
            scope.spawn(move || {
                let acquire = format!("/v1/locks/long/acquire?waitSeconds=40&key={key}");
                let granted = other.post(&acquire);
                let granted_ms = now_ms();
                assert!(granted.contains("200 OK"), "{granted}");
                let last = last_ms(&file);
                std::thread::sleep(Duration::from_millis(400));
                assert_eq!(last_ms(&file), last, "{key} goes on after the next grant");
                assert!(last + 300 < granted_ms, "{key}: {last} {granted_ms}");
                assert_eq!(child.wait().unwrap().code(), Some(74));
            });
        }
    });
    frozen.pause(false);
}

/// D1: the program that watches over the hold is killed; the command must not go on alone.
#[test]
fn the_command_dies_with_the_program_that_watches_over_its_hold() {
    let (_dir, dev) = dev(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("beats");
    let mut child = stubborn(&dev, &["short"], &file);
    eventually("the command runs", || last_ms(&file) > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    let granted = dev.post("/v1/locks/short/acquire?waitSeconds=20");
    assert!(granted.contains("200 OK"), "the dead program's hold runs out: {granted}");
    let last = last_ms(&file);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(last_ms(&file), last);
}

#[test]
fn a_hold_taken_by_force_ends_the_command() {
    let (_dir, dev) = dev(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("beats");
    let mut child = stubborn(&dev, &["short"], &file);
    eventually("the command runs", || last_ms(&file) > 0);
    dev.post("/v1/locks/short/force-release");
    assert_eq!(child.wait().unwrap().code(), Some(74));
}
