//! What a server is asked, and why there may be no reply of use.

use holdfast_core::BackendError;
use redis::{Cmd, RedisError, Value, aio::MultiplexedConnection};

use super::{
    client::turns::Refused,
    errors,
    scripts::{Scripts, Transition},
};

/// FCALL, the function, the number of keys: the first of them follows.
const FIRST_KEY: usize = 3;

/// What is asked of a server.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    /// A command.
    Command(&'a Cmd),
    /// A transition.
    Call(&'a Call),
}

/// Why there is no reply of use.
pub(super) enum Failure {
    /// Nothing was sent.
    Unsent(BackendError),
    /// The server refused, or the connection broke.
    Sent(RedisError),
    /// Asking again is no use now.
    Final(BackendError),
}

impl From<Failure> for BackendError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unsent(error) | Failure::Final(error) => error,
            Failure::Sent(error) => errors::in_flight(&error),
        }
    }
}

/// Sends a command about a slot that the server is about to get. Both as one write: ASKING is about
/// the next command of the connection, which others use as well.
pub(super) async fn send_asking(
    mut connection: MultiplexedConnection,
    command: Cmd,
) -> Result<Value, Refused> {
    let mut pipeline = redis::Pipeline::with_capacity(2);
    pipeline.cmd("ASKING").add_command(command.clone());
    let replies = connection.send_packed_commands(&pipeline, 1, 1).await;
    let replies = replies.map_err(|error| Refused { error, command: None })?;
    let reply = replies.into_iter().next().unwrap_or(Value::Nil).extract_error();
    reply.map_err(|error| Refused { error, command: Some(Box::new(command)) })
}

/// The command that loads a library.
pub(super) fn library_load(scripts: &Scripts) -> Cmd {
    let mut command = redis::cmd("FUNCTION");
    command.arg("LOAD").arg(scripts.source());
    command
}

/// Whether FUNCTION LOAD found the library there.
pub(super) fn is_loaded_already(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("already exists"))
}

/// A transition with all that it is told. Written down before anything is waited for: what waits for
/// a store is small then, and needs none of what it was made from.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) transition: Transition,
    /// As a function of the library.
    pub(super) function: Cmd,
}

impl Call {
    pub(super) fn new(
        scripts: &Scripts,
        transition: Transition,
        keys: [&[&str]; 2],
        args: [&[&str]; 2],
    ) -> Self {
        let name = scripts.function(transition);
        let (mut many, mut size) = (FIRST_KEY, 16 + name.len());
        for parts in keys.iter().chain(&args) {
            many += parts.len();
            size += parts.iter().map(|part| part.len()).sum::<usize>();
        }
        let mut function = Cmd::with_capacity(many, size);
        function.arg("FCALL").arg(name).arg(keys[0].len() + keys[1].len());
        for parts in keys.iter().chain(&args) {
            function.arg(*parts);
        }
        Call { transition, function }
    }

    /// The first of its keys: all of them are in one slot of a cluster.
    pub(super) fn name(&self) -> &str {
        match self.function.args_iter().nth(FIRST_KEY) {
            Some(redis::Arg::Simple(name)) => std::str::from_utf8(name).unwrap_or_default(),
            _ => "",
        }
    }

    /// The same as a script: `what` is its text or its digest.
    pub(super) fn script(&self, verb: &str, what: &str) -> Cmd {
        let mut command = redis::cmd(verb);
        command.arg(what);
        for part in self.function.args_iter().skip(2) {
            if let redis::Arg::Simple(part) = part {
                command.arg(part);
            }
        }
        command
    }
}
