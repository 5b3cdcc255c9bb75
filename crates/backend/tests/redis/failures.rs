//! What the store says when it cannot or will not, and what silence means (C4, C6, C10).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_backend::redis::{Credentials, client::Client, scripts::Transition};
use holdfast_core::{
    BackendError, HoldId,
    lock::{Attempt, LockBackend, LockConfig},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    fixture::{
        PATIENCE, Session, Store, TTL, command_as, eventually, mk_address, mk_config, mk_redis,
        mk_redis_at,
    },
    runs::SURE,
};

// === A server that answers as told ===

/// What it does with one command.
#[derive(Clone)]
enum Act {
    Say(String),
    HangUp,
    Hang,
}

/// Says what it is told to for each command; the other commands get `+OK`.
struct FakeServer {
    address: String,
    acts: Arc<Mutex<HashMap<String, Act>>>,
}

impl FakeServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let acts = Arc::new(Mutex::new(HashMap::new()));
        let served = acts.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, served.clone()));
            }
        });
        FakeServer { address, acts }
    }

    fn act(&self, acts: &[(&str, Act)]) {
        let acts = acts.iter().map(|(verb, act)| ((*verb).to_owned(), act.clone()));
        *self.acts.lock().unwrap() = acts.collect();
    }

    /// A client that logs in. Where the server does not answer it waits as long as a test can, and
    /// else as long as it takes.
    fn client(&self) -> Client {
        let credentials = Credentials { username: Some("ann".into()), password: Some("x".into()) };
        let source = Arc::new(move || Ok(credentials.clone()));
        let acts = self.acts.lock().unwrap();
        let patience = |verb: &str| match acts.get(verb) {
            Some(Act::Hang) => Duration::from_secs(2),
            _ => PATIENCE,
        };
        let mut config = mk_redis_at(&self.address).with_credentials(source);
        (config.response_timeout, config.connect_timeout) = (patience("FCALL"), patience("AUTH"));
        Client::new(config)
    }
}

async fn serve(stream: TcpStream, acts: Arc<Mutex<HashMap<String, Act>>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let verb = read_command(&mut stream).await?;
        let act = acts.lock().unwrap().get(&verb).cloned();
        match act.unwrap_or_else(|| Act::Say("+OK".into())) {
            Act::Say(reply) => stream.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?,
            Act::HangUp => return None,
            Act::Hang => {}
        }
    }
}

/// The verb of the next command.
async fn read_command(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
    let mut verb = None;
    for _ in 0..line.strip_prefix('*')?.trim_end().parse::<usize>().ok()? {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let mut word = vec![0; line.strip_prefix('$')?.trim_end().parse::<usize>().ok()? + 2];
        stream.read_exact(&mut word).await.ok()?;
        verb = verb.or_else(|| Some(String::from_utf8_lossy(&word).trim_end().to_uppercase()));
    }
    verb
}

/// Codes and the error that each is turned into when it answers a transition.
const CODES: &[(&str, &str)] = &[
    ("EPOCH not the one expected", "epoch"),
    ("READONLY You can't write against a read only replica.", "backend_unavailable"),
    ("LOADING Redis is loading the dataset in memory", "backend_unavailable"),
    ("MASTERDOWN Link with MASTER is down", "backend_unavailable"),
    ("MOVED 3999 127.0.0.1:6381", "backend_unavailable"),
    ("ASK 3999 127.0.0.1:6381", "backend_unavailable"),
    ("TRYAGAIN Multiple keys request during rehashing of slot", "backend_unavailable"),
    ("CLUSTERDOWN The cluster is down", "backend_unavailable"),
    ("BUSY Redis is busy running a script.", "backend_unavailable"),
    ("OOM command not allowed when used memory > 'maxmemory'.", "backend_unavailable"),
    ("NOREPLICAS Not enough good replicas to write.", "backend_unavailable"),
    ("MISCONF Redis is configured to save RDB snapshots", "backend_unavailable"),
    ("ERR max number of clients reached", "backend_unavailable"),
    ("NOSCRIPT No matching script.", "backend_unavailable"),
    ("NOPERM this user has no permissions to run the 'fcall' command", "backend_forbidden"),
    ("NOAUTH Authentication required.", "backend_forbidden"),
    ("WRONGPASS invalid username-password pair", "backend_forbidden"),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", "internal"),
    ("ERR user_script:1: attempt to index a nil value", "internal"),
    ("WHATEVER is new in version 12", "internal"),
];

