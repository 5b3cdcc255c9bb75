//! The one connection that carries a process's commands to a store.
//!
//! Requests of all callers share it and are flushed together. It is made when first needed, by one
//! caller for all, and remade after it broke: with decorrelated jitter between attempts, and with
//! credentials read anew, so that a rotated password needs no restart. While no attempt is due,
//! callers are refused at once; nothing queues up behind a dead store.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use holdfast_core::{BackendError, clock::Backoff};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo,
    RedisError, RedisResult, TlsCertificates, Value, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use tokio::time::{Instant, timeout};

use super::{
    errors::{self, Meaning},
    scripts::{Scripts, Transition},
};
use crate::hub::lock;

/// So many requests in a row without an answer mean that the connection is dead, though nobody has
/// said so.
const TIMEOUTS_TO_RECONNECT: u32 = 3;

/// A user of the store.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The ACL user; the default one without it.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Reads the credentials, before every connection. The error is a sentence.
pub type CredentialSource = Arc<dyn Fn() -> Result<Credentials, String> + Send + Sync>;

/// Where a store is and how to talk to it.
#[derive(Clone)]
pub struct RedisConfig {
    addr: ConnectionAddr,
    db: i64,
    ca_pem: Option<Vec<u8>>,
    credentials: CredentialSource,
    /// The longest that an answer may take. Then the outcome is unknown.
    pub response_timeout: Duration,
    /// The longest that making a connection may take, TLS and authentication included.
    pub connect_timeout: Duration,
}

impl RedisConfig {
    /// A store from `host:port`, without TLS or credentials.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn new(address: &str) -> Result<Self, String> {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "6379"));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = port.parse().ok().filter(|port| *port > 0);
        let Some(port) = port.filter(|_| !host.is_empty() && !host.contains(['/', '@'])) else {
            return Err(format!("a Redis address is host:port; got \"{address}\""));
        };
        Ok(Self::at(ConnectionAddr::Tcp(host.into(), port), 0, Credentials::default()))
    }

    /// A store from `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    ///
    /// # Errors
    /// A sentence that says what is expected; without the URL, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self, String> {
        let info = url.into_connection_info().map_err(|error| {
            format!("a Redis URL is redis://[user:password@]host[:port][/db]; {error}")
        })?;
        let settings = info.redis_settings();
        let credentials = Credentials {
            username: settings.username().map(Into::into),
            password: settings.password().map(Into::into),
        };
        Ok(Self::at(info.addr().clone(), settings.db(), credentials))
    }

    fn at(addr: ConnectionAddr, db: i64, credentials: Credentials) -> Self {
        RedisConfig {
            addr,
            db,
            ca_pem: None,
            credentials: Arc::new(move || Ok(credentials.clone())),
            response_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(2),
        }
    }

    /// With TLS; trusting this CA (PEM), or those of the machine without one.
    #[must_use]
    pub fn with_tls(mut self, ca_pem: Option<Vec<u8>>) -> Self {
        if let ConnectionAddr::Tcp(host, port) = &self.addr {
            let (host, port) = (host.clone(), *port);
            self.addr = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
        }
        self.ca_pem = ca_pem;
        self
    }

    /// With credentials that are read before every connection.
    #[must_use]
    pub fn with_credentials(mut self, source: CredentialSource) -> Self {
        self.credentials = source;
        self
    }

    /// A client with the credentials of now.
    pub(super) fn open(&self) -> Result<redis::Client, BackendError> {
        let credentials = (self.credentials)().map_err(BackendError::Unavailable)?;
        let configured = |error: RedisError| BackendError::Unavailable(error.to_string());
        let info: ConnectionInfo = self.addr.clone().into_connection_info().map_err(configured)?;
        let mut settings = info.redis_settings().clone().set_db(self.db).set_skip_set_lib_name();
        if let Some(username) = credentials.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = credentials.password {
            settings = settings.set_password(password);
        }
        // A dead peer is noticed by TCP as soon as something sent is not acknowledged for so long.
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_user_timeout(self.response_timeout * (TIMEOUTS_TO_RECONNECT + 1));
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp);
        let is_tls = matches!(self.addr, ConnectionAddr::TcpTls { .. });
        let client = if is_tls {
            let certs = TlsCertificates { client_tls: None, root_cert: self.ca_pem.clone() };
            redis::Client::build_with_tls(info, certs)
        } else {
            redis::Client::open(info)
        };
        client.map_err(configured)
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig").field("addr", &self.addr.to_string()).finish_non_exhaustive()
    }
}

