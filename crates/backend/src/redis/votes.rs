//! One server's part in a lock that lives on a majority of several: its vote, and what else the
//! others need of it.

use holdfast_core::{
    Address, BackendError, Fence, HoldId,
    lock::{
        Acquire, LockConfig, Release,
        redlock::{Standing, Vote},
    },
};

use super::{RedisLocks, keys, lock::read_grant, reply::unexpected, scripts::Transition};

impl RedisLocks {
    /// Asks for the server's vote. Never queues.
    pub(super) async fn vote(&self, at: &Address, request: &Acquire) -> Result<Vote, BackendError> {
        let mut reply = self.ask(at, request).await?;
        Ok(match reply.text()?.as_str() {
            "G" => {
                let (grant, is_new) = read_grant(&mut reply)?;
                Vote::Granted { fence: grant.fence, ttl: grant.ttl, is_new }
            }
            "L" => Vote::Locked { retry_after: reply.millis()? },
            "C" => Vote::Cancelled,
            other => return Err(unexpected(other)),
        })
    }

    /// Takes the vote with this fence back; a later one of the same hold stays.
    pub(super) async fn unvote(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
        fence: Fence,
    ) -> Result<(), BackendError> {
        let seq = fence.sequence().to_string();
        let args = [hold.as_str(), "u", "", &seq];
        self.step(Transition::LockRelease, at, config, None, &args).await.map(drop)
    }

    /// Raises the server to a fence, if the key is held as said (`None`: by nobody) and its fence is not
    /// beyond that; whether it stands there now.
    ///
    /// # Errors
    /// As of every transition.
    pub async fn raise(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: Option<&HoldId>,
        to: Fence,
    ) -> Result<bool, BackendError> {
        let (epoch, seq) = (to.epoch().to_string(), to.sequence().to_string());
        let args = [hold.map_or("", HoldId::as_str), &epoch, &seq];
        let mut reply = self.step(Transition::LockRaise, at, config, None, &args).await?;
        Ok(reply.number()? == 1)
    }

    /// Whose hold it is, and the fence granted last or the least that may be.
    pub(super) async fn standing(
        &self,
        at: &Address,
        config: &LockConfig,
    ) -> Result<Standing, BackendError> {
        let number = self.in_epoch(config.consistency, |epoch, _| epoch.number)?;
        let floor = Fence::compose(number, config.fence_floor.sequence());
        let mut reply = self.step(Transition::LockNewest, at, config, None, &[]).await?;
        let (seq, of) = (reply.number()?, reply.number()?);
        let granted = Fence::compose(of, seq).map_err(unexpected)?;
        let hold = Some(reply.text()?).filter(|hold| !hold.is_empty());
        let hold = hold.map(HoldId::new).transpose().map_err(unexpected)?;
        let fence = match hold {
            Some(_) => granted,
            // A store that lost the newest grant shows an older one, or none. Whoever does not hold by
            // its record holds nothing of an earlier epoch any more: a new one opens after that.
            None => granted.max(floor.map_err(unexpected)?),
        };
        Ok(Standing { hold, fence })
    }

    /// Releases, and tells those who wait that the key has become free here.
    pub(super) async fn release_and_tell(
        &self,
        at: &Address,
        config: &LockConfig,
        hold: &HoldId,
    ) -> Result<Release, BackendError> {
        let mut reply =
            self.step(Transition::LockRelease, at, config, None, &[hold.as_str()]).await?;
        if reply.number()? == 0 {
            return Ok(Release::NotHeld);
        }
        self.tell_freed(at).await;
        Ok(Release::Released)
    }

    /// Tells those who wait that the key has become free here. They come by themselves when nobody
    /// tells them.
    pub(super) async fn tell_freed(&self, at: &Address) {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(keys::freed_channel(at)).arg("f");
        if let Err(error) = self.client.run::<u64>(&publish).await {
            tracing::debug!(%at, %error, "could not tell that a lock is free");
        }
    }
}
