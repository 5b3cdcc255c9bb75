//! Grants that replicas have acknowledged: transitions followed by WAIT, on a connection of their
//! own.
//!
//! WAIT blocks the connection it is sent on, so it never goes where the other requests go. Requests
//! are committed in groups: those that arrive while a group is under way make up the next one, and
//! one WAIT answers for all of a group. A request so waits for two time-outs at most, however many
//! there are.
//!
//! Invariant: WAIT counts replicas that have everything which *its* connection wrote. Each
//! transition sent here therefore writes, even one that only finds what an earlier request did.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use holdfast_core::BackendError;
use redis::{Pipeline, Value};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::{
    client::Client,
    config::RedisConfig,
    errors::{self, Meaning},
    request::{Call, library_load},
    scripts::Scripts,
};

/// How many replicas must have a grant before it is answered, and how long that may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// How many replicas.
    pub replicas: u8,
    /// How long. Redis reads zero as "for ever": a connection takes a millisecond for it.
    pub timeout: Duration,
}

impl Ack {
    /// A grant that too few replicas have, and that was undone.
    pub(super) fn short_of(self, got: u64) -> BackendError {
        BackendError::Unavailable(format!(
            "{got} of {} replicas acknowledged the grant within {} ms, so it was undone; try again, \
             or look at the replicas",
            self.replicas,
            self.timeout.as_millis()
        ))
    }
}

/// The most requests that one WAIT answers for.
const GROUP: usize = 256;
/// Requests that may wait for a group; more are refused.
const QUEUE: usize = 4_096;

/// What one transition answered, and how many replicas have it.
type Outcome = Result<(Value, u64), BackendError>;

struct Request {
    call: Call,
    answer: oneshot::Sender<Outcome>,
}

/// A connection on which every transition is acknowledged.
pub(super) struct Acked {
    ack: Ack,
    requests: mpsc::Sender<Request>,
    _committer: AbortOnDropHandle<()>,
}

impl Acked {
    /// Connects when first used.
    pub(super) fn start(config: &RedisConfig, scripts: &'static Scripts, ack: Ack) -> Self {
        let ack = Ack { timeout: ack.timeout.max(Duration::from_millis(1)), ..ack };
        let mut config = config.clone();
        config.response_timeout += ack.timeout;
        let client = Client::with_scripts(config, scripts);
        let (requests, queue) = mpsc::channel(QUEUE);
        let committer = Committer { client, scripts, ack, functions: AtomicBool::new(true) };
        let committer = AbortOnDropHandle::new(tokio::spawn(committer.run(queue)));
        Acked { ack, requests, _committer: committer }
    }

    /// What is asked of replicas.
    pub(super) fn ack(&self) -> Ack {
        self.ack
    }

    /// Runs a transition. How many replicas have what it wrote is the last of the values.
    pub(super) async fn perform(&self, call: Call) -> Result<Vec<Value>, BackendError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { call, answer };
        self.requests.try_send(request).map_err(|_| {
            BackendError::Unavailable(
                "too many grants wait for replicas to acknowledge them".into(),
            )
        })?;
        let outcome = answered.await.unwrap_or_else(|_| {
            Err(BackendError::Unknown("the connection for acknowledged grants is closed".into()))
        });
        match outcome? {
            (Value::Array(mut values), acked) => {
                values.push(Value::Int(i64::try_from(acked).unwrap_or(i64::MAX)));
                Ok(values)
            }
            (other, _) => Err(super::reply::unexpected(format!("{other:?}"))),
        }
    }
}

struct Committer {
    client: Client,
    scripts: &'static Scripts,
    ack: Ack,
    /// Whether the server has Functions. Found out by trying.
    functions: AtomicBool,
}

impl Committer {
    async fn run(self, mut queue: mpsc::Receiver<Request>) {
        let mut group = Vec::with_capacity(GROUP);
        while queue.recv_many(&mut group, GROUP).await > 0 {
            // Whoever has gone away meanwhile has begun to cancel: do not send it after that.
            group.retain(|request| !request.answer.is_closed());
            if !group.is_empty() {
                self.commit(std::mem::take(&mut group)).await;
            }
        }
    }

    async fn commit(&self, group: Vec<Request>) {
        let again = self.send(group).await;
        if again.is_empty() {
            return;
        }
        // None of these has been carried out. The second answer is the last.
        for request in self.send(again).await {
            let why = "the function library is not in the store; the operator loads it";
            let _ = request.answer.send(Err(BackendError::Unavailable(why.into())));
        }
    }

    /// Sends a group and answers it, but for those that the server did not know how to run: they
    /// come back, once the reason has been seen to.
    async fn send(&self, group: Vec<Request>) -> Vec<Request> {
        let mut pipeline = Pipeline::with_capacity(group.len() + 1);
        for request in &group {
            let Request { call, .. } = request;
            pipeline.add_command(if self.functions.load(Relaxed) {
                call.function.clone()
            } else {
                call.script("EVAL", &self.scripts.script(call.transition).code)
            });
        }
        let timeout_ms = self.ack.timeout.as_millis() as u64;
        pipeline.cmd("WAIT").arg(self.ack.replicas).arg(timeout_ms);
        let replies = match self.client.pipeline(&pipeline, group.len() + 1).await {
            Ok(replies) if replies.len() == group.len() + 1 => replies,
            Ok(_) => return answer_all(group, &super::reply::unexpected("too short")),
            Err(error) => return answer_all(group, &error),
        };
        let mut replies = replies.into_iter();
        let outcomes: Vec<Value> = replies.by_ref().take(group.len()).collect();
        let acked = match replies.next().map(Value::extract_error) {
            Some(Ok(Value::Int(acked))) => u64::try_from(acked).unwrap_or(0),
            // No count is no acknowledgement: such grants are undone.
            other => {
                tracing::warn!(?other, "the store does not say how many replicas have a grant");
                0
            }
        };
        let (mut again, mut library) = (Vec::new(), false);
        for (request, outcome) in group.into_iter().zip(outcomes) {
            let error = match outcome.extract_error() {
                Ok(value) => {
                    let _ = request.answer.send(Ok((value, acked)));
                    continue;
                }
                Err(error) => error,
            };
            match errors::meaning(&error) {
                Some(Meaning::NoCommand) => {
                    self.functions.store(false, Relaxed);
                    again.push(request);
                }
                Some(Meaning::NotLoaded) => {
                    library = true;
                    again.push(request);
                }
                meaning => {
                    if meaning == Some(Meaning::WrongServer) {
                        self.client.reconnect(&error);
                    }
                    let _ = request.answer.send(Err(errors::in_flight(&error)));
                }
            }
        }
        if library {
            // A tenant may not, where the operator does: the next answer tells.
            let _ = self.client.run::<Value>(&library_load(self.scripts)).await;
        }
        again
    }
}

/// The same for all; nothing is left to be sent again.
fn answer_all(group: Vec<Request>, error: &BackendError) -> Vec<Request> {
    for request in group {
        let _ = request.answer.send(Err(error.clone()));
    }
    Vec::new()
}
