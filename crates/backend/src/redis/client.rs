//! The one connection that carries a process's commands to a store; in a cluster one to each server,
//! and `cluster` says to which.
//!
//! Requests of all callers share it and are flushed together. It is made when first needed, by one
//! caller for all, and remade after it broke: with decorrelated jitter between attempts, and with
//! credentials read anew, so that a rotated password needs no restart. While no attempt is due,
//! callers are refused at once; nothing queues up behind a dead store.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt;
use holdfast_core::{BackendError, clock::Backoff};
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, RedisError, Value, aio::MultiplexedConnection,
};
use tokio::time::{Instant, timeout};

use super::{
    cluster::Cluster,
    config::RedisConfig,
    errors::{self, Meaning},
    request::{Call, Failure, Request, is_loaded_already, library_load, send_asking},
    scripts::{Scripts, Transition},
};
use crate::hub::lock;

pub(super) mod turns;

use turns::{Refused, Turns};

/// So many requests in a row without an answer mean that the connection is dead, though nobody has
/// said so.
pub(super) const TIMEOUTS_TO_RECONNECT: u32 = 3;

/// A connection and what is known of it.
struct Link {
    turns: Turns,
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
    /// The connections to the servers, where they are several.
    cluster: Option<Cluster>,
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
            cluster: Cluster::of(&config, scripts),
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
        self.connects.load(Relaxed) + self.cluster.as_ref().map_or(0, Cluster::connects)
    }

    /// Clients of the servers that share the data: of a cluster its primaries, else only this.
    ///
    /// # Errors
    /// When no server of the cluster says which there are.
    pub(super) async fn primaries(self: &Arc<Self>) -> Result<Vec<Arc<Client>>, BackendError> {
        match &self.cluster {
            Some(cluster) => cluster.primaries().await,
            None => Ok(vec![self.clone()]),
        }
    }

    /// Sends one command; in a cluster to any server.
    ///
    /// # Errors
    /// See [`errors`]; bounded by the response time-out plus, where a connection has to be made
    /// first, the connect time-out.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, BackendError> {
        let value = self.try_run(command).await?;
        redis::from_redis_value(value)
            .map_err(|error| BackendError::Unknown(format!("an unexpected reply: {error}")))
    }

    /// Sends one command about a name: in a cluster, to the server that has it.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub(super) async fn run_on<T: FromRedisValue>(
        &self,
        name: &str,
        command: &Cmd,
    ) -> Result<T, BackendError> {
        let Some(cluster) = &self.cluster else { return self.run(command).await };
        let value = cluster.follow(name, Request::Command(command)).boxed().await?;
        redis::from_redis_value(value)
            .map_err(|error| BackendError::Unknown(format!("an unexpected reply: {error}")))
    }

    /// As [`Client::run`], with the server's own error.
    pub(super) async fn try_run(&self, command: &Cmd) -> Result<Value, Failure> {
        self.try_send(command, false).await
    }

    /// Sends a request to this very server. `once` asks one that is about to get the slot.
    pub(super) async fn carry_out(
        &self,
        request: Request<'_>,
        once: bool,
    ) -> Result<Value, Failure> {
        match request {
            Request::Command(command) => self.try_send(command, once).await,
            Request::Call(call) => self.attempt(call.clone(), once).await,
        }
    }

    async fn try_send(&self, command: &Cmd, once: bool) -> Result<Value, Failure> {
        let link = self.link().await.map_err(Failure::Unsent)?;
        let sent = self.send(&link, command.clone(), once).await;
        sent.map_err(|refused| Failure::Sent(refused.error))
    }

    /// Runs a transition.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub fn call(
        &self,
        transition: Transition,
        keys: &[&str],
        args: &[&str],
    ) -> impl Future<Output = Result<Vec<Value>, BackendError>> + Send + use<'_> {
        self.perform(Call::new(self.scripts, transition, [keys, &[]], [args, &[]]))
    }

    /// Runs a transition that is written down already.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub(super) async fn perform(&self, call: Call) -> Result<Vec<Value>, BackendError> {
        let reply = match &self.cluster {
            None => self.attempt(call, false).await?,
            // Boxed, so that the others do not carry its state about.
            Some(cluster) => cluster.follow(call.name(), Request::Call(&call)).boxed().await?,
        };
        match reply {
            Value::Array(values) => Ok(values),
            other => Err(BackendError::Unknown(format!("an unexpected reply: {other:?}"))),
        }
    }

    /// Runs a transition on this very server. `once` asks a server that is about to get the slot.
    async fn attempt(&self, call: Call, once: bool) -> Result<Value, Failure> {
        let link = self.link().await.map_err(Failure::Unsent)?;
        if !link.functions.load(Relaxed) {
            return Box::pin(self.call_script(&link, &call, once)).await;
        }
        let transition = call.transition;
        match self.send(&link, call.function, once).await {
            Ok(reply) => Ok(reply),
            Err(refused) => Box::pin(self.call_again(&link, transition, refused, once)).await,
        }
    }

    /// Sees to the reason why a function was refused, if something can be done about it.
    async fn call_again(
        &self,
        link: &Link,
        transition: Transition,
        refused: Refused,
        once: bool,
    ) -> Result<Value, Failure> {
        let Refused { error, command: Some(function) } = refused else {
            return Err(Failure::Sent(refused.error));
        };
        match errors::meaning(&error) {
            Some(Meaning::NoCommand) => {
                link.functions.store(false, Relaxed);
                self.call_script(link, &Call { transition, function: *function }, once).await
            }
            // The operator loads it; where there is none, whoever may does.
            Some(Meaning::NotLoaded) => {
                self.load_library(link).await.map_err(Failure::Final)?;
                let again = self.send(link, *function, once).await;
                again.map_err(|refused| Failure::Sent(refused.error))
            }
            _ => Err(Failure::Sent(error)),
        }
    }

    async fn call_script(&self, link: &Link, call: &Call, once: bool) -> Result<Value, Failure> {
        let script = self.scripts.script(call.transition);
        let reply = match self.send(link, call.script("EVALSHA", &script.sha1), once).await {
            Err(refused) if errors::meaning(&refused.error) == Some(Meaning::NotLoaded) => {
                self.send(link, call.script("EVAL", &script.code), once).await
            }
            other => other,
        };
        reply.map_err(|refused| Failure::Sent(refused.error))
    }

    /// Sends a pipeline as one write; its replies, errors of the server among them. Without all of
    /// them the connection is given up.
    pub(super) async fn pipeline(
        &self,
        pipeline: &redis::Pipeline,
        replies: usize,
    ) -> Result<Vec<Value>, BackendError> {
        let link = self.link().await?;
        let mut connection = link.turns.connection.clone();
        connection.send_packed_commands(pipeline, 0, replies).await.map_err(|error| {
            self.drop_link(&link, &error);
            errors::in_flight(&error)
        })
    }

    /// Gives the connection up: the next request makes another one.
    pub(super) fn reconnect(&self, why: &RedisError) {
        let link = lock(&self.link).clone();
        if let Some(link) = link {
            self.drop_link(&link, why);
        }
    }

    /// What it runs.
    pub(super) fn scripts(&self) -> &'static Scripts {
        self.scripts
    }

    /// Puts the library into the store.
    async fn load_library(&self, link: &Link) -> Result<(), BackendError> {
        match self.send(link, library_load(self.scripts), false).await {
            Ok(_) => Ok(()),
            // Somebody else was faster.
            Err(Refused { error, .. }) if is_loaded_already(&error) => Ok(()),
            // The transition itself has not been carried out, whatever became of the loading.
            Err(Refused { error, .. }) => Err(BackendError::Unavailable(format!(
                "the function library is not in the store, and this user cannot load it ({error}); \
                 the operator does"
            ))),
        }
    }

    async fn send(&self, link: &Link, command: Cmd, once: bool) -> Result<Value, Refused> {
        let reply = if once {
            // Boxed: only a cluster that changes asks so.
            Box::pin(send_asking(link.turns.connection.clone(), command)).await
        } else {
            link.turns.send(command).await
        };
        match &reply {
            Ok(_) => link.timeouts.store(0, Relaxed),
            Err(Refused { error, .. }) if error.is_timeout() => {
                if link.timeouts.fetch_add(1, Relaxed) + 1 >= TIMEOUTS_TO_RECONNECT {
                    self.drop_link(link, error);
                }
            }
            Err(Refused { error, .. }) => match errors::meaning(error) {
                // Of a cluster: the server is well, and the slot is another's.
                _ if errors::redirect(error).is_some() => link.timeouts.store(0, Relaxed),
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
        // Boxed: requests would otherwise all carry the room for a TLS handshake.
        self.relink().boxed().await
    }

    async fn relink(&self) -> Result<Arc<Link>, BackendError> {
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
                    turns: Turns::new(connection),
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
        let client = self.config.find().await?;
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
