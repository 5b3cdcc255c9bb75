//! Start, stop, restart.

use std::{sync::Arc, time::Duration};

use holdfast_core::{Holder, SessionId, Substrate, SystemClock};
use holdfast_runtime::Readiness;
use holdfast_sidecar::{
    Identity, Listen, Serving,
    config::{BUNDLE, Bundles},
    connect::Backends,
    holds::journal::Journal,
    snapshot::Connect,
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::Instant,
};

use crate::{
    client::{App, CLASSES, mk_bundle, mk_bundle_on, start},
    elections::pod_with_classes,
    server::RedisServer,
};

#[tokio::test]
async fn a_stopped_sidecar_answers_waiters_releases_and_closes() {
    let app = start().await;
    let hold = app.hold("slow", "").await;
    let mut stream = app.stream(&hold).await;
    stream.next().await;
    let address = app.address;
    let sidecar = app.serving.sidecar.clone();
    let waiting = async {
        let answer = app.post("/v1/locks/slow/acquire?waitSeconds=30").await;
        answer.is_problem(503, "not_ready");
        app
    };
    let closing = async {
        while sidecar.query("slow", None).await.unwrap().waiters != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sidecar.closing.cancel();
    };
    let (app, ()) = tokio::join!(waiting, closing);
    app.serving.close(true).await;
    assert_eq!(stream.next().await.unwrap().0, "released");
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
}

/// What a quarantine counts on: the old time to live after a class was given a shorter one, no hold
/// has more than that, however often it was renewed. And none is taken anything that it was granted.
#[tokio::test]
async fn holds_of_before_a_class_was_shortened_are_as_short_in_the_end() {
    let redis = RedisServer::start(&[]);
    let longer = CLASSES.replace("ttlSeconds: 4}", "ttlSeconds: 12}");
    let (app, bundles) = pod_with_classes("pod-a", &redis, &longer).await;
    let begun = Instant::now();
    let hold = app.hold("job", "waitSeconds=20").await;
    let trusted = Duration::from_millis(hold["holdForMs"].as_u64().unwrap());
    bundles.apply(&mk_bundle_on("redis", Substrate::Redis, CLASSES));
    // As the store says.
    let left = async || {
        let body = app.get("/v1/locks/job").await.body;
        let ms = body["holder"]["ttlMs"].as_u64();
        Duration::from_millis(ms.unwrap_or_else(|| panic!("{body}")))
    };
    while begun.elapsed() < Duration::from_secs(13) {
        let left = left().await;
        // Milliseconds are rounded.
        let ends = begun.elapsed() + left + Duration::from_millis(10);
        assert!(ends >= trusted, "{ends:?} {trusted:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let left = left().await;
    assert!(left <= Duration::from_secs(4), "{left:?}");
    assert_eq!(app.release("job", &hold).await.status, 200);
}

#[tokio::test]
async fn a_unix_socket_serves_and_is_gone_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listen = [Listen::Unix(path.clone())];
    let start = async || Serving::start(mk_identity(SessionId::random()), &listen, false).await;
    let serving = start().await.unwrap();
    assert!(UnixStream::connect(&path).await.is_ok());
    let second = start().await;
    assert!(second.is_err(), "somebody serves there already");
    serving.close(true).await;
    assert!(!path.exists());
}

pub fn mk_identity(session: SessionId) -> Identity {
    Identity {
        namespace: "default".into(),
        holder: Holder::new("pod-a").unwrap(),
        session,
        service_account: "default".into(),
        in_pod: false,
    }
}

/// One run of the sidecar's container.
struct Run {
    app: App,
    bundles: Bundles,
    readiness: Readiness,
    backends: Arc<Backends>,
}

impl Run {
    async fn start(session: SessionId, kept: Option<std::path::PathBuf>) -> Self {
        let listen: Listen = "127.0.0.1:0".parse().unwrap();
        let serving = Serving::start(mk_identity(session.clone()), &[listen], false).await.unwrap();
        let (hub, clock) = (serving.hub.clone(), Arc::new(SystemClock));
        let backends = Arc::new(Backends::new("default".into(), session, hub, clock, None, None));
        let connect: Arc<dyn Connect> = backends.clone();
        let readiness = Readiness::default();
        let bundles = Bundles::new(serving.sidecar.clone(), connect, readiness.clone(), kept);
        let Listen::Tcp(address) = serving.listens[0].clone() else { unreachable!() };
        Run { app: App { serving, address }, bundles, readiness, backends }
    }
}

#[tokio::test]
async fn the_last_good_bundle_outlives_a_bad_one_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("bundle.json");
    let run = Run::start(SessionId::random(), Some(kept.clone())).await;
    assert_eq!(run.readiness.missing(), [BUNDLE]);
    run.app.post("/v1/locks/job/acquire").await.is_problem(404, "class_not_found");
    let good = serde_json::to_string(&mk_bundle(CLASSES)).unwrap();
    run.bundles.take(&good);
    assert!(run.readiness.missing().is_empty());
    let hold = run.app.hold("job", "").await;
    run.bundles.take("{");
    run.bundles.take(&good.replacen("\"format\":1", "\"format\":2", 1));
    assert_eq!(run.app.release("job", &hold).await.status, 200);
    assert_eq!(run.app.post("/v1/locks/job/acquire").await.status, 200);
    let next = Run::start(SessionId::random(), Some(kept)).await;
    next.bundles.recall();
    assert_eq!(next.app.post("/v1/locks/job/acquire").await.status, 200);
}

