//! Finds the primary that Sentinels watch.
//!
//! They are asked anew before every connection, so a client follows a failover by what it does
//! anyway when a connection breaks, or when a server says that it is not the primary any more.
//!
//! Invariant: the servers that Sentinels name are asked for their role before they are used. A
//! Sentinel that has not heard of a failover yet names the old primary; if that is still one, the
//! epoch's guard decides, as always.

use holdfast_core::BackendError;
use redis::{AsyncConnectionConfig, ConnectionAddr, Value};
use tokio::time::{Instant, timeout_at};

use super::{
    config::{RedisConfig, parse_address},
    errors,
};

/// Sentinels, and what they call the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentinels {
    /// `host:port` of each.
    pub addresses: Vec<String>,
    /// The name of the primary in their configuration.
    pub master_name: String,
}

/// A client of the primary of now.
///
/// # Errors
/// When no Sentinel names a primary that answers as one, within the time to connect.
pub(super) async fn find(
    config: &RedisConfig,
    sentinels: &Sentinels,
) -> Result<redis::Client, BackendError> {
    let until = Instant::now() + config.connect_timeout;
    let mut why = String::from("no Sentinel is named");
    for address in &sentinels.addresses {
        // One that is away must not use up the time of the others.
        let left = until.saturating_duration_since(Instant::now()) / 2;
        match timeout_at(Instant::now() + left, ask(config, sentinels, address)).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => why = format!("{address}: {error}"),
            Err(_) => why = format!("{address}: no answer in time"),
        }
    }
    Err(BackendError::Unavailable(format!(
        "no Sentinel names a primary \"{}\" that answers ({why})",
        sentinels.master_name
    )))
}

async fn ask(
    config: &RedisConfig,
    sentinels: &Sentinels,
    address: &str,
) -> Result<redis::Client, BackendError> {
    let unavailable = |why: String| BackendError::Unavailable(why);
    let (host, port) = parse_address(address).map_err(unavailable)?;
    // Sentinels have no databases, and users of their own: none is used.
    let sentinel = config.open_at(config.addr_like(host, port), None)?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(&sentinels.master_name);
    let named: Option<(String, u16)> = query(config, &sentinel, &command).await?;
    let (host, port) = named
        .ok_or_else(|| unavailable(format!("it knows no primary \"{}\"", sentinels.master_name)))?;
    let primary = config.open_at(config.addr_like(host, port), Some(config.credentials()?))?;
    let mut info = redis::cmd("INFO");
    info.arg("replication");
    let text: String = query(config, &primary, &info).await?;
    if text.lines().any(|line| line.trim_end() == "role:master") {
        return Ok(primary);
    }
    Err(unavailable("the server it names is not a primary (any more, or yet)".into()))
}

async fn query<T: redis::FromRedisValue>(
    config: &RedisConfig,
    client: &redis::Client,
    command: &redis::Cmd,
) -> Result<T, BackendError> {
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.connect_timeout))
        .set_response_timeout(Some(config.response_timeout));
    let connecting = client.get_multiplexed_async_connection_with_config(&settings);
    let mut connection = connecting.await.map_err(|error| errors::at_connect(&error))?;
    let reply = connection.send_packed_command(command).await.and_then(Value::extract_error);
    let value = reply.map_err(|error| errors::at_connect(&error))?;
    redis::from_redis_value(value).map_err(|error| BackendError::Unavailable(error.to_string()))
}

/// The address of a server that is reached as another one is: with TLS or without.
pub(super) fn like(addr: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match addr {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    }
}