/// A connection and what is known of it.
struct Link {
    connection: MultiplexedConnection,
    /// Whether the server has Functions. Found out by trying.
    functions: AtomicBool,
    timeouts: AtomicU32,
}

struct Reconnect {
    backoff: Backoff,
    not_before: Option<(Instant, BackendError)>,
}

/// A shared, self-healing connection.
pub struct Client {
    config: RedisConfig,
    scripts: &'static Scripts,
    link: Mutex<Option<Arc<Link>>>,
    reconnect: tokio::sync::Mutex<Reconnect>,
    connects: AtomicU64,
}

impl Client {
    /// A client that connects when first used.
    pub fn new(config: RedisConfig) -> Self {
        Self::with_scripts(config, Scripts::shared())
    }

    /// A client with other scripts: tests inject the store's time.
    #[doc(hidden)]
    pub fn with_scripts(config: RedisConfig, scripts: &'static Scripts) -> Self {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        Client {
            config,
            scripts,
            link: Mutex::default(),
            reconnect: tokio::sync::Mutex::new(Reconnect { backoff, not_before: None }),
            connects: AtomicU64::new(0),
        }
    }

    /// How it connects.
    pub fn config(&self) -> &RedisConfig {
        &self.config
    }

    /// How many connections have been made so far.
    pub fn connects(&self) -> u64 {
        self.connects.load(Relaxed)
    }

    /// Sends one command.
    ///
    /// # Errors
    /// See [`errors`]; bounded by the response time-out plus, where a connection has to be made
    /// first, the connect time-out.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, BackendError> {
        let link = self.link().await?;
        let value = self.send(&link, command).await.map_err(|error| errors::in_flight(&error))?;
        redis::from_redis_value(value)
            .map_err(|error| BackendError::Unknown(format!("an unexpected reply: {error}")))
    }

    /// Runs a transition.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub async fn call(
        &self,
        transition: Transition,
        keys: &[&str],
        args: &[&str],
    ) -> Result<Vec<Value>, BackendError> {
        let link = self.link().await?;
        let reply = if link.functions.load(Relaxed) {
            self.call_function(&link, transition, keys, args).await?
        } else {
            self.call_script(&link, transition, keys, args).await?
        };
        match reply {
            Value::Array(values) => Ok(values),
            other => Err(BackendError::Unknown(format!("an unexpected reply: {other:?}"))),
        }
    }

    async fn call_function(
        &self,
        link: &Link,
        transition: Transition,
        keys: &[&str],
        args: &[&str],
    ) -> Result<Value, BackendError> {
        let command = mk_call("FCALL", self.scripts.function(transition), keys, args);
        let error = match self.send(link, &command).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        match errors::meaning(&error) {
            Some(Meaning::NoCommand) => {
                link.functions.store(false, Relaxed);
                self.call_script(link, transition, keys, args).await
            }
            // The operator loads it; where there is none, whoever may does.
            Some(Meaning::NotLoaded) if self.load_library(link).await => {
                self.send(link, &command).await.map_err(|error| errors::in_flight(&error))
            }
            _ => Err(errors::in_flight(&error)),
        }
    }

    async fn call_script(
        &self,
        link: &Link,
        transition: Transition,
        keys: &[&str],
        args: &[&str],
    ) -> Result<Value, BackendError> {
        let script = self.scripts.script(transition);
        let reply = self.send(link, &mk_call("EVALSHA", &script.sha1, keys, args)).await;
        let reply = match reply {
            Err(error) if errors::meaning(&error) == Some(Meaning::NotLoaded) => {
                self.send(link, &mk_call("EVAL", &script.code, keys, args)).await
            }
            other => other,
        };
        reply.map_err(|error| errors::in_flight(&error))
    }

    /// Puts the library into the store; whether it is there now.
    async fn load_library(&self, link: &Link) -> bool {
        let command = library_load(self.scripts);
        match self.send(link, &command).await {
            Ok(_) => true,
            // Somebody else was faster.
            Err(error) => error.detail().is_some_and(|detail| detail.contains("already exists")),
        }
    }

    async fn send(&self, link: &Link, command: &Cmd) -> RedisResult<Value> {
        let mut connection = link.connection.clone();
        let reply = connection.send_packed_command(command).await.and_then(Value::extract_error);
        match &reply {
            Ok(_) => link.timeouts.store(0, Relaxed),
            Err(error) if error.is_timeout() => {
                if link.timeouts.fetch_add(1, Relaxed) + 1 >= TIMEOUTS_TO_RECONNECT {
                    self.drop_link(link, error);
                }
            }
            Err(error) => match errors::meaning(error) {
                None | Some(Meaning::WrongServer) => self.drop_link(link, error),
                Some(_) => link.timeouts.store(0, Relaxed),
            },
        }
        reply
    }

    fn drop_link(&self, link: &Link, why: &RedisError) {
        let dropped = lock(&self.link).take_if(|current| std::ptr::eq(&**current, link));
        if dropped.is_some() {
            tracing::warn!(store = ?self.config, error = %why, "lost the connection to the store");
        }
    }

    /// The connection, made anew if there is none.
    async fn link(&self) -> Result<Arc<Link>, BackendError> {
        if let Some(link) = &*lock(&self.link) {
            return Ok(link.clone());
        }
        let mut reconnect = self.reconnect.lock().await;
        // Another caller may have made it meanwhile.
        if let Some(link) = &*lock(&self.link) {
            return Ok(link.clone());
        }
        if let Some((not_before, error)) = &reconnect.not_before
            && Instant::now() < *not_before
        {
            return Err(error.clone());
        }
        match self.connect().await {
            Ok(connection) => {
                reconnect.backoff.reset();
                reconnect.not_before = None;
                self.connects.fetch_add(1, Relaxed);
                let link = Arc::new(Link {
                    connection,
                    functions: AtomicBool::new(true),
                    timeouts: AtomicU32::new(0),
                });
                *lock(&self.link) = Some(link.clone());
                Ok(link)
            }
            Err(error) => {
                let delay = reconnect.backoff.next_delay();
                reconnect.not_before = Some((Instant::now() + delay, error.clone()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, BackendError> {
        let client = self.config.open()?;
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(self.config.response_timeout));
        // Around all of it: name resolution, TCP, TLS, authentication.
        let connecting = client.get_multiplexed_async_connection_with_config(&settings);
        match timeout(self.config.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| errors::at_connect(&error)),
            Err(_) => Err(BackendError::Unavailable(format!(
                "cannot connect to the store within {:?}",
                self.config.connect_timeout
            ))),
        }
    }
}

/// The command that loads a library.
pub(super) fn library_load(scripts: &Scripts) -> Cmd {
    let mut command = redis::cmd("FUNCTION");
    command.arg("LOAD").arg(scripts.source());
    command
}

fn mk_call(verb: &str, what: &str, keys: &[&str], args: &[&str]) -> Cmd {
    let mut command = redis::cmd(verb);
    command.arg(what).arg(keys.len()).arg(keys).arg(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_passwords_are_not_shown() {
        for good in ["redis", "redis.shop.svc:6380", "[::1]:6379", "127.0.0.1:1"] {
            assert!(RedisConfig::new(good).is_ok(), "{good}");
        }
        for bad in ["", ":6379", "redis:x", "redis:0", "redis://h:1", "a@b:1", "h:70000"] {
            assert!(RedisConfig::new(bad).is_err(), "{bad}");
        }
        let config = RedisConfig::from_url("redis://ann:hunter2@localhost:1/3").unwrap();
        assert_eq!((config.db, (config.credentials)().unwrap().username), (3, Some("ann".into())));
        let shown = format!("{config:?} {:?}", (config.credentials)().unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(!RedisConfig::from_url("redis://:hunter2@").unwrap_err().contains("hunter2"));
    }
}
