//! What a lock's transitions answer, decoded.

use holdfast_core::{
    BackendError, Fence, HoldId,
    lock::{Grant, Release},
};

use crate::redis::reply::{Reply, unexpected};

/// A grant, and whether nobody knows of it yet.
pub(in crate::redis) fn read_grant(reply: &mut Reply) -> Result<(Grant, bool), BackendError> {
    let grant = Grant { claimed: true, ..read_offered(reply)? };
    Ok((grant, reply.number()? == 1))
}

/// Who is first in line.
pub(super) fn read_first(reply: &mut Reply) -> Result<Option<HoldId>, BackendError> {
    let first = reply.text()?;
    if first.is_empty() { Ok(None) } else { HoldId::new(first).map(Some).map_err(unexpected) }
}

/// The waiter that a release has made the holder, if it is one of ours: hold, sequence, time to live
/// and epoch.
pub(super) fn read_offer(reply: &mut Reply) -> Result<Option<(HoldId, Grant)>, BackendError> {
    if reply.is_empty() {
        return Ok(None);
    }
    let hold = HoldId::new(reply.text()?).map_err(unexpected)?;
    Ok(Some((hold, read_offered(reply)?)))
}

/// Sequence, time to live and epoch of a grant.
fn read_offered(reply: &mut Reply) -> Result<Grant, BackendError> {
    let (seq, ttl, epoch) = (reply.number()?, reply.millis()?, reply.number()?);
    let fence = Fence::compose(epoch, seq).map_err(unexpected)?;
    Ok(Grant::offered(fence, ttl))
}

/// What became of a release.
pub(super) fn read_release(reply: &mut Reply) -> Result<Release, BackendError> {
    Ok(if reply.number()? == 1 { Release::Released } else { Release::NotHeld })
}
