//! Where a store is, and who we are to it.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use holdfast_core::BackendError;
use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates,
    io::tcp::TcpSettings,
};

use super::{
    acked::Ack,
    client::TIMEOUTS_TO_RECONNECT,
    sentinel::{self, Sentinels},
};
use crate::hub::lock;

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
    sentinels: Option<Sentinels>,
    seeds: Option<Arc<Seeds>>,
    credentials: CredentialSource,
    /// How many replicas must have a grant before it is answered; none without it.
    pub ack: Option<Ack>,
    /// The longest that an answer may take. Then the outcome is unknown.
    pub response_timeout: Duration,
    /// The longest that making a connection may take, TLS and authentication included.
    pub connect_timeout: Duration,
}

/// Servers of a cluster: those that were named, and those that were heard of since.
pub(super) struct Seeds {
    named: Vec<String>,
    heard_of: Mutex<Vec<String>>,
    turn: AtomicUsize,
}

impl Seeds {
    fn new(named: &[String]) -> Self {
        let (heard_of, turn) = (Mutex::default(), AtomicUsize::new(0));
        Seeds { named: named.to_vec(), heard_of, turn }
    }

    /// All of them, each once.
    pub(super) fn all(&self) -> Vec<String> {
        let mut all = lock(&self.heard_of).clone();
        all.extend(
            self.named.iter().filter(|seed| !all.contains(seed)).cloned().collect::<Vec<_>>(),
        );
        all
    }

    /// Those that were named.
    pub(super) fn named(&self) -> &[String] {
        &self.named
    }

    /// Another one each time: whoever is away is not asked twice in a row.
    pub(super) fn next(&self) -> String {
        let (mut all, turn) = (self.all(), self.turn.fetch_add(1, Relaxed));
        let index = turn % all.len().max(1);
        all.swap_remove(index)
    }

    /// The servers there are by now.
    pub(super) fn hear_of(&self, addresses: Vec<String>) {
        *lock(&self.heard_of) = addresses;
    }
}

impl RedisConfig {
    /// A store from `host:port`, without TLS or credentials.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn new(address: &str) -> Result<Self, String> {
        let (host, port) = parse_address(address)?;
        Ok(Self::of(ConnectionAddr::Tcp(host, port), 0, Credentials::default()))
    }

    /// The primary that Sentinels name, now and after each failover.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn from_sentinels(sentinels: Sentinels) -> Result<Self, String> {
        for address in &sentinels.addresses {
            parse_address(address)?;
        }
        let first = sentinels.addresses.first().ok_or("name the address of a Sentinel")?;
        let mut config = Self::new(first)?;
        config.sentinels = Some(sentinels);
        Ok(config)
    }

    /// A cluster, of which some servers are known.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn from_seeds(addresses: &[String]) -> Result<Self, String> {
        for address in addresses {
            parse_address(address)?;
        }
        let first = addresses.first().ok_or("name the address of a server of the cluster")?;
        let mut config = Self::new(first)?;
        config.seeds = Some(Arc::new(Seeds::new(addresses)));
        Ok(config)
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
        Ok(Self::of(info.addr().clone(), settings.db(), credentials))
    }

    fn of(addr: ConnectionAddr, db: i64, credentials: Credentials) -> Self {
        RedisConfig {
            addr,
            db,
            ca_pem: None,
            sentinels: None,
            seeds: None,
            ack: None,
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

    /// With grants that so many replicas must have acknowledged.
    #[must_use]
    pub fn with_ack(mut self, ack: Option<Ack>) -> Self {
        self.ack = ack;
        self
    }

    /// With a database of this number.
    #[must_use]
    pub fn with_database(mut self, number: i64) -> Self {
        self.db = number;
        self
    }

    /// With credentials that are read before every connection.
    #[must_use]
    pub fn with_credentials(mut self, source: CredentialSource) -> Self {
        self.credentials = source;
        self
    }

    /// A client with the credentials of now; of the primary of now, where Sentinels name it.
    pub(super) async fn find(&self) -> Result<redis::Client, BackendError> {
        match (&self.sentinels, &self.seeds) {
            (Some(sentinels), _) => sentinel::find(self, sentinels).await,
            (None, Some(seeds)) => self.at(&seeds.next()).and_then(|config| config.open()),
            (None, None) => self.open(),
        }
    }

    /// One server, which is reached as this store is: the same users and encryption.
    ///
    /// # Errors
    /// When that is no address.
    pub fn at(&self, address: &str) -> Result<Self, BackendError> {
        let (host, port) = parse_address(address).map_err(BackendError::Unavailable)?;
        let addr = self.addr_like(host, port);
        Ok(RedisConfig { addr, sentinels: None, seeds: None, ..self.clone() })
    }

    /// The servers of a cluster; `None` of anything else.
    pub(super) fn seeds(&self) -> Option<&Arc<Seeds>> {
        self.seeds.as_ref()
    }

    /// A client with the credentials of now; whether the configuration can be used at all.
    pub(super) fn open(&self) -> Result<redis::Client, BackendError> {
        self.open_at(self.addr.clone(), Some(self.credentials()?))
    }

    pub(super) fn credentials(&self) -> Result<Credentials, BackendError> {
        (self.credentials)().map_err(BackendError::Unavailable)
    }

    /// The address of another server that is reached as this one is.
    pub(super) fn addr_like(&self, host: String, port: u16) -> ConnectionAddr {
        sentinel::like(&self.addr, host, port)
    }

    /// A client of one server; without credentials it also has no database.
    pub(super) fn open_at(
        &self,
        addr: ConnectionAddr,
        credentials: Option<Credentials>,
    ) -> Result<redis::Client, BackendError> {
        let db = if credentials.is_some() { self.db } else { 0 };
        let credentials = credentials.unwrap_or_default();
        let configured = |error: RedisError| BackendError::Unavailable(error.to_string());
        let info: ConnectionInfo = addr.clone().into_connection_info().map_err(configured)?;
        let mut settings = info.redis_settings().clone().set_db(db).set_skip_set_lib_name();
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
        let is_tls = matches!(addr, ConnectionAddr::TcpTls { .. });
        let client = if is_tls {
            // Whoever has chosen a provider for the process keeps it.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let certs = TlsCertificates { client_tls: None, root_cert: self.ca_pem.clone() };
            redis::Client::build_with_tls(info, certs)
        } else {
            redis::Client::open(info)
        };
        client.map_err(configured)
    }
}

/// Reads `host:port`, or a host alone.
///
/// # Errors
/// A sentence that says what is expected.
pub(super) fn parse_address(address: &str) -> Result<(String, u16), String> {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "6379"));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().ok().filter(|port| *port > 0);
    let Some(port) = port.filter(|_| !host.is_empty() && !host.contains(['/', '@'])) else {
        return Err(format!("a Redis address is host:port; got \"{address}\""));
    };
    Ok((host.into(), port))
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig").field("addr", &self.addr.to_string()).finish_non_exhaustive()
    }
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
