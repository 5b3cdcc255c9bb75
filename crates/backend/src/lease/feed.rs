//! One watch of all Leases of a namespace, for all who follow one of them in this process.
//!
//! RBAC allows a watch on one name, or on none in particular: an account that is given its Leases by
//! name needs a watch for each. Where it is allowed to watch them all, a [`Feed`] does for everybody:
//! it begins with the first who follows a Lease, and ends with the last.
//!
//! Nothing is missed: who joins listens first and reads the Lease then, so what happened before the
//! one is in the other. What comes twice, or late, is older news, and those are dropped by whoever
//! notes them. A watch that fails ends the feed and everybody is told; they read, and begin another.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::{StreamExt, stream, stream::BoxStream};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::client::{Fault, LeaseClient, Seen};
use crate::hub::lock;

/// The API server ends a watch, or says that nothing happened, more often than this.
pub(super) const SILENCE: Duration = Duration::from_secs(255);
/// How long a read takes at most.
const READ: Duration = Duration::from_secs(2);
/// What a follower may be behind before it has to read anew.
const BEHIND: usize = 256;
/// For how long an API server that refused is not asked again.
const REFUSED: Duration = Duration::from_secs(300);

/// The feeds of a process, by namespace.
#[derive(Default)]
pub(super) struct Feeds {
    share: AtomicBool,
    refused: Mutex<Option<Instant>>,
    open: Mutex<HashMap<String, Weak<Feed>>>,
}

/// A watch, as long as somebody listens.
struct Feed {
    events: broadcast::Sender<Event>,
    /// It tells nothing any more. Set before the last event is sent: who sees it unset when listening
    /// already will be told.
    is_over: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone)]
enum Event {
    /// Of the Lease with this name.
    Of(Arc<(String, Seen)>),
    /// The watch has failed.
    Over(Fault),
}

impl Feeds {
    pub(super) fn share(&self, share: bool) {
        self.share.store(share, SeqCst);
    }

    /// Whether namespaces are watched as a whole.
    pub(super) fn are_open_to_all(&self) -> bool {
        self.share.load(SeqCst)
            && lock(&self.refused).is_none_or(|since| since.elapsed() >= REFUSED)
    }

    /// Follows one Lease from a version on, by the watch that all share.
    pub(super) async fn follow(
        self: &Arc<Self>,
        client: &LeaseClient,
        namespace: &str,
        name: &str,
        from: &str,
    ) -> Result<BoxStream<'static, Result<Seen, Fault>>, Fault> {
        let (feed, events, is_new) = self.join(client, namespace, from);
        // A new one begins where this Lease was seen last.
        let first = match is_new {
            true => None,
            false => Some(match client.get(namespace, name, READ).await {
                Ok(lease) => Seen::Lease(Box::new(lease)),
                Err(Fault::Gone) => Seen::Deleted,
                Err(fault) => return Err(fault),
            }),
        };
        let name = name.to_owned();
        let rest = stream::unfold((feed, events), move |(feed, mut events)| {
            let name = name.clone();
            async move {
                let next = next_of(&mut events, &name).await;
                Some((next, (feed, events)))
            }
        });
        Ok(Box::pin(stream::iter(first.map(Ok)).chain(rest)))
    }

    /// The feed of a namespace, listened to; whether it begins now.
    fn join(
        self: &Arc<Self>,
        client: &LeaseClient,
        namespace: &str,
        from: &str,
    ) -> (Arc<Feed>, broadcast::Receiver<Event>, bool) {
        let mut open = lock(&self.open);
        if let Some(feed) = open.get(namespace).and_then(Weak::upgrade) {
            let events = feed.events.subscribe();
            if !feed.is_over.load(SeqCst) {
                return (feed, events, false);
            }
        }
        let (sender, events) = broadcast::channel(BEHIND);
        let is_over = Arc::new(AtomicBool::new(false));
        let run = run(
            self.clone(),
            client.clone(),
            (namespace.to_owned(), from.to_owned()),
            sender.clone(),
            is_over.clone(),
        );
        let task = AbortOnDropHandle::new(tokio::spawn(run));
        let feed = Arc::new(Feed { events: sender, is_over, _task: task });
        open.retain(|_, feed| feed.strong_count() > 0);
        open.insert(namespace.to_owned(), Arc::downgrade(&feed));
        (feed, events, true)
    }
}

/// The next that is told of a Lease, or that nothing has happened to any.
async fn next_of(events: &mut broadcast::Receiver<Event>, name: &str) -> Result<Seen, Fault> {
    loop {
        match events.recv().await {
            Ok(Event::Of(event)) => match &event.1 {
                Seen::Bookmark(_) => return Ok(event.1.clone()),
                seen if event.0 == name => return Ok(seen.clone()),
                Seen::Lease(_) | Seen::Deleted => {}
            },
            Ok(Event::Over(fault)) => return Err(fault),
            Err(RecvError::Lagged(_)) => {
                return Err(Fault::Unavailable("too far behind the watch".into()));
            }
            Err(RecvError::Closed) => return Err(Fault::Unavailable("the watch ended".into())),
        }
    }
}

/// Watches a namespace from a version on until it fails.
async fn run(
    feeds: Arc<Feeds>,
    client: LeaseClient,
    (namespace, mut from): (String, String),
    events: broadcast::Sender<Event>,
    is_over: Arc<AtomicBool>,
) {
    let fault = loop {
        let mut watch = match client.watch_all(&namespace, &from).await {
            Ok(watch) => watch,
            Err(fault) => break fault,
        };
        let ended = loop {
            let (name, seen) = match timeout(SILENCE, watch.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(fault))) => break Some(fault),
                // The next one goes on where this one ended.
                Ok(None) => break None,
                Err(_) => break Some(Fault::Unavailable("the watch fell silent".into())),
            };
            match &seen {
                Seen::Lease(lease) => {
                    from = lease.metadata.resource_version.clone().unwrap_or(from);
                }
                Seen::Bookmark(version) => from.clone_from(version),
                Seen::Deleted => {}
            }
            // Nobody listens any more: this task is about to be stopped.
            drop(events.send(Event::Of(Arc::new((name, seen)))));
        };
        if let Some(fault) = ended {
            break fault;
        }
    };
    if let Fault::Refused(why) = &fault {
        tracing::warn!(namespace, why, "Leases are watched one by one: not allowed to watch all");
        *lock(&feeds.refused) = Some(Instant::now());
    }
    is_over.store(true, SeqCst);
    drop(events.send(Event::Over(fault)));
}
