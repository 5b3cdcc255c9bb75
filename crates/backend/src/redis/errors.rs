//! What an error of the store means: one table for what servers say, one rule for broken
//! connections.
//!
//! The line that matters runs between *certainly not done* (`Unavailable`, `Epoch`, `Forbidden`)
//! and *unknown*. Whatever cannot be sorted is unknown, and gets settled by its caller.

use holdfast_core::BackendError;
use redis::RedisError;

/// What the code at the head of an error reply means for the request that got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Refused before anything was done; the same request may succeed later.
    NotDone,
    /// As `NotDone`, and this server is not the primary (any more): connect anew.
    WrongServer,
    /// The transition's own guard: nothing was done.
    Epoch,
    /// A right or a password is missing.
    Forbidden,
    /// The script or the function is not there: nothing was done.
    NotLoaded,
    /// The server has no such command: it is older than Functions.
    NoCommand,
    /// A script of ours failed, or the data is not ours.
    Broken,
}

/// Codes that servers answer with. Redis checks each of these before a script's first write.
const TABLE: &[(&str, Meaning)] = &[
    ("EPOCH", Meaning::Epoch),
    ("READONLY", Meaning::WrongServer),
    ("MASTERDOWN", Meaning::WrongServer),
    ("MOVED", Meaning::WrongServer),
    ("ASK", Meaning::WrongServer),
    ("CLUSTERDOWN", Meaning::NotDone),
    ("TRYAGAIN", Meaning::NotDone),
    ("LOADING", Meaning::NotDone),
    ("BUSY", Meaning::NotDone),
    ("OOM", Meaning::NotDone),
    ("NOREPLICAS", Meaning::NotDone),
    ("MISCONF", Meaning::NotDone),
    ("IOERR", Meaning::NotDone),
    ("DENIED", Meaning::NotDone),
    ("NOSCRIPT", Meaning::NotLoaded),
    ("NOPERM", Meaning::Forbidden),
    ("NOAUTH", Meaning::Forbidden),
    ("WRONGPASS", Meaning::Forbidden),
];

/// The meaning of an error reply; `None` for an error that no server sent.
pub fn meaning(error: &RedisError) -> Option<Meaning> {
    let code = error.code()?;
    let listed = TABLE.iter().find(|(known, _)| *known == code).map(|(_, meaning)| *meaning);
    Some(listed.unwrap_or_else(|| {
        // The rest is told apart by text only.
        let detail = error.detail().unwrap_or_default();
        if detail.starts_with("Function not found") {
            Meaning::NotLoaded
        } else if detail.starts_with("unknown command") {
            Meaning::NoCommand
        } else if detail.starts_with("max number of clients reached") {
            Meaning::NotDone
        } else if detail.starts_with("AUTH") || detail.contains("WRONGPASS") {
            Meaning::Forbidden
        } else {
            Meaning::Broken
        }
    }))
}

/// Where else a request is to be sent: `host:port`, and whether only this once (ASK). The host may
/// be empty.
pub(super) fn redirect(error: &RedisError) -> Option<(&str, bool)> {
    let (address, _) = error.redirect_node()?;
    Some((address, error.code() == Some("ASK")))
}

/// The error of a request that was (or may have been) sent.
pub fn in_flight(error: &RedisError) -> BackendError {
    let text = error.to_string();
    match meaning(error) {
        None => BackendError::Unknown(text),
        Some(Meaning::Epoch) => BackendError::Epoch,
        Some(Meaning::Forbidden) => BackendError::Forbidden(text),
        Some(Meaning::Broken) => BackendError::Internal(text),
        Some(Meaning::NotLoaded) => BackendError::Unavailable(format!(
            "the function library is not in the store; the operator loads it ({text})"
        )),
        Some(Meaning::NotDone | Meaning::WrongServer | Meaning::NoCommand) => {
            BackendError::Unavailable(text)
        }
    }
}

/// The error of an attempt to connect: no request was sent.
pub fn at_connect(error: &RedisError) -> BackendError {
    let is_password = error.kind() == redis::ErrorKind::AuthenticationFailed;
    if is_password || meaning(error) == Some(Meaning::Forbidden) {
        return BackendError::Forbidden(error.to_string());
    }
    BackendError::Unavailable(format!("cannot connect: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn mk_reply(code: &str, detail: &str) -> RedisError {
        redis::make_extension_error(code.into(), Some(detail.into()))
    }

    #[test]
    fn every_listed_code_is_certainly_not_done() {
        for (code, meaning) in TABLE {
            let sorted = in_flight(&mk_reply(code, "why"));
            let expected = match meaning {
                Meaning::Epoch => "epoch",
                Meaning::Forbidden => "backend_forbidden",
                _ => "backend_unavailable",
            };
            assert_eq!(sorted.code(), expected, "{code}");
        }
    }

    #[test]
    fn a_broken_connection_leaves_the_outcome_unknown_unless_it_was_never_made() {
        for kind in
            [io::ErrorKind::TimedOut, io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof]
        {
            let error = RedisError::from(io::Error::from(kind));
            assert_eq!(in_flight(&error).code(), "outcome_unknown", "{kind}");
            assert_eq!(at_connect(&error).code(), "backend_unavailable", "{kind}");
        }
    }
}
