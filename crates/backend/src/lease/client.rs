//! The Lease calls, each bounded in time and sent at most once.
//!
//! kube's own client retries up to fifteen times with pauses of up to 1000 s, and reads without a
//! time limit; a hold would be long gone. Here a call is one request with one budget, and the answer
//! says what is *known*: nothing was done, or perhaps it was ([`Fault::Unknown`]). Dropping a call
//! closes its connection, so that the next one does not hang on the same dead peer.
//!
//! Writes are merge-patches that carry `uid` and `resourceVersion`. A PUT would re-create a deleted
//! Lease; there is no PUT, POST or DELETE in this module.

use std::{sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use holdfast_core::BackendError;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, Config, ResourceExt,
    api::{Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{feed::Feeds, names};

/// For how long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// No call takes longer, whatever its class.
pub(super) const CALL: Duration = Duration::from_secs(5);
/// How long the API server keeps a watch open; the next one continues where it ended.
const WATCH_SECONDS: u32 = 240;
/// The API server ends a watch, or says that nothing happened, more often than this.
const SILENCE: Duration = Duration::from_secs(255);
/// A watch that ends sooner than this has failed, however politely: the next one would end, too.
const SHORT: Duration = Duration::from_secs(2);

/// The Leases of all namespaces that this process may touch.
#[derive(Clone)]
pub struct LeaseClient {
    calls: Client,
    /// Apart, because a time limit on reads would end a watch on which nothing happens.
    watches: Client,
    feeds: Arc<Feeds>,
}

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Somebody else's write came first.
    Conflict,
    /// There is no such Lease, or not this incarnation of it.
    Gone,
    /// A Role or the admission policy refused.
    Refused(String),
    /// The API server does not remember what has happened since a version.
    TooOld,
    /// Certainly nothing was done.
    Unavailable(String),
    /// A write that may or may not be carried out, now or later.
    Unknown(String),
}

/// What a watch tells.
#[derive(Clone)]
pub(super) enum Seen {
    /// The Lease as it is now.
    Lease(Box<Lease>),
    /// The Lease is deleted, as this resourceVersion says (empty where a read found it gone).
    Deleted(String),
    /// Nothing happened up to this resourceVersion.
    Bookmark(String),
}

impl LeaseClient {
    /// A client with settings of its own, made from where and as whom to connect.
    ///
    /// # Errors
    /// When the credentials or certificates cannot be used.
    pub fn new(config: &Config) -> Result<Self, BackendError> {
        let mut config = config.clone();
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT);
        config.write_timeout = Some(CALL);
        config.read_timeout = None;
        let watches = connect(config.clone())?;
        config.read_timeout = Some(CALL);
        // A connection that was idle for long must not time out on its next answer.
        config.reset_reader_on_write = true;
        Ok(LeaseClient { calls: connect(config)?, watches, feeds: Arc::default() })
    }

    /// Whether one watch of all Leases of a namespace is to serve all who follow one of them here,
    /// instead of a watch by name for each. It takes the right to watch Leases without naming them;
    /// where the API server refuses it, it is one by name all the same. Those that are open stay.
    pub fn share_watches(&self, share: bool) {
        self.feeds.share(share);
    }

    /// Reads the newest state: a quorum read, since no resourceVersion is given.
    pub(super) async fn get(
        &self,
        namespace: &str,
        name: &str,
        budget: Duration,
    ) -> Result<Lease, Fault> {
        let api: Api<Lease> = Api::namespaced(self.calls.clone(), namespace);
        match timeout(budget.min(CALL), api.get(name)).await {
            Ok(answer) => answer.map_err(|error| match sort(error) {
                // A read changes nothing, whatever became of it.
                Fault::Unknown(what) => Fault::Unavailable(what),
                fault => fault,
            }),
            Err(_) => Err(Fault::Unavailable(format!("no answer within {budget:?}"))),
        }
    }

    /// Writes, on the condition that the body's `uid` and `resourceVersion` are still the newest.
    pub(super) async fn patch(
        &self,
        namespace: &str,
        name: &str,
        body: &Value,
        budget: Duration,
    ) -> Result<Lease, Fault> {
        let api: Api<Lease> = Api::namespaced(self.calls.clone(), namespace);
        let field_manager = Some(names::FIELD_MANAGER.to_owned());
        let params = PatchParams { field_manager, ..PatchParams::default() };
        let body = Patch::Merge(body);
        match timeout(budget.min(CALL), api.patch(name, &params, &body)).await {
            Ok(answer) => answer.map_err(sort),
            Err(_) => Err(Fault::Unknown(format!("no answer within {budget:?}"))),
        }
    }

    /// Follows one Lease from a resourceVersion on.
    pub(super) async fn watch(
        &self,
        namespace: &str,
        name: &str,
        from: &str,
    ) -> Result<BoxStream<'static, Result<Seen, Fault>>, Fault> {
        if self.feeds.are_open_to_all() {
            return Ok(self.feeds.follow(self, namespace, name, from));
        }
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        // A Role with `resourceNames` suffices.
        let events = self.open(namespace, params, from).await?;
        Ok(Box::pin(events.map_ok(|(_, seen)| seen)))
    }

    /// Watches all Leases of Holdfast in a namespace, each with its name, from a resourceVersion on.
    pub(super) async fn watch_all(
        &self,
        namespace: &str,
        from: &str,
    ) -> Result<BoxStream<'static, Result<(String, Seen), Fault>>, Fault> {
        let ours = WatchParams::default().labels(&format!("{}=true", names::LABEL_MANAGED));
        self.open(namespace, ours, from).await
    }

    async fn open(
        &self,
        namespace: &str,
        params: WatchParams,
        from: &str,
    ) -> Result<BoxStream<'static, Result<(String, Seen), Fault>>, Fault> {
        let api: Api<Lease> = Api::namespaced(self.watches.clone(), namespace);
        let params = WatchParams { bookmarks: true, ..params.timeout(WATCH_SECONDS) };
        match timeout(CALL, api.watch(&params, from)).await {
            Ok(stream) => Ok(Box::pin(minded(sightings(stream.map_err(sort)?)))),
            Err(_) => Err(Fault::Unavailable(format!("no watch within {CALL:?}"))),
        }
    }
}

