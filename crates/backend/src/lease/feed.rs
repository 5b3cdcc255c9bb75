//! One watch of all Leases of a namespace, for all who follow one of them in this process.
//!
//! RBAC allows a watch on one name, or on none in particular: an account that is given its Leases by
//! name needs a watch for each. Where it is allowed to watch them all, a [`Feed`] does for everybody:
//! it begins with the first who follows a Lease, and ends with the last.
//!
//! Nothing is missed: who joins listens first and reads the Lease then, so what happened before the
//! one is in the other; who has fallen behind reads again. What comes twice, or late, is older news,
//! and those are dropped by whoever notes them. A watch that fails ends the feed and everybody is
//! told; they read, and begin another.

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
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    client::{Fault, LeaseClient, Seen},
    slot::older,
};
use crate::hub::lock;

/// How long a read takes at most.
const READ: Duration = Duration::from_secs(2);
/// By how many events a follower may be behind before it has to read anew.
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
        if !self.share.swap(share, SeqCst) {
            // Who says so now may have just allowed it.
            *lock(&self.refused) = None;
        }
    }

    /// Whether namespaces are watched as a whole.
    pub(super) fn are_open_to_all(&self) -> bool {
        self.share.load(SeqCst)
            && lock(&self.refused).is_none_or(|since| since.elapsed() >= REFUSED)
    }

    /// Follows one Lease from a version on, by the watch that all share.
    pub(super) fn follow(
        self: &Arc<Self>,
        client: &LeaseClient,
        namespace: &str,
        name: &str,
        from: &str,
    ) -> BoxStream<'static, Result<Seen, Fault>> {
        let (feed, events) = self.join(client, namespace, from);
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let follower =
            Follower { client: client.clone(), namespace, name, events, reads: true, _feed: feed };
        Box::pin(stream::unfold(follower, |mut follower| async move {
            let next = follower.next().await;
            Some((next, follower))
        }))
    }

    /// The feed of a namespace, listened to.
    fn join(
        self: &Arc<Self>,
        client: &LeaseClient,
        namespace: &str,
        from: &str,
    ) -> (Arc<Feed>, broadcast::Receiver<Event>) {
        let mut open = lock(&self.open);
        if let Some(feed) = open.get(namespace).and_then(Weak::upgrade) {
            let events = feed.events.subscribe();
            if !feed.is_over.load(SeqCst) {
                return (feed, events);
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
        (feed, events)
    }
}

/// One who follows a Lease.
struct Follower {
    client: LeaseClient,
    namespace: String,
    name: String,
    events: broadcast::Receiver<Event>,
    /// What has not been told is to be read.
    reads: bool,
    _feed: Arc<Feed>,
}

impl Follower {
    /// The next that is to be known of the Lease, or that nothing has happened to any.
    async fn next(&mut self) -> Result<Seen, Fault> {
        loop {
            if self.reads {
                let seen = match self.client.get(&self.namespace, &self.name, READ).await {
                    Ok(lease) => Seen::Lease(Box::new(lease)),
                    Err(Fault::Gone) => Seen::Deleted(String::new()),
                    Err(fault) => return Err(fault),
                };
                self.reads = false;
                return Ok(seen);
            }
            match self.events.recv().await {
                Ok(Event::Of(event)) => match &event.1 {
                    Seen::Bookmark(_) => return Ok(event.1.clone()),
                    seen if event.0 == self.name => return Ok(seen.clone()),
                    Seen::Lease(_) | Seen::Deleted(_) => {}
                },
                Ok(Event::Over(fault)) => return Err(fault),
                Err(RecvError::Lagged(_)) => self.reads = true,
                Err(RecvError::Closed) => {
                    return Err(Fault::Unavailable("the watch ended".into()));
                }
            }
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
    let fault = 'watching: loop {
        let mut watch = match client.watch_all(&namespace, &from).await {
            Ok(watch) => watch,
            Err(fault) => break fault,
        };
        // When it ends the next one goes on from there.
        while let Some(next) = watch.next().await {
            let event = match next {
                Ok(event) => event,
                Err(fault) => break 'watching fault,
            };
            let version = match &event.1 {
                Seen::Lease(lease) => lease.metadata.resource_version.as_deref(),
                Seen::Bookmark(version) | Seen::Deleted(version) => Some(version.as_str()),
            };
            // At the beginning they come in any order.
            if let Some(version) = version.filter(|version| !older(version, &from)) {
                version.clone_into(&mut from);
            }
            // Nobody listens any more: this task is about to be stopped.
            drop(events.send(Event::Of(Arc::new(event))));
        }
    };
    if let Fault::Refused(why) = &fault {
        tracing::warn!(namespace, why, "Leases are watched one by one: not allowed to watch all");
        *lock(&feeds.refused) = Some(Instant::now());
    }
    is_over.store(true, SeqCst);
    drop(events.send(Event::Over(fault)));
}
