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

/// A lock whose holds last for two seconds.
const SHORT: &str = "{apiVersion: holdfast.dev/v1alpha1, kind: Lock, metadata: {name: short}, \
                     spec: {ttlSeconds: 2}}";

/// Appends the time to a file ten times a second, whatever signals come.
const STUBBORN: &str = "trap '' TERM; while :; do date +%s%3N >> \"$1\"; sleep 0.1; done";

fn dev(more: &[&str]) -> (tempfile::TempDir, Dev) {
    let (dir, path) = classes(SHORT);
    (dir, Dev::start(&path, more))
}

fn run(dev: &Dev, more: &[&str], command: &[&str]) -> std::process::Output {
    holdfast(&[&["run", "--url", &dev.url, "--lock", "short"], more, &["--"], command].concat())
}

/// Starts the stubborn command under the lock; it writes to a file.
fn stubborn(dev: &Dev, file: &Path) -> std::process::Child {
    Command::new(HOLDFAST)
        .args(["run", "--url", &dev.url, "--lock", "short", "--", "sh", "-c", STUBBORN, "sh"])
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
    let output = run(&dev, &[], &["sleep", "4"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn it_waits_its_turn() {
    let (_dir, dev) = dev(&[]);
    let held = dev.post("/v1/locks/short/acquire?bind=process");
    let waiting = Command::new(HOLDFAST)
        .args(["run", "--url", &dev.url, "--lock", "short", "--", "true"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it waits", || dev.get("/v1/locks/short").contains("\"waiters\":1"));
    dev.post(&format!("/v1/locks/short/release?holdId={}", field(&held, "holdId")));
    assert!(waiting.wait_with_output().unwrap().status.success());
}

/// A1 and A2: the holder's sidecar is frozen, and the command ignores SIGTERM. It is ended before
/// another is granted the lock.
#[test]
fn the_command_ends_before_another_holds_although_its_sidecar_is_frozen() {
    let redis = RedisServer::start(&[]);
    let url = format!("redis://{}", redis.address());
    let ((_one, frozen), (_two, other)) = (dev(&["--redis", &url]), dev(&["--redis", &url]));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("beats");
    let mut child = stubborn(&frozen, &file);
    eventually("the command runs", || last_ms(&file) > 0);
    frozen.pause(true);
    let granted = other.post("/v1/locks/short/acquire?waitSeconds=20");
    let granted_ms = now_ms();
    assert!(granted.contains("200 OK"), "{granted}");
    let last = last_ms(&file);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(last_ms(&file), last, "the command goes on after the next grant");
    assert!(last < granted_ms, "{last} {granted_ms}");
    let status = child.wait().unwrap();
    frozen.pause(false);
    assert_eq!(status.code(), Some(74));
}

/// D1: the program that watches over the hold is killed; the command must not go on alone.
#[test]
fn the_command_dies_with_the_program_that_watches_over_its_hold() {
    let (_dir, dev) = dev(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("beats");
    let mut child = stubborn(&dev, &file);
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
    let mut child = stubborn(&dev, &file);
    eventually("the command runs", || last_ms(&file) > 0);
    dev.post("/v1/locks/short/force-release");
    assert_eq!(child.wait().unwrap().code(), Some(74));
}