async fn call(client: &Client) -> BackendError {
    client.call(Transition::LockRelease, &["k"], &["a"]).await.unwrap_err()
}

#[tokio::test]
async fn every_code_is_understood_at_every_step() {
    let server = FakeServer::start().await;
    let missing = || Act::Say("-ERR Function not found".into());
    let unknown = || Act::Say("-ERR unknown command 'FCALL', with args beginning with:".into());
    let no_script = || Act::Say("-NOSCRIPT No matching script.".into());
    for (text, expected) in CODES {
        let say = || Act::Say(format!("-{text}"));
        server.act(&[("FCALL", say()), ("FUNCTION", say())]);
        assert_eq!(call(&server.client()).await.code(), *expected, "FCALL: {text}");

        server.act(&[("FCALL", missing()), ("FUNCTION", say())]);
        let error = call(&server.client()).await;
        assert_eq!(error.code(), "backend_unavailable", "FUNCTION LOAD: {text}");

        server.act(&[("FCALL", unknown()), ("EVALSHA", say()), ("EVAL", say())]);
        assert_eq!(call(&server.client()).await.code(), *expected, "EVALSHA: {text}");

        server.act(&[("FCALL", unknown()), ("EVALSHA", no_script()), ("EVAL", say())]);
        assert_eq!(call(&server.client()).await.code(), *expected, "EVAL: {text}");

        // Nothing has been sent when logging in fails: never unknown.
        server.act(&[("AUTH", say())]);
        let error = call(&server.client()).await;
        let refused = ["backend_forbidden", "backend_unavailable"];
        assert!(refused.contains(&error.code()), "AUTH: {text}: {error:?}");
        // A wrong password must read as one.
        if text.starts_with("WRONGPASS") || text.starts_with("NOPERM") {
            assert_eq!(error.code(), "backend_forbidden", "{error:?}");
        }
    }
}

#[tokio::test]
async fn silence_and_noise_leave_the_outcome_unknown_but_only_once_sent() {
    let server = FakeServer::start().await;
    let noises = ["*2\r\n:1", ":5", "+OK", "$-1", "garbage"];
    let mut acts = vec![Act::Hang, Act::HangUp];
    acts.extend(noises.map(|noise| Act::Say(noise.into())));
    for (n, act) in acts.into_iter().enumerate() {
        server.act(&[("FCALL", act.clone())]);
        assert_eq!(call(&server.client()).await.code(), "outcome_unknown", "act {n}");
        if n < 2 {
            server.act(&[("AUTH", act)]);
            assert_eq!(call(&server.client()).await.code(), "backend_unavailable", "act {n}");
        }
    }
}

#[tokio::test]
async fn a_silent_connection_is_given_up_after_three_requests() {
    let server = FakeServer::start().await;
    server.act(&[("FCALL", Act::Hang)]);
    let client = server.client();
    for _ in 0..3 {
        assert_eq!(call(&client).await.code(), "outcome_unknown");
    }
    assert_eq!(client.connects(), 1);
    server.act(&[("FCALL", Act::Say("-BUSY running".into()))]);
    assert_eq!(call(&client).await.code(), "backend_unavailable");
    assert_eq!(client.connects(), 2);
}

// === The real one ===

async fn attempt(session: &Session) -> Result<Attempt, BackendError> {
    session.try_acquire(&mk_address("k"), &mk_config(), &HoldId::random()).await
}

async fn code(session: &Session) -> &'static str {
    attempt(session).await.unwrap_err().code()
}

#[tokio::test]
async fn a_full_store_grants_nothing_but_still_lets_go() {
    let store = Store::start(&[]).await;
    let (session, at, config) = (store.session(), mk_address("held"), mk_config());
    let hold = HoldId::random();
    session.grant(&at, &config, &hold).await;
    store.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    let error = attempt(&session).await.unwrap_err();
    assert!(matches!(&error, BackendError::Unavailable(text) if text.contains("OOM")), "{error}");
    session.locks.renew(&at, &config, &hold, TTL).await.unwrap();
    session.locks.release(&at, &config, &hold).await.unwrap();
}

