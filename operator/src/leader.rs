//! The operator's own election: which replica writes. Our locks, used by ourselves.
//!
//! Leadership is a hold of a lock on a Lease, with all the rules of `holdfast_backend::lease`: it
//! counts from before the renewing request was sent, and is judged by no other clock than ours.
//!
//! - The receiver says `false` a tenth of the Lease's duration before the hold must not be trusted
//!   any more, so that writes that have begun can end.
//! - The Lease is released only after every receiver is dropped: who still has one may still write.
//! - Two leaders would do no harm (each write of the operator is conditional); the election saves
//!   work, and keeps Events from being said twice.

use std::{sync::Arc, time::Duration};

use holdfast_backend::{
    hub::Hub,
    lease::{LeaseClient, LeaseLocks, names},
    waiter::{Acquisition, HeldLock, LockClient},
};
use holdfast_core::{
    Address, BackendError, ClassName, Clock, Deadline, Fence, HoldId, Holder, Key, Kind, SessionId,
    SystemClock,
    clock::Backoff,
    lock::{Acquire, Consistency, Fairness, Keys, LockConfig, Renewal},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, Config, api::PostParams};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long one call of `acquire` waits before it is made again.
const WAIT: Duration = Duration::from_secs(60);
/// Timers stand still in suspend; the clocks are looked at this often.
const LOOK: Duration = Duration::from_millis(500);
/// For how long a stopped leader waits until nobody writes any more.
const HAND_OVER: Duration = Duration::from_secs(10);

/// What the operator's flags say about its election.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of the operator, where the Lease is.
    pub namespace: String,
    /// The name of the election; the Lease is called `holdfast-lock-<name>`.
    pub name: ClassName,
    /// The name of this pod.
    pub identity: Holder,
    /// How long leadership lasts without a renewal.
    pub duration: Duration,
}

/// Stands for election until `stop`. The receiver says whether this replica leads.
///
/// # Errors
/// When the credentials cannot be used. A store that is away is waited for.
pub fn start(
    client: Client,
    config: &Config,
    settings: Settings,
    stop: CancellationToken,
) -> Result<(watch::Receiver<bool>, JoinHandle<()>), BackendError> {
    let (leads, receiver) = watch::channel(false);
    let hub = Hub::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let locks = LeaseLocks::new(LeaseClient::new(config)?, hub.clone(), clock.clone());
    let session = SessionId::random();
    let candidate = Candidate {
        leases: Api::namespaced(client, &settings.namespace),
        locks: LockClient::new(locks, hub, clock.clone(), session.clone()),
        clock,
        session,
        at: Address {
            kind: Kind::Lock,
            namespace: settings.namespace.as_str().into(),
            class: settings.name.clone(),
            key: Key::default_key(),
        },
        config: Arc::new(lock_config(settings.duration)),
        settings,
        leads,
    };
    Ok((receiver, tokio::spawn(candidate.stand(stop))))
}

struct Candidate {
    settings: Settings,
    leases: Api<Lease>,
    locks: Arc<LockClient>,
    clock: Arc<dyn Clock>,
    session: SessionId,
    at: Address,
    config: Arc<LockConfig>,
    leads: watch::Sender<bool>,
}