/// D3: the sidecar crashes, the app goes on; a real Redis keeps the holds.
#[tokio::test]
async fn a_restarted_sidecar_takes_up_its_holds_and_no_others() {
    let server = RedisServer::start(&[]);
    let url = format!("redis://{}", server.address());
    let bundle = mk_bundle_on("redis", Substrate::Redis, CLASSES);
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::new(dir.path().join("holds.json"));
    let session = SessionId::random();
    let run = Run::start(session.clone(), None).await;
    let epoch = run.backends.adopt_redis("redis", &url, Duration::ZERO).unwrap();
    assert!(epoch.opened(Duration::from_secs(30)).await);
    run.bundles.apply(&bundle);
    let kept = run.app.hold("slow", "key=kept").await;
    let forced = run.app.hold("slow", "key=forced").await;
    let short = run.app.hold("job", "key=short&ttlSeconds=1&renew=manual").await;
    journal.note(&run.app.serving.sidecar);
    // A crash: nothing is released, nobody renews any more.
    drop(run);
    tokio::time::sleep(Duration::from_millis(1_100)).await;

    let contents = journal.read().unwrap();
    assert_eq!(contents.session, session);
    let run = Run::start(contents.session.clone(), None).await;
    let epoch = run.backends.adopt_redis("redis", &url, Duration::ZERO).unwrap();
    assert!(epoch.opened(Duration::from_secs(30)).await);
    run.bundles.apply(&bundle);
    run.app.post("/v1/locks/slow/force-release?key=forced").await;
    let serving = &run.app.serving;
    assert_eq!(serving.sidecar.holds.resume(contents, &serving.sidecar, &serving.hub), 2);
    let info = |hold: &serde_json::Value| format!("/v1/holds/{}", hold["holdId"].as_str().unwrap());
    let held = run.app.get(&info(&kept)).await;
    assert_eq!((held.status, &held.body["fence"]), (200, &kept["fence"]), "{held:?}");
    for lost in [&forced, &short] {
        let mut answer = run.app.get(&info(lost)).await;
        for _ in 0..500 {
            if answer.status == 410 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            answer = run.app.get(&info(lost)).await;
        }
        answer.is_problem(410, "hold_lost");
    }
    assert_eq!(run.app.release("slow", &kept).await.status, 200);
}
