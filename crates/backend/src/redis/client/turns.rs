//! Commands of one turn of the runtime, sent as one.
//!
//! Requests that are ready together would each pay for a place in the connection's channel, a timer
//! and a future larger than the allocator's quick sizes. They share one of each: whoever comes first
//! begins a turn, and everybody who comes before its task runs joins it. Nobody waits for a timer,
//! and a lone command goes out at once. Commands keep their order.

use std::sync::{Arc, Mutex};

use redis::{Cmd, Pipeline, RedisError, Value, aio::MultiplexedConnection};
use tokio::sync::oneshot;

use crate::hub::lock;

/// The most commands that are sent as one: an answer comes when all of them are there.
const AT_ONCE: usize = 256;

/// A command that has no good answer.
pub(in crate::redis) struct Refused {
    pub(in crate::redis) error: RedisError,
    /// The command, where the server has answered it. Boxed: few are refused.
    pub(in crate::redis) command: Option<Box<Cmd>>,
}

type Answer = Result<Value, Refused>;

struct Waiting {
    command: Cmd,
    answer: oneshot::Sender<Answer>,
}

/// The turns of one connection.
#[derive(Clone)]
pub(super) struct Turns {
    pub(super) connection: MultiplexedConnection,
    next: Arc<Mutex<Vec<Waiting>>>,
}

impl Turns {
    pub(super) fn new(connection: MultiplexedConnection) -> Self {
        Turns { connection, next: Arc::default() }
    }

    /// Sends a command in the next turn.
    pub(super) async fn send(&self, command: Cmd) -> Answer {
        self.join(command).await.unwrap_or_else(|_| {
            // The runtime ends.
            let error = std::io::Error::from(std::io::ErrorKind::BrokenPipe).into();
            Err(Refused { error, command: None })
        })
    }

    fn join(&self, command: Cmd) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        let mut next = lock(&self.next);
        next.push(Waiting { command, answer });
        if next.len() == 1 {
            self.begin();
        }
        answered
    }

    fn begin(&self) {
        tokio::spawn(self.clone().run());
    }

    async fn run(mut self) {
        let mut waiting = {
            let mut next = lock(&self.next);
            let rest = next.len().min(AT_ONCE);
            let rest = next.split_off(rest);
            let now = std::mem::replace(&mut *next, rest);
            if !next.is_empty() {
                self.begin();
            }
            now
        };
        // Whoever has gone away meanwhile may have begun to cancel: do not send it after that.
        waiting.retain(|one| !one.answer.is_closed());
        if waiting.is_empty() {
            return;
        }
        let (mut commands, mut answers) =
            (Pipeline::with_capacity(waiting.len()), Vec::with_capacity(waiting.len()));
        for Waiting { command, answer } in waiting {
            commands.add_command(command);
            answers.push(answer);
        }
        let sent = self.connection.send_packed_commands(&commands, 0, answers.len()).await;
        let replies = match sent {
            Ok(replies) => replies,
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(Refused { error: error.clone(), command: None }));
                }
                return;
            }
        };
        let sent = answers.into_iter().zip(commands.cmd_iter());
        for ((answer, command), reply) in sent.zip(replies) {
            let is_error = matches!(reply, Value::ServerError(_));
            // Few are.
            let reply = if is_error { reply.extract_error() } else { Ok(reply) };
            let refused = |error| Refused { error, command: Some(Box::new(command.clone())) };
            let _ = answer.send(reply.map_err(refused));
        }
    }
}
