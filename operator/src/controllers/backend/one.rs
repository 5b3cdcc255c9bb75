//! A Backend of one server, or of one primary that Sentinels name.

use std::{sync::Arc, time::Duration};

use holdfast_api::v1alpha1::Backend;
use holdfast_backend::redis::Probe;
use holdfast_core::BackendError;
use kube::ResourceExt;
use tokio::time::timeout;

use super::{
    CANARY, Looked, Moment, WITHIN,
    epoch::{self, Change, Facts},
    tell_raised,
    verdicts::{unfit, verdicts, version},
};
use crate::{context::Context, controllers::tenants, floors::epoch_key, stores::Store};

/// Asks the server what it is, and takes the next step of its epoch. The error is a sentence.
pub async fn look(ctx: &Context, backend: &Backend, longest: Duration) -> Result<Looked, String> {
    let name = backend.name_any();
    let (store, probe, marker) = ask(ctx, backend).await?;
    let mut current = backend.status.as_ref().and_then(|status| status.epoch.clone());
    let unfit = unfit(&probe);
    if unfit.is_none() {
        // After the server has been asked: what it lost, it had lost by then.
        let moment = Moment::now();
        let facts = Facts {
            replid: &probe.replid,
            marker,
            above: ctx.doubts.of(&name).into_values().max(),
            floor: ctx.floors.get(&epoch_key(&name)),
            longest_ttl: longest,
            now: moment.wall,
            is_over: &|server, at| ctx.quarantines.left(&name, server, at).is_zero(),
        };
        match epoch::next(current.as_ref(), &facts) {
            Change::None => {}
            Change::Raise(raised) => {
                ctx.quarantines.see(&name, &raised, moment);
                let (number, opens) = (raised.number, raised.not_before.0);
                tell_raised(ctx, backend, number, "the server", opens).await;
                current = Some(raised);
            }
            Change::Open(opened) => {
                // The marker first: what is said to be open must be open.
                if let Err(error) = open(&store, opened.number).await {
                    tracing::warn!(%error, backend = name, "cannot open an epoch");
                } else {
                    tracing::info!(backend = name, epoch = opened.number, "opened an epoch");
                    current = Some(opened);
                }
            }
        }
    }
    let ack = backend.spec.redis.ack.map_or(0, |ack| u32::from(ack.replicas));
    let verdicts = verdicts(&probe, unfit, current.as_ref(), ack);
    Ok(Looked { version: version(&probe), role: probe.role, epoch: current, verdicts })
}

/// Asks the store what it is, and sees to the library. The error is a sentence.
async fn ask(ctx: &Context, backend: &Backend) -> Result<(Arc<Store>, Probe, Option<u64>), String> {
    let store = ctx.stores.get(backend).map_err(|error| error.to_string())?;
    let credentials =
        tenants::own_credentials(ctx, backend).await.map_err(|error| error.chain())?;
    store.set_credentials(credentials);
    let ask = async {
        let probe = store.admin.probe().await?;
        if probe.role == "master" && !probe.cluster_enabled {
            store.ensure_library("", &store.admin, &probe.replid).await?;
        }
        let marker = store.admin.marker(CANARY).await?;
        Ok::<_, BackendError>((probe, marker))
    };
    match timeout(WITHIN, ask).await {
        Ok(Ok((probe, marker))) => Ok((store.clone(), probe, marker)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {WITHIN:?}")),
    }
}

async fn open(store: &Store, number: u64) -> Result<(), BackendError> {
    let opened = timeout(WITHIN, store.admin.open_epoch(CANARY, number)).await;
    opened.unwrap_or_else(|_| Err(BackendError::Unknown(format!("no answer within {WITHIN:?}"))))
}