impl Candidate {
    async fn stand(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        while !stop.is_cancelled() {
            let hold = HoldId::random();
            let elected = tokio::select! {
                elected = self.elected(&hold) => elected,
                () = stop.cancelled() => return,
            };
            match elected {
                Ok(Some(held)) => {
                    tracing::info!(fence = %held.fence, identity = %self.settings.identity, "leads");
                    self.leads.send_replace(true);
                    let deadline = self.lead(&hold, &held, &stop).await;
                    self.leads.send_replace(false);
                    tracing::info!("leads no more");
                    if stop.is_cancelled() {
                        return self.hand_over(&hold, deadline).await;
                    }
                    backoff.reset();
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "could not stand for election; trying again");
                    tokio::select! {
                        () = sleep(backoff.next_delay()) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    /// Waits to be elected; `None` when it is time to ask again.
    async fn elected(&self, hold: &HoldId) -> Result<Option<HeldLock>, BackendError> {
        let request = Acquire {
            config: self.config.clone(),
            hold: hold.clone(),
            session: self.session.clone(),
            holder: self.settings.identity.clone(),
            ttl: self.settings.duration,
            max_hold: Duration::ZERO,
            enqueue: true,
            permits: 1,
        };
        // A waiter would wait for a Lease that nobody else makes.
        self.create_lease().await?;
        match self.locks.acquire(&self.at, request, WAIT, true).await? {
            Acquisition::Held(held) => Ok(Some(held)),
            Acquisition::Locked { .. }
            | Acquisition::QueueFull { .. }
            | Acquisition::TooMany { .. }
            | Acquisition::Cancelled => Ok(None),
        }
    }

    /// Creates the Lease, held by nobody. Someone else's is as good.
    async fn create_lease(&self) -> Result<(), BackendError> {
        let at = &self.at;
        let lease = names::unheld(&at.namespace, at.kind, &at.class, &at.key);
        match self.leases.create(&PostParams::default(), &lease).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(BackendError::Unavailable(format!(
                "could not create the Lease of the operator's election: {error}"
            ))),
        }
    }

    /// Renews while it can; returns the last deadline once leadership is over or `stop` came.
    async fn lead(&self, hold: &HoldId, held: &HeldLock, stop: &CancellationToken) -> Deadline {
        let ttl = self.settings.duration;
        let mut deadline = held.deadline;
        let mut renew_at = ttl / 5;
        loop {
            let now = self.clock.now();
            let left = deadline.remaining(now).saturating_sub(ttl / 10);
            if left.is_zero() {
                tracing::warn!("leadership could not be renewed in time");
                return deadline;
            }
            let since = now.since(deadline.since());
            if since < renew_at {
                tokio::select! {
                    () = sleep((renew_at - since).min(left).min(LOOK)) => continue,
                    () = stop.cancelled() => return deadline,
                }
            }
            let renewal = self.locks.backend().renew(&self.at, &self.config, hold, ttl);
            let renewed = tokio::select! {
                renewed = timeout(left.min(ttl / 6), renewal) => renewed,
                () = stop.cancelled() => return deadline,
            };
            match renewed {
                Ok(Ok(Renewal::Renewed { ttl })) => {
                    deadline = Deadline::new(now, ttl);
                    renew_at = spread(ttl / 5);
                }
                Ok(Ok(Renewal::Lost)) => return deadline,
                // Until the deadline nobody else leads; the next try comes soon.
                Ok(Err(error)) => {
                    tracing::debug!(%error, "leadership was not renewed yet");
                    renew_at = since + spread(ttl / 15);
                }
                Err(_) => renew_at = since,
            }
        }
    }

    /// Releases the Lease once nobody here writes any more; otherwise it is left to expire.
    async fn hand_over(&self, hold: &HoldId, deadline: Deadline) {
        let left = deadline.remaining(self.clock.now()).min(HAND_OVER);
        if timeout(left, self.leads.closed()).await.is_err() {
            tracing::warn!("work of the leader has not ended; its Lease is left to expire");
            return;
        }
        let release = self.locks.backend().release(&self.at, &self.config, hold);
        match timeout(HAND_OVER, release).await {
            Ok(Ok(_)) => tracing::info!("handed leadership over"),
            Ok(Err(error)) => tracing::warn!(%error, "the Lease is left to expire"),
            Err(_) => tracing::warn!("the Lease is left to expire: no answer to its release"),
        }
    }
}

/// Ten per cent either way, so that replicas do not renew in step.
fn spread(duration: Duration) -> Duration {
    duration.mul_f64(0.9 + 0.2 * f64::from(jiff::Timestamp::now().subsec_nanosecond() % 1000) / 1e3)
}

fn lock_config(duration: Duration) -> LockConfig {
    LockConfig {
        generation: 1,
        ttl_ms: duration.as_millis().try_into().unwrap_or(u64::MAX),
        max_hold_ms: 0,
        min_hold_ms: 0,
        lock_delay_ms: 0,
        permits: 1,
        max_per_holder: 0,
        keys: Keys::Fixed(vec![Key::default_key()]),
        max_waiters: 1,
        fairness: Fairness::Fifo,
        consistency: Consistency::Strict,
        fence_floor: Fence::new(0),
    }
}
