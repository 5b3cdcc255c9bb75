//! A namespace on a store of several servers: its user on each of them, and its markers on those that
//! are open.

use futures::future::join_all;
use holdfast_api::{
    bundle::{Epoch, EpochRun},
    v1alpha1::backend::{EpochStatus, RunStatus, Tenancy},
};
use holdfast_backend::redis::Marker;
use holdfast_core::BackendError;
use tokio::time::timeout;

use super::{Tenant, WITHIN, username};
use crate::{
    context::lock,
    stores::{Store, members::Member},
};

/// How far a namespace has come.
#[derive(Default)]
pub struct SetUp {
    /// The servers whose epoch is open for it.
    pub open: Vec<String>,
    /// What did not work out, in sentences.
    pub failed: Vec<String>,
}

/// The key of a server in [`super::Users`].
fn key(backend: &str, server: &str) -> String {
    format!("{backend}/{server}")
}

/// Whether a key is of a Backend, or of one of its servers.
pub fn is_on(key: &str, backend: &str) -> bool {
    key.strip_prefix(backend).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Tenant<'_> {
    /// Sees to users and markers on every server. One that is away changes nothing of what was
    /// published of it, and does not keep the others waiting for longer than [`WITHIN`].
    pub async fn set_up_servers(
        &self,
        epoch: &EpochStatus,
        passwords: &[String],
        before: Option<&Epoch>,
    ) -> SetUp {
        let mut set_up = SetUp::default();
        let members = async { self.ctx.stores.get(self.backend)?.known_members().await };
        let members = match timeout(WITHIN, members).await {
            Ok(Ok(members)) => members,
            failed => {
                set_up.failed.push(say(failed.map(|known| known.map(drop))));
                let kept = epoch.runs.iter().filter(|run| is_same(epoch, run, before));
                set_up.open.extend(kept.map(|run| run.server.clone()));
                return set_up;
            }
        };
        let run_of = |member: &Member| epoch.runs.iter().find(|run| run.server == member.name);
        let each = members.all().map(async |member| {
            let run = run_of(member);
            let seen_to = async {
                let replid = run.map_or("", |run| run.replid.as_str());
                self.ensure_user_on(member, replid, passwords).await?;
                match run.filter(|run| run.open) {
                    Some(run) => self.mark_on(member, epoch, run, before).await,
                    None => Ok(false),
                }
            };
            (member, run, timeout(WITHIN, seen_to).await)
        });
        for (member, run, outcome) in join_all(each).await {
            match outcome {
                Ok(Ok(true)) => set_up.open.push(member.name.clone()),
                Ok(Ok(false)) => {}
                failed => {
                    let why = say(failed.map(|outcome| outcome.map(drop)));
                    set_up.failed.push(format!("{}: {why}", member.address));
                    // What sidecars were told stays true or false by the server's own guard.
                    if run.is_some_and(|run| is_same(epoch, run, before)) {
                        set_up.open.push(member.name.clone());
                    }
                }
            }
        }
        set_up
    }

    async fn ensure_user_on(
        &self,
        member: &Member,
        replid: &str,
        passwords: &[String],
    ) -> Result<(), BackendError> {
        if self.backend.spec.redis.tenancy == Tenancy::Shared {
            return Ok(());
        }
        let entry = (key(self.name, &member.name), self.namespace.to_owned());
        let made_with = (replid.to_owned(), passwords.to_vec());
        if lock(&self.ctx.users.made).get(&entry) == Some(&made_with) {
            return Ok(());
        }
        let user = username(self.namespace);
        member.admin.ensure_user(self.namespace, &user, passwords).await?;
        lock(&self.ctx.users.made).insert(entry, made_with);
        Ok(())
    }

    /// Sees to the markers on a server; whether it is open for the namespace.
    async fn mark_on(
        &self,
        member: &Member,
        epoch: &EpochStatus,
        run: &RunStatus,
        before: Option<&Epoch>,
    ) -> Result<bool, BackendError> {
        let there = member.admin.markers(self.namespace, &run.tags).await?;
        let known = before.and_then(|before| published(before, run));
        let was_told = |tag: Option<&String>| {
            known.is_some_and(|known| tag.is_none_or(|tag| known.tags.contains(tag)))
        };
        let mut is_marked = true;
        for (index, place) in there.iter().enumerate() {
            match place {
                Marker::Found(marked) if *marked > epoch.number => {
                    self.doubt(&run.server, *marked, "a later epoch is marked on a server");
                    return Ok(false);
                }
                Marker::Missing if was_told(run.tags.get(index)) => {
                    self.doubt(&run.server, epoch.number, "the marker of a namespace was lost");
                    return Ok(false);
                }
                Marker::Found(marked) => is_marked &= *marked == epoch.number,
                Marker::Missing => is_marked = false,
                // The next look finds another place for it; one of two is enough.
                Marker::Elsewhere => {}
            }
        }
        if is_marked && there.iter().any(|place| *place != Marker::Elsewhere) {
            return Ok(true);
        }
        let places: Vec<String> = (run.tags.iter().zip(&there))
            .filter(|(_, place)| **place != Marker::Elsewhere)
            .map(|(tag, _)| tag.clone())
            .collect();
        if places.is_empty() && !run.tags.is_empty() {
            return Ok(false);
        }
        match member.admin.open_epoch_at(self.namespace, &places, epoch.number).await {
            Ok(()) => Ok(true),
            Err(BackendError::Epoch) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What sidecars were told of a run, if it was open.
fn published<'a>(before: &'a Epoch, run: &RunStatus) -> Option<&'a EpochRun> {
    before
        .runs
        .iter()
        .find(|known| known.open && known.server == run.server && known.replid == run.replid)
}

fn is_same(epoch: &EpochStatus, run: &RunStatus, before: Option<&Epoch>) -> bool {
    let same = |before: &Epoch| {
        before.number == epoch.number
            && published(before, run).is_some_and(|known| known.tags == run.tags)
    };
    run.open && before.is_some_and(same)
}

fn say(failed: Result<Result<(), BackendError>, tokio::time::error::Elapsed>) -> String {
    match failed {
        Ok(Err(error)) => error.to_string(),
        _ => format!("no answer within {WITHIN:?}"),
    }
}

/// Deletes a user on every server that lets us.
pub async fn drop_users(store: &Store, namespace: &str, user: &str) {
    let Ok(Ok(members)) = timeout(WITHIN, store.known_members()).await else {
        tracing::info!(namespace, user, "a user stays in the store");
        return;
    };
    let each = members.all().map(async |member| {
        if !matches!(timeout(WITHIN, member.admin.drop_user(user)).await, Ok(Ok(()))) {
            tracing::info!(server = member.address, user, "a user stays on a server");
        }
    });
    join_all(each).await;
}
