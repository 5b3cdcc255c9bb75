//! Where a store is, and who we are to it.

use std::{fmt, sync::Arc, time::Duration};

use holdfast_core::BackendError;
use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates,
    io::tcp::TcpSettings,
};

use super::client::TIMEOUTS_TO_RECONNECT;

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
