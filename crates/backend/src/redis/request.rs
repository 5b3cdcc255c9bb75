//! What a server is asked, and why there may be no reply of use.

use holdfast_core::BackendError;
use redis::{Cmd, RedisError, RedisResult, Value, aio::MultiplexedConnection};

use super::{
    errors,
    scripts::{Scripts, Transition},
};

/// What is asked of a server.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    /// A command.
    Command(&'a Cmd),
    /// A transition with its keys and arguments.
    Call(Transition, &'a [&'a str], &'a [&'a str]),
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
    connection: &mut MultiplexedConnection,
    command: &Cmd,
) -> RedisResult<Value> {
    let mut pipeline = redis::Pipeline::with_capacity(2);
    pipeline.cmd("ASKING").add_command(command.clone());
    let replies = connection.send_packed_commands(&pipeline, 1, 1).await?;
    Ok(replies.into_iter().next().unwrap_or(Value::Nil))
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

/// The command that runs a script or a function.
pub(super) fn mk_call(verb: &str, what: &str, keys: &[&str], args: &[&str]) -> Cmd {
    let size: usize = keys.iter().chain(args).map(|part| part.len()).sum();
    let mut command = Cmd::with_capacity(3 + keys.len() + args.len(), 64 + what.len() + size);
    command.arg(verb).arg(what).arg(keys.len()).arg(keys).arg(args);
    command
}
