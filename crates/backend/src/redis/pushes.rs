//! A session's pushes: the one connection that listens, and what it hears.
//!
//! Pushes are a short cut, never the truth: one that is lost (while this connection is being remade,
//! say) is learnt from the session's next beat.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::StreamExt;
use holdfast_core::{
    BackendError, Fence, HoldId,
    clock::Backoff,
    lock::{Grant, Push},
};
use redis::aio::{PubSubSink, PubSubStream};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{config::RedisConfig, errors};
use crate::hub::Hub;

/// How often a silent connection is tried, since the other end may be gone without a word.
const PING_EVERY: Duration = Duration::from_secs(10);

/// What became of the pushes so far.
#[derive(Debug, Default)]
pub struct PushCounts {
    /// Messages that reached somebody.
    pub delivered: AtomicU64,
    /// Messages for a hold that nobody here waits for or holds (any more).
    pub unclaimed: AtomicU64,
    /// Messages that no version of ours sends.
    pub garbled: AtomicU64,
    /// How often the connection was lost; pushes meanwhile were lost, too.
    pub lost_connections: AtomicU64,
}

/// More channels to listen to, as they are wanted, and where the names of those go on which something
/// was said, with the number that this store has among several.
pub(super) struct Topics {
    pub(super) wanted: watch::Receiver<BTreeSet<String>>,
    pub(super) heard: mpsc::UnboundedSender<(usize, String)>,
    pub(super) server: usize,
}

/// Listens to a channel until it is dropped.
pub(super) struct Listener {
    pub(super) topics: Option<Topics>,
    pub(super) config: RedisConfig,
    pub(super) channel: String,
    pub(super) hub: Arc<Hub>,
    pub(super) counts: Arc<PushCounts>,
    pub(super) subscribed: watch::Sender<bool>,
}

impl Listener {
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            match self.subscribe().await {
                Ok((sink, stream)) => {
                    backoff.reset();
                    self.subscribed.send_replace(true);
                    self.listen(sink, stream).await;
                    self.subscribed.send_replace(false);
                    self.counts.lost_connections.fetch_add(1, Relaxed);
                    tracing::warn!(store = ?self.config,
                        "lost the connection for pushes; waiters rely on their beats meanwhile");
                }
                Err(error) => tracing::debug!(store = ?self.config, %error, "cannot subscribe"),
            }
            sleep(backoff.next_delay()).await;
        }
    }

    async fn subscribe(&self) -> Result<(PubSubSink, PubSubStream), BackendError> {
        let client = self.config.find().await?;
        let subscribing = async {
            let mut connection = client.get_async_pubsub().await?;
            connection.subscribe(&self.channel).await?;
            Ok(connection.split())
        };
        match timeout(self.config.connect_timeout, subscribing).await {
            Ok(subscribed) => subscribed.map_err(|error| errors::at_connect(&error)),
            Err(_) => Err(BackendError::Unavailable("no subscription in time".into())),
        }
    }

    /// Returns when the connection is gone.
    async fn listen(&mut self, mut sink: PubSubSink, mut stream: PubSubStream) {
        let mut topics = BTreeSet::new();
        if let Some(Topics { wanted, .. }) = &mut self.topics {
            wanted.mark_changed();
        }
        let mut ping = interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.tick().await;
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) => self.deliver(&message),
                    None => return,
                },
                wanted = changed(&mut self.topics) => {
                    let follow = follow(&mut sink, &mut topics, wanted);
                    if !matches!(timeout(self.config.response_timeout, follow).await, Ok(Ok(()))) {
                        return;
                    }
                }
                _ = ping.tick() => {
                    let pong = timeout(self.config.response_timeout, sink.ping::<redis::Value>());
                    if !matches!(pong.await, Ok(Ok(_))) {
                        return;
                    }
                }
            }
        }
    }

    fn deliver(&self, message: &redis::Msg) {
        let (channel, payload) = (message.get_channel_name(), message.get_payload_bytes());
        if let Some(topics) = self.topics.as_ref().filter(|_| channel != self.channel) {
            // Nobody listens any more when the reader is gone.
            let _ = topics.heard.send((topics.server, channel.to_owned()));
            return;
        }
        let Some((hold, push)) = std::str::from_utf8(payload).ok().and_then(parse) else {
            self.counts.garbled.fetch_add(1, Relaxed);
            tracing::warn!(channel = self.channel, "a push that no version of ours sends");
            return;
        };
        let reached = self.hub.send(&hold, push);
        let count = if reached { &self.counts.delivered } else { &self.counts.unclaimed };
        count.fetch_add(1, Relaxed);
    }
}

/// The channels that are wanted, when they have changed.
async fn changed(topics: &mut Option<Topics>) -> BTreeSet<String> {
    if let Some(Topics { wanted, .. }) = topics
        && wanted.changed().await.is_ok()
    {
        return wanted.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// Listens to what is wanted and to nothing else.
async fn follow(
    sink: &mut PubSubSink,
    topics: &mut BTreeSet<String>,
    wanted: BTreeSet<String>,
) -> redis::RedisResult<()> {
    for topic in wanted.difference(topics) {
        sink.subscribe(topic).await?;
    }
    for topic in topics.difference(&wanted) {
        sink.unsubscribe(topic).await?;
    }
    *topics = wanted;
    Ok(())
}

/// `g <hold> <seq> <ttl ms> <epoch>` is a grant, `l <hold>` a loss. What follows is of later
/// versions.
fn parse(text: &str) -> Option<(HoldId, Push)> {
    let mut words = text.split(' ');
    let (verb, hold) = (words.next()?, HoldId::new(words.next()?).ok()?);
    let mut number = || words.next()?.parse::<u64>().ok();
    match verb {
        "g" => {
            let (seq, ttl_ms, epoch) = (number()?, number()?, number()?);
            let fence = Fence::compose(epoch, seq).ok()?;
            let grant = Grant::offered(fence, Duration::from_millis(ttl_ms));
            Some((hold, Push::Granted { grant }))
        }
        "l" => Some((hold, Push::Lost)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_are_read_and_noise_is_not() {
        let (hold, push) = parse("g h1 1795434121145 900 7").unwrap();
        assert_eq!(hold.as_str(), "h1");
        let fence = Fence::compose(7, 1_795_434_121_145).unwrap();
        let grant = Grant { fence, ttl: Duration::from_millis(900), claimed: false, since: None };
        assert_eq!(push, Push::Granted { grant });
        assert_eq!(parse("l h1 later words").unwrap().1, Push::Lost);
        for noise in ["", "g", "g h1", "g h1 1 2", "g h1 x 2 3", "g h1 1 2 9999999999", "x h1"] {
            assert!(parse(noise).is_none(), "{noise:?}");
        }
    }
}
