//! Looks at holders: of Leases through the watch that there is anyway, of a Redis by asking it, at a
//! rate that follows from what asking costs.

use std::time::Duration;

use holdfast_core::Fence;
use tokio::time::{Instant, timeout};

use super::{Ending, Held, Observed};
use crate::{context::Context, pipeline::Valid};

/// A Redis is asked no more often about holders that only a status shows.
pub(in crate::controllers) const LEAST: Duration = Duration::from_secs(1);
/// Asking takes at most a twentieth of the time.
pub(in crate::controllers) const SHARE: u32 = 20;
/// A look that takes longer is given up.
pub(in crate::controllers) const WITHIN: Duration = Duration::from_secs(5);

/// The holders of a class on Leases. Who waits is known to each sidecar alone, but for gated pods.
pub(in crate::controllers) fn leases(ctx: &Context, valid: &Valid) -> Observed {
    let class = &valid.class;
    let gated = ctx.lines.waiting(&valid.namespace, class.config.kind(), &class.name);
    let waiting = Some(gated).filter(|gated| *gated > 0);
    let mut observed = Observed { waiting, ..Observed::default() };
    for key in valid.lease_keys() {
        let Some(look) = ctx.sightings.look(&valid.namespace, &valid.lease_name(&key)) else {
            continue;
        };
        if look.is_held() {
            let again = observed.again.map_or(look.left, |known| known.min(look.left));
            observed.again = Some(again);
            let fence = look.record.fence.unwrap_or(Fence::new(0));
            observed.held.insert(key, Held { pod: look.holder, fence, held_for: None });
        } else {
            let expired = look.record.mark.is_some() && !look.record.released;
            let ending = if expired { Ending::Expired } else { Ending::Released };
            observed.endings.insert(key, ending);
        }
    }
    observed
}

/// The holders and waiters of a class on a Redis, to be looked at again after `every` or, where asking
/// takes long, later. One that does not answer leaves things as they were: the Backend's condition
/// tells.
pub(in crate::controllers) async fn store(
    ctx: &Context,
    valid: &Valid,
    every: Duration,
    before: Observed,
) -> Observed {
    let asked = Instant::now();
    let look = async {
        let (backend, lock) = (valid.backend.as_ref()?, valid.lock.as_ref()?);
        let kind = valid.class.config.kind();
        let store = ctx.stores.get(backend).ok()?;
        let looked = store.look(kind, &valid.namespace, &valid.class.name, lock).await;
        looked.inspect_err(|error| tracing::debug!(%error, "cannot look at a lock")).ok()
    };
    let found = timeout(WITHIN, look).await.ok().flatten();
    let again = Some(every.max(asked.elapsed() * SHARE));
    let Some(found) = found else { return Observed { again, ..before } };
    let waiting = found.iter().fold(0u32, |sum, (_, view)| sum.saturating_add(view.waiters));
    let mut observed = Observed { again, waiting: Some(waiting), ..Observed::default() };
    for (key, view) in found {
        if let Some(holder) = view.holder {
            let held = Held {
                pod: holder.holder.to_string(),
                fence: holder.fence,
                held_for: Some(holder.held_for),
            };
            observed.held.insert(key, held);
        }
    }
    observed
}
