//! A hold that goes to the next waiter of its own session before the store knows (docs/design/0009).

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use holdfast_backend::{
    redis::keys,
    waiter::{Acquisition, Done, Heir, HeldLock, LockClient},
};
use holdfast_core::{
    Address, BackendError, Fence, HoldId, Kind, SystemClock,
    clock::Clock,
    lock::{Acquire, Attempt, Fairness, LockBackend, LockConfig, Passed, Push, Release, Renewal},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::fixture::{Session, Store, TTL, eventually, mk_address, mk_config};

mod crash;
mod workers;

/// A pod: its session, and whatever waits and holds in it.
pub struct Pod {
    pub session: Session,
    pub client: Arc<LockClient>,
}

pub type Acquiring = JoinHandle<Result<Acquisition, BackendError>>;

impl Pod {
    pub async fn new(store: &Store) -> Self {
        let session = store.session();
        assert!(session.locks.subscribed(Duration::from_secs(5)).await);
        let (id, hub) = (session.id.clone(), session.hub.clone());
        let client = LockClient::new(session.locks.clone(), hub, Arc::new(SystemClock), id);
        Pod { session, client }
    }

    /// Asks for a hold; once it waits, if somebody has the lock.
    pub async fn ask(
        &self,
        at: &Address,
        config: &Arc<LockConfig>,
        waiters: u32,
    ) -> (HoldId, Acquiring) {
        let hold = HoldId::random();
        let asking = self.send(at, self.session.request(config, &hold), waiters).await;
        (hold, asking)
    }

    async fn send(&self, at: &Address, request: Acquire, waiters: u32) -> Acquiring {
        let (client, place, config) = (self.client.clone(), at.clone(), request.config.clone());
        let asking = tokio::spawn(async move {
            client.acquire(&place, request, Duration::from_secs(20), false).await
        });
        eventually("it waits", async || {
            let view = self.session.locks.query(at, &config).await.unwrap();
            (view.holds == 1 && view.waiters == waiters).then_some(())
        })
        .await;
        asking
    }

    /// No push reaches it for a while.
    async fn deaf(&self, store: &Store) {
        let _: i64 = store.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await.unwrap();
    }

    pub async fn hold(&self, at: &Address, config: &Arc<LockConfig>) -> (HoldId, HeldLock) {
        let (hold, asking) = self.ask(at, config, 0).await;
        (hold, held(asking).await)
    }

    /// Releases a hold, for the first time or again; what became of it.
    async fn try_release(
        &self,
        at: &Address,
        config: &Arc<LockConfig>,
        (hold, held): (&HoldId, &HeldLock),
        heir: &Heir,
    ) -> Result<Release, BackendError> {
        let (fence, ttl, deadline) = (held.fence, held.ttl, held.deadline);
        let done = Done { at, config, hold, fence, ttl, deadline, heir };
        self.client.release(&done, SystemClock.now()).await
    }

    /// Releases a hold once; whom it was passed on to.
    async fn release(
        &self,
        at: &Address,
        config: &Arc<LockConfig>,
        held: (&HoldId, &HeldLock),
    ) -> (Release, Option<HoldId>) {
        let heir = Heir::new();
        let release = self.try_release(at, config, held, &heir).await.unwrap();
        (release, named(&heir))
    }
}

fn named(heir: &Heir) -> Option<HoldId> {
    heir.told().map(|ticket| ticket.hold.clone())
}

async fn held(asking: Acquiring) -> HeldLock {
    match timeout(Duration::from_secs(10), asking).await.expect("not in time").unwrap() {
        Ok(Acquisition::Held(held)) => held,
        Ok(_) => panic!("not held"),
        Err(error) => panic!("{error}"),
    }
}

fn after(fence: Fence, steps: u64) -> Fence {
    Fence::new(fence.get() + steps)
}

/// How long the store carries out nothing: less than a session here waits for an answer.
const PAUSE: Duration = Duration::from_secs(3);

async fn pause(store: &Store) -> Instant {
    let ms = PAUSE.as_millis().to_string();
    let _: String = store.command(&["CLIENT", "PAUSE", &ms, "ALL"]).await.unwrap();
    Instant::now()
}

#[tokio::test]
async fn the_next_waiter_of_the_pod_does_not_wait_for_the_store() {
    let store = Store::start(&[]).await;
    let (pod, other) = (Pod::new(&store).await, Pod::new(&store).await);
    let (at, config) = (mk_address("near"), mk_config());
    let (mut hold, mut lock) = pod.hold(&at, &config).await;
    let mut waiting = vec![pod.ask(&at, &config, 1).await, pod.ask(&at, &config, 2).await];
    let (_, last) = other.ask(&at, &config, 3).await;
    for (next, asking) in waiting.drain(..) {
        let (begun, heir) = (pause(&store).await, Heir::new());
        let released = pod.try_release(&at, &config, (&hold, &lock), &heir);
        let (released, (mut got, passed)) =
            tokio::join!(released, async { (held(asking).await, begun.elapsed()) });
        assert!(passed < PAUSE / 2 && begun.elapsed() >= PAUSE / 2, "{passed:?}");
        assert_eq!((released, named(&heir)), (Ok(Release::Released), Some(next.clone())));
        assert_eq!((got.fence, got.claimed), (after(lock.fence, 1), false));
        let view = pod.session.locks.query(&at, &config).await.unwrap();
        assert_eq!(view.holder.map(|holder| holder.fence), Some(got.fence));
        // The answer was lost, and the release is sent again: it takes nothing from the heir.
        let again = pod.try_release(&at, &config, (&hold, &lock), &heir).await;
        assert_eq!(again, Ok(Release::Released));
        let renewed = pod.session.locks.renew(&at, &config, &next, TTL).await;
        assert_eq!(renewed, Ok(Renewal::Renewed { ttl: TTL }));
        let news = got.inbox.recv().now_or_never();
        assert_ne!(news, Some(Push::Lost), "told so of a hold that is well");
        (hold, lock) = (next, got);
    }
    // The next one is of another pod: the store decides.
    assert_eq!(pod.release(&at, &config, (&hold, &lock)).await, (Release::Released, None));
    assert!(held(last).await.fence >= after(lock.fence, 2));
}

/// Until the store knows the old hold stands for it, after that its own, for no longer than it asked.
#[tokio::test]
async fn an_heir_trusts_its_hold_no_longer_than_the_store_would_keep_it() {
    let store = Store::start(&[]).await;
    let (pod, at, config) = (Pod::new(&store).await, mk_address("short"), mk_config());
    let (hold, lock) = pod.hold(&at, &config).await;
    let short = TTL / 3;
    let heir = HoldId::random();
    let request = Acquire { ttl: short, ..pod.session.request(&config, &heir) };
    let asking = pod.send(&at, request, 1).await;
    assert_eq!(pod.release(&at, &config, (&hold, &lock)).await.1, Some(heir.clone()));
    let got = held(asking).await;
    let now = SystemClock.now();
    assert!(got.deadline.remaining(now) < short, "{:?}", got.deadline.remaining(now));
    // A short hold that is passed on to a patient one is worth no more than it was.
    let (patient, asking) = pod.ask(&at, &config, 1).await;
    assert_eq!(pod.release(&at, &config, (&heir, &got)).await.1, Some(patient));
    let got = held(asking).await;
    assert!(got.deadline.remaining(SystemClock.now()) < short);
}

/// Two heirs would have one fence: who releases first decides, for all who do it again.
#[tokio::test]
async fn a_hold_has_one_heir_however_often_it_is_released() {
    let store = Store::start(&[]).await;
    let (pod, at, config) = (Pod::new(&store).await, mk_address("twice"), mk_config());
    let (hold, lock) = pod.hold(&at, &config).await;
    let (first, asking) = pod.ask(&at, &config, 1).await;
    let heir = Heir::new();
    let again = || pod.try_release(&at, &config, (&hold, &lock), &heir);
    assert_eq!(again().await, Ok(Release::Released));
    let got = held(asking).await;
    // Another is first in line now.
    let (_, second) = pod.ask(&at, &config, 1).await;
    assert_eq!((again().await, named(&heir)), (Ok(Release::Released), Some(first.clone())));
    assert!(!second.is_finished(), "two heirs");
    // Nor does a hold that was not passed on get an heir later.
    let heir = Heir::nobody();
    let released = pod.try_release(&at, &config, (&first, &got), &heir).await;
    assert_eq!(released, Ok(Release::Released));
    assert!(held(second).await.fence >= after(got.fence, 2));
}

/// The kept sequence is nobody else's: what was lost before it was passed on stays lost, and is stale.
#[tokio::test]
async fn an_heir_of_what_was_lost_has_a_stale_fence_and_is_told() {
    let store = Store::start(&[]).await;
    let (pod, other) = (Pod::new(&store).await, Pod::new(&store).await);
    for key in ["another's", "the heir's own"] {
        let (at, config) = (mk_address(key), mk_config());
        let (hold, lock) = pod.hold(&at, &config).await;
        let (heir, asking) = pod.ask(&at, &config, 1).await;
        // Behind the pod's back: its hold is taken, and given to another, or to the heir itself, but
        // under another number. Of that the pod has not heard.
        let listening = pod.session.hub.register(&heir);
        if key == "another's" {
            other.session.locks.cancel(&at, &config, &heir).await.unwrap();
        }
        pod.deaf(&store).await;
        other.session.locks.force_release(&at, &config).await.unwrap().unwrap();
        let theirs = match key {
            "another's" => Some(other.hold(&at, &config).await.1.fence),
            _ => None,
        };
        assert_eq!(pod.release(&at, &config, (&hold, &lock)).await.0, Release::NotHeld);
        drop(listening);
        let mut got = held(asking).await;
        assert_eq!(got.fence, after(lock.fence, 1));
        assert_eq!(timeout(PAUSE, got.inbox.recv()).await, Ok(Push::Lost), "{key}");
        drop(got);
        let newest = other.session.locks.newest_fence(&at, &config).await.unwrap();
        assert!(newest > after(lock.fence, 1), "two holders with fences in the wrong order");
        // And what the store gave the heir is given back.
        eventually("it is taken back", async || {
            let view = pod.session.locks.query(&at, &config).await.unwrap();
            (view.holder.map(|holder| holder.fence) == theirs).then_some(())
        })
        .await;
    }
}

/// A release that could not even be sent names nobody: what the store grants to the waiter meanwhile is
/// not taken from it when the release is sent again.
#[tokio::test]
async fn who_was_not_told_is_no_heir() {
    let store = Store::start(&[]).await;
    let (pod, other) = (Pod::new(&store).await, Pod::new(&store).await);
    let (at, patient) = (mk_address("untold"), mk_config());
    let config = Arc::new(LockConfig { ttl_ms: 2_000, ..LockConfig::clone(&patient) });
    let (hold, lock) = pod.hold(&at, &config).await;
    let (first, asking) = pod.ask(&at, &patient, 1).await;
    let (epoch, heir) = (store.epoch.send_replace(None), Heir::new());
    let unsent = pod.try_release(&at, &config, (&hold, &lock), &heir).await;
    assert_eq!((unsent.is_err(), named(&heir)), (true, None));
    store.epoch.send_replace(epoch);
    let granted = eventually("the hold runs out", async || {
        other.session.locks.beat(&at, &patient, &other.session.id).await.unwrap();
        asking.is_finished().then_some(())
    });
    granted.await;
    let got = held(asking).await;
    assert!(got.fence >= after(lock.fence, 2));
    let sent = pod.try_release(&at, &config, (&hold, &lock), &heir).await;
    assert_eq!(sent, Ok(Release::NotHeld));
    let renewed = pod.client.renew(&at, &patient, &first, TTL).await;
    assert_eq!(renewed, Ok(Renewal::Renewed { ttl: TTL }), "taken from whom the store gave it to");
}

/// What an heir asks before the store knows is not taken for its end.
#[tokio::test]
async fn an_heir_that_comes_before_its_release_is_told_to_try_again() {
    let store = Store::start(&[]).await;
    let (pod, at, config) = (Pod::new(&store).await, mk_address("early"), mk_config());
    let (hold, lock) = pod.hold(&at, &config).await;
    let (first, asking) = pod.ask(&at, &config, 1).await;
    let heir = Heir::new();
    // Its caller goes away, and takes it out of the turn.
    let unsent = pod.try_release(&at, &config, (&hold, &lock), &heir).now_or_never();
    assert_eq!((unsent, named(&heir)), (None, Some(first.clone())));
    let got = held(asking).await;
    let early = pod.client.renew(&at, &config, &first, TTL).await;
    assert!(matches!(early, Err(BackendError::Unavailable(_))), "{early:?}");
    let sent = pod.try_release(&at, &config, (&hold, &lock), &heir).await;
    assert_eq!((sent, got.fence), (Ok(Release::Released), after(lock.fence, 1)));
    let renewed = pod.client.renew(&at, &config, &first, TTL).await;
    assert_eq!(renewed, Ok(Renewal::Renewed { ttl: TTL }));
}

/// What the store says to an heir that came first is older than what it says to its release, even where
/// the heir hears it later.
#[tokio::test]
async fn an_heir_that_came_first_and_is_answered_last_is_told_to_try_again() {
    let store = Store::start(&[]).await;
    let (pod, at, config) = (Pod::new(&store).await, mk_address("both"), mk_config());
    let (hold, lock) = pod.hold(&at, &config).await;
    let (first, asking) = pod.ask(&at, &config, 1).await;
    let (heir, its) = (Heir::new(), Heir::new());
    let release = || pod.try_release(&at, &config, (&hold, &lock), &heir);
    // Its caller goes away, and takes it out of the turn.
    assert_eq!(release().now_or_never(), None);
    let got = held(asking).await;
    pause(&store).await;
    let mut early = Box::pin(pod.try_release(&at, &config, (&first, &got), &its));
    assert_eq!((&mut early).now_or_never(), None);
    // Of two answers that come together this one is looked at first.
    let (sent, early) = tokio::join!(release(), early);
    assert!(matches!(early, Err(BackendError::Unavailable(_))), "{early:?}");
    assert_eq!(sent, Ok(Release::Released));
    let again = pod.try_release(&at, &config, (&first, &got), &its).await;
    assert_eq!(again, Ok(Release::Released));
    assert_eq!(pod.session.locks.query(&at, &config).await.unwrap().holds, 0);
}

/// A ticket that the store has lost (evicted, reaped) is no reason to let another pod in.
#[tokio::test]
async fn an_heir_whose_ticket_is_lost_is_the_heir() {
    let store = Store::start(&[]).await;
    let (pod, other) = (Pod::new(&store).await, Pod::new(&store).await);
    let (at, config) = (mk_address("ticket"), mk_config());
    let (hold, lock) = pod.hold(&at, &config).await;
    let (_, asking) = pod.ask(&at, &config, 1).await;
    let (_, theirs) = other.ask(&at, &config, 2).await;
    let queue = keys::ObjectKeys::new(&at).queue();
    let _: i64 = store.command(&["LPOP", &queue, "1"]).await.map(|_: Vec<String>| 0).unwrap();
    pod.release(&at, &config, (&hold, &lock)).await;
    let got = held(asking).await;
    let view = pod.session.locks.query(&at, &config).await.unwrap();
    assert_eq!(view.holder.map(|holder| holder.fence), Some(got.fence));
    assert!(!theirs.is_finished());
}

/// First come, first served; and what a class says of its holds is kept.
#[tokio::test]
async fn only_who_is_next_by_the_rules_of_the_class_inherits() {
    let store = Store::start(&[]).await;
    let (pod, other) = (Pod::new(&store).await, Pod::new(&store).await);
    let (at, config) = (mk_address("order"), mk_config());
    let (hold, lock) = pod.hold(&at, &config).await;
    let (_, theirs) = other.ask(&at, &config, 1).await;
    let (_, ours) = pod.ask(&at, &config, 2).await;
    let (_, heir) = pod.release(&at, &config, (&hold, &lock)).await;
    assert_eq!(heir, None, "a waiter of another pod was overtaken");
    let theirs = held(theirs).await;
    assert!(!ours.is_finished() && theirs.fence > lock.fence);

    let without = |change: fn(&mut LockConfig)| {
        let mut config = LockConfig::clone(&mk_config());
        change(&mut config);
        Arc::new(config)
    };
    for (key, config) in [
        ("any", without(|config| config.fairness = Fairness::None)),
        ("minimal", without(|config| config.min_hold_ms = 300)),
    ] {
        let at = mk_address(key);
        let (hold, lock) = pod.hold(&at, &config).await;
        let (_, asking) = pod.ask(&at, &config, 1).await;
        assert_eq!(pod.release(&at, &config, (&hold, &lock)).await.1, None, "{key}");
        assert!(held(asking).await.fence >= after(lock.fence, 2), "{key}");
    }
    // An election names its leader by the store alone.
    let at = Address { kind: Kind::LeaderElection, ..mk_address("term") };
    let (hold, lock) = pod.hold(&at, &config).await;
    let (_, asking) = pod.ask(&at, &config, 1).await;
    assert_eq!(pod.release(&at, &config, (&hold, &lock)).await.1, None);
    held(asking).await;
}

#[tokio::test]
async fn who_has_given_up_inherits_nothing() {
    let store = Store::start(&[]).await;
    let (pod, at, config) = (Pod::new(&store).await, mk_address("gone"), mk_config());
    let (hold, lock) = pod.hold(&at, &config).await;
    let (gone, asking) = pod.ask(&at, &config, 1).await;
    let (_, next) = pod.ask(&at, &config, 2).await;
    asking.abort();
    eventually("it has left", async || {
        let view = pod.session.locks.query(&at, &config).await.unwrap();
        (view.waiters == 1).then_some(())
    })
    .await;
    // Even if it is named: its cancellation came first.
    let heir = Arc::new(pod.session.request(&config, &gone).ticket());
    let passed = pod.session.locks.pass_on(&at, &config, &hold, lock.fence, heir).await;
    assert_eq!(passed, Ok(Passed { release: Release::Released, is_heirs: false, first: None }));
    let next = held(next).await;
    assert!(next.fence >= after(lock.fence, 2));
    let refused = pod.session.try_acquire(&at, &config, &gone).await;
    assert_eq!(refused, Ok(Attempt::Cancelled));
}

/// Lost, or given back by who died: nobody would release what the store gives it after that.
#[tokio::test]
async fn an_heir_that_ended_before_the_store_knew_keeps_nothing() {
    let store = Store::start(&[]).await;
    let (pod, other) = (Pod::new(&store).await, Pod::new(&store).await);
    let (at, config) = (mk_address("ended"), mk_config());
    let (hold, lock) = pod.hold(&at, &config).await;
    let (heir, asking) = pod.ask(&at, &config, 1).await;
    pause(&store).await;
    let released = pod.release(&at, &config, (&hold, &lock));
    let ((_, passed_to), ()) = tokio::join!(released, async { drop(held(asking).await) });
    assert_eq!(passed_to, Some(heir));
    let (_, next) = timeout(TTL / 3, other.hold(&at, &config)).await.expect("a ghost holds it");
    assert!(next.fence > after(lock.fence, 1));
}