#[tokio::test]
async fn a_store_that_may_not_write_is_unavailable() {
    let store = Store::start(&[]).await;
    let session = store.session();
    attempt(&session).await.unwrap();
    store.command::<()>(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await.unwrap();
    assert_eq!(code(&session).await, "backend_unavailable");
    store.command::<()>(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await.unwrap();
    // A replica of a primary that is not there keeps its data, and refuses writes.
    store.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await.unwrap();
    assert_eq!(code(&session).await, "backend_unavailable");
    store.command::<()>(&["CONFIG", "SET", "replica-serve-stale-data", "no"]).await.unwrap();
    assert_eq!(code(&session).await, "backend_unavailable");
    store.command::<()>(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    // It has been promoted, as far as anybody can tell: what it has may be old.
    tokio::time::sleep(SURE).await;
    assert_eq!(code(&session).await, "epoch");
}

#[tokio::test]
async fn a_busy_store_is_unavailable_and_a_script_flush_is_not_noticed() {
    let store = Store::start(&["--rename-command", "FCALL", ""]).await;
    let session = store.session();
    attempt(&session).await.unwrap();
    store.command::<()>(&["SCRIPT", "FLUSH"]).await.unwrap();
    attempt(&session).await.unwrap();
    store.command::<()>(&["CONFIG", "SET", "lua-time-limit", "20"]).await.unwrap();
    let url = format!("redis://{}/", store.server.address());
    let endless = tokio::spawn(async move {
        let _ = command_as::<()>(&url, &["EVAL", "while true do end", "0"]).await;
    });
    eventually("it is busy", async || {
        matches!(attempt(&session).await, Err(BackendError::Unavailable(text)) if text.contains("BUSY"))
            .then_some(())
    })
    .await;
    store.command::<()>(&["SCRIPT", "KILL"]).await.unwrap();
    endless.await.unwrap();
    attempt(&session).await.unwrap();
}

#[tokio::test]
async fn a_password_is_wrong_until_it_is_right() {
    let store = Store::start(&[]).await;
    let password = Arc::new(Mutex::new("wrong"));
    let read = password.clone();
    let source = Arc::new(move || {
        let password = Some((*read.lock().unwrap()).to_owned());
        Ok(Credentials { username: None, password })
    });
    let session = store.session_as(mk_redis(&store.server).with_credentials(source));
    store.command::<()>(&["CONFIG", "SET", "requirepass", "right"]).await.unwrap();
    assert_eq!(code(&session).await, "backend_forbidden");
    *password.lock().unwrap() = "right";
    eventually("it logs in", async || attempt(&session).await.ok()).await;
}

#[tokio::test]
async fn a_store_that_is_down_is_unavailable_and_comes_back_by_itself() {
    let mut store = Store::start(&["--appendonly", "yes"]).await;
    let session = store.session();
    attempt(&session).await.unwrap();
    store.server.kill();
    // The first one after the crash may have been sent.
    assert!(["outcome_unknown", "backend_unavailable"].contains(&code(&session).await));
    let started = tokio::time::Instant::now();
    for _ in 0..200 {
        assert_eq!(code(&session).await, "backend_unavailable");
    }
    // They do not queue up behind attempts to connect.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    store.server.restart();
    store.open(2).await;
    eventually("a reply", async || attempt(&session).await.ok()).await;
    assert_eq!(session.locks.connects(), 2);
    assert!(session.locks.subscribed(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_request_that_a_slow_store_carries_out_late_leaves_no_ghost() {
    let store = Store::start(&[]).await;
    let mut config = mk_redis(&store.server);
    config.response_timeout = Duration::from_millis(30);
    let (session, other) = (store.session_as(config), store.session());
    eventually("it is connected", async || attempt(&session).await.ok()).await;
    let mut late = 0;
    for n in 0..30 {
        let (at, hold) = (mk_address(&format!("slow/{n}")), HoldId::random());
        let class = Arc::new(LockConfig { max_waiters: 0, ..(*mk_config()).clone() });
        store.server.pause(true);
        let attempt = session.try_acquire(&at, &class, &hold).await;
        assert_eq!(attempt.unwrap_err().code(), "outcome_unknown");
        store.server.pause(false);
        // Control: it does get carried out, after its caller was told that nobody knows.
        if n % 2 == 0 {
            eventually("the request is carried out", async || {
                other.locks.query(&at, &class).await.unwrap().holder.map(drop)
            })
            .await;
            late += 1;
        }
        eventually("it is settled", async || session.locks.cancel(&at, &class, &hold).await.ok())
            .await;
        assert_eq!(other.locks.query(&at, &class).await.unwrap().holder, None);
        // A busy machine takes longer than this session's patience now and then.
        let told = eventually("the late request is answered", async || {
            session.try_acquire(&at, &class, &hold).await.ok()
        });
        assert_eq!(told.await, Attempt::Cancelled);
        other.grant(&at, &class, &HoldId::random()).await;
    }
    assert_eq!(late, 15);
}
