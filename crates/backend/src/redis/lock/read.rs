//! What the transitions of locks and semaphores answer, decoded; and how they are told what to take.

use holdfast_core::{
    BackendError, Fence, HoldId,
    lock::{Grant, HolderView, Release, Which},
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

/// A fence as sequence and epoch.
pub(in crate::redis) fn read_fence(reply: &mut Reply) -> Result<Fence, BackendError> {
    let (seq, epoch) = (reply.number()?, reply.number()?);
    Fence::compose(epoch, seq).map_err(unexpected)
}

/// All holders that follow.
pub(in crate::redis) fn read_holders(reply: &mut Reply) -> Result<Vec<HolderView>, BackendError> {
    let mut holders = Vec::new();
    while !reply.is_empty() {
        let (holder, fence) = (reply.name()?, read_fence(reply)?);
        let (ttl, held_for, permits) = (reply.millis()?, reply.millis()?, reply.count()?);
        holders.push(HolderView { holder, fence, ttl, held_for, permits });
    }
    Ok(holders)
}

/// Which holds a release by force takes, as `is_meant` of `prelude.lua` reads it.
pub(in crate::redis) fn forced_args(which: Which) -> [String; 3] {
    let (word, fence) = match which {
        Which::All => ("all", Fence::new(0)),
        Which::One(fence) => ("one", fence),
        Which::UpTo(fence) => ("upto", fence),
    };
    [word.to_owned(), fence.sequence().to_string(), fence.epoch().to_string()]
}