fn connect(config: Config) -> Result<Client, BackendError> {
    Client::try_from(config)
        .map_err(|error| BackendError::Internal(format!("cannot build an API client: {error}")))
}

/// What each event tells, and of which Lease; of none by a bookmark.
fn sightings(
    events: impl Stream<Item = kube::Result<WatchEvent<Lease>>>,
) -> impl Stream<Item = Result<(String, Seen), Fault>> {
    events.map_err(sort).and_then(async |event| match event {
        WatchEvent::Added(lease) | WatchEvent::Modified(lease) => {
            Ok((lease.name_any(), Seen::Lease(Box::new(lease))))
        }
        WatchEvent::Deleted(lease) => {
            let version = lease.resource_version().unwrap_or_default();
            Ok((lease.name_any(), Seen::Deleted(version)))
        }
        WatchEvent::Bookmark(mark) => {
            Ok((String::new(), Seen::Bookmark(mark.metadata.resource_version)))
        }
        WatchEvent::Error(status) => Err(sort(kube::Error::Api(status))),
    })
}

/// A watch that falls silent, or ends at once, ends with a fault.
fn minded<T>(events: impl Stream<Item = Result<T, Fault>>) -> impl Stream<Item = Result<T, Fault>> {
    let begun = Instant::now();
    stream::try_unfold(Box::pin(events), move |mut events| async move {
        let why = match timeout(SILENCE, events.next()).await {
            Ok(Some(event)) => return event.map(|event| Some((event, events))),
            Ok(None) if begun.elapsed() >= SHORT => return Ok(None),
            Ok(None) => "the watch ended at once",
            Err(_) => "the watch fell silent",
        };
        Err(Fault::Unavailable(why.into()))
    })
}

/// What an error says about whether the request was carried out.
fn sort(error: kube::Error) -> Fault {
    let status = match error {
        kube::Error::Api(status) => status,
        other if was_never_sent(&other) => return Fault::Unavailable(chain(&other)),
        other => return Fault::Unknown(chain(&other)),
    };
    let what = format!("{} ({})", status.message, status.code);
    match status.code {
        404 => Fault::Gone,
        409 => Fault::Conflict,
        410 => Fault::TooOld,
        // Shed before it was looked at.
        429 => Fault::Unavailable(what),
        400..500 => Fault::Refused(what),
        // An API server that lost its etcd in mid-write answers 500 or 504, and a proxy 503.
        _ => Fault::Unknown(what),
    }
}

/// Whether the connection was never made. Anything later may have reached the server.
fn was_never_sent(error: &kube::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
        {
            return true;
        }
        source = error.source();
    }
    false
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

impl Fault {
    /// The error of a call on a Lease, for callers.
    pub(super) fn on(self, namespace: &str, name: &str) -> BackendError {
        match self {
            Fault::Conflict => BackendError::Unavailable(format!(
                "Lease \"{namespace}/{name}\" changed on every try; too many contenders"
            )),
            Fault::Gone => BackendError::NotFound(format!(
                "the operator has not created Lease \"{namespace}/{name}\" yet"
            )),
            Fault::Refused(what) => BackendError::Forbidden(what),
            Fault::TooOld => BackendError::Unavailable("a version that is too old".into()),
            Fault::Unavailable(what) => BackendError::Unavailable(what),
            Fault::Unknown(what) => BackendError::Unknown(what),
        }
    }
}
