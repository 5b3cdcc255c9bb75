//! `holdfast dev`: the whole localhost API from files.

use crate::{
    ports::free_port,
    server::RedisServer,
    support::{Dev, classes, field, holdfast, root, stderr, stdout},
};

fn acquire_and_release(dev: &Dev) {
    let held = dev.post("/v1/locks/nightly-report/acquire?waitSeconds=5");
    assert!(held.contains("200 OK"), "{held}");
    assert!(dev.post("/v1/locks/nightly-report/acquire").contains("\"code\":\"locked\""));
    let state = dev.get("/v1/locks/nightly-report");
    assert!(state.contains("\"held\":true") && state.contains(field(&held, "fence")), "{state}");
    let hold = field(&held, "holdId");
    let released = dev.post(&format!("/v1/locks/nightly-report/release?holdId={hold}"));
    assert!(released.contains("\"released\":true"), "{released}");
}

#[test]
fn the_examples_are_served_on_memory() {
    let dev = Dev::start(&root().join("examples"), &[]);
    assert!(dev.greeting.contains("curl -s -X POST"), "{}", dev.greeting);
    acquire_and_release(&dev);
    assert!(dev.get("/v1").contains("\"guarantee\":\"Process\""));
    assert!(dev.get("/").contains("<title>Holdfast</title>"));
}

#[test]
fn the_same_answers_come_from_a_real_redis() {
    let redis = RedisServer::start(&[]);
    let url = format!("redis://{}", redis.address());
    let dev = Dev::start(&root().join("examples"), &["--redis", &url]);
    acquire_and_release(&dev);
    assert!(dev.get("/v1").contains("\"guarantee\":\"BestEffort\""));
}

#[test]
fn two_processes_on_one_redis_exclude_each_other() {
    let redis = RedisServer::start(&[]);
    let url = format!("redis://{}", redis.address());
    let start = || Dev::start(&root().join("examples"), &["--redis", &url]);
    let (one, two) = (start(), start());
    let held = one.post("/v1/locks/nightly-report/acquire");
    assert!(two.post("/v1/locks/nightly-report/acquire").contains("\"code\":\"locked\""));
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| two.post("/v1/locks/nightly-report/acquire?waitSeconds=20"));
        let hold = field(&held, "holdId");
        one.post(&format!("/v1/locks/nightly-report/release?holdId={hold}"));
        waiting.join().unwrap()
    });
    let fence = |answer: &str| field(answer, "fence").parse::<u64>().unwrap();
    assert!(fence(&waiting) > fence(&held), "{waiting}");
}

#[test]
fn a_redis_that_is_not_there_is_said_at_once() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let examples = root().join("examples");
    let args = ["dev", "-f", examples.to_str().unwrap(), "--redis", &url];
    let output = holdfast(&[&args[..], &["--listen", "127.0.0.1:0"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("does not answer"), "{}", stderr(&output));
}

#[test]
fn a_server_of_a_cluster_is_refused_with_a_reason() {
    let redis = RedisServer::start(&["--cluster-enabled", "yes", "--cluster-port", "0"]);
    let url = format!("redis://{}", redis.address());
    let examples = root().join("examples");
    let args = ["dev", "-f", examples.to_str().unwrap(), "--redis", &url];
    let output = holdfast(&[&args[..], &["--listen", "127.0.0.1:0"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("it is part of a cluster"), "{}", stderr(&output));
}

#[test]
fn files_with_errors_are_not_served() {
    let (_dir, path) = classes("apiVersion: holdfast.dev/v1alpha1\nkind: Lok\n");
    let output = holdfast(&["dev", "-f", path.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("classes.yaml:2:1"), "{}", stderr(&output));
}

#[test]
fn holders_ls_and_release_read_what_dev_serves() {
    let dev = Dev::start(&root().join("examples"), &["--holder", "ann"]);
    dev.post("/v1/locks/shard/acquire?key=2");
    let text = |args: &[&str]| {
        let output = holdfast(args);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert!(text(&["ls", "--url", &dev.url]).contains("/v1/locks/nightly-report"));
    assert!(text(&["holders", "--url", &dev.url, "shard", "--key", "2"]).contains("ann"));
    let taken = text(&["release", "--url", &dev.url, "shard", "--force", "--key", "2"]);
    assert!(taken.contains("taken from ann"), "{taken}");
    assert!(text(&["explain", "hold_lost"]).contains("410"));
}
