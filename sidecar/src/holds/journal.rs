//! The holds, written down for the next run of this container: a native sidecar that crashes is
//! restarted beside an app that goes on.
//!
//! A hold is resumed only in the same boot, before its deadline, and only if the store still renews
//! it. The journal may be a little behind: a renewal it does not know only makes the deadline earlier.
//! It holds `holdId`s, which are secrets: keep it where only this container can read it.

use std::{fs, io, path::PathBuf, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use holdfast_backend::{
    hub::Hub,
    waiter::{Heir, HeldLock},
};
use holdfast_core::{Address, Deadline, Fence, HoldId, SessionId, Stamp};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Holds, NewHold};
use crate::{
    liveness::{Bound, BoundRecord},
    service::Sidecar,
};

/// Changes that come together are written together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Writing takes at most this share of the time: one part of so many.
const REST: u32 = 50;

/// Where the journal is.
#[derive(Clone)]
pub struct Journal {
    path: PathBuf,
    boot_id: String,
}

/// What an earlier run wrote.
#[derive(Debug, Serialize, Deserialize)]
pub struct Contents {
    boot_id: String,
    /// The session that goes on.
    pub session: SessionId,
    holds: Vec<Record>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    hold: HoldId,
    at: Address,
    fence: Fence,
    /// The three clocks before the request that extended it last was sent.
    since_ns: [u64; 3],
    granted_ms: u64,
    asked_ms: u64,
    max_hold_ms: u64,
    #[serde(default = "one")]
    permits: u32,
    /// Absent when the caller renews.
    bound: Option<BoundRecord>,
}

/// Of a hold that an earlier version wrote down.
const fn one() -> u32 {
    1
}

impl Journal {
    /// A journal at a path.
    pub fn new(path: PathBuf) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Journal { path, boot_id: boot_id.trim().into() }
    }

    /// What an earlier run in this boot wrote, if there is anything.
    pub fn read(&self) -> Option<Contents> {
        let text = fs::read(&self.path).ok()?;
        match serde_json::from_slice::<Contents>(&text) {
            Ok(contents) => {
                Some(contents).filter(|c| !self.boot_id.is_empty() && c.boot_id == self.boot_id)
            }
            Err(error) => {
                tracing::warn!(%error, "the journal cannot be read; its holds run out");
                None
            }
        }
    }

    fn write(&self, session: &SessionId, holds: Vec<Record>) -> io::Result<()> {
        let contents = Contents { boot_id: self.boot_id.clone(), session: session.clone(), holds };
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&contents)?)?;
        fs::rename(new, &self.path)
    }

    /// Writes every change down until the token is cancelled.
    pub async fn keep(self, sidecar: Arc<Sidecar>, stop: CancellationToken) {
        let holds = sidecar.holds.clone();
        holds.journaled.store(true, Relaxed);
        loop {
            tokio::select! {
                () = holds.changed.notified() => {}
                () = stop.cancelled() => return,
            }
            sleep(DEBOUNCE).await;
            let began = Instant::now();
            self.note(&sidecar);
            sleep(began.elapsed() * REST).await;
        }
    }

    /// Writes the holds down as they are now.
    pub fn note(&self, sidecar: &Sidecar) {
        if let Err(error) = self.write(&sidecar.identity.session, sidecar.holds.records()) {
            tracing::warn!(%error, "cannot write the journal; a crash would end this pod's holds");
        }
    }
}

impl Holds {
    fn records(&self) -> Vec<Record> {
        let table = self.table();
        let kept = table.live.iter().filter(|(_, there)| !there.releasing);
        kept.map(|(hold, there)| {
            let deadline = there.life.deadline();
            let since = deadline.since();
            Record {
                hold: hold.clone(),
                at: there.facts.at.clone(),
                fence: there.facts.fence,
                since_ns: [since.boot_ns, since.raw_ns, since.real_ns],
                granted_ms: there.life.granted().as_millis() as u64,
                asked_ms: there.life.wanted().as_millis() as u64,
                max_hold_ms: there.max_hold.as_millis() as u64,
                permits: there.facts.permits,
                bound: (!there.manual).then(|| there.bound.record()),
            }
        })
        .collect()
    }

    /// Takes up the holds of an earlier run whose deadlines have not passed; each is renewed soon,
    /// so that one that the store has given up is told as lost. Returns how many there are.
    pub fn resume(&self, contents: Contents, sidecar: &Sidecar, hub: &Arc<Hub>) -> usize {
        let (now, snapshot) = (self.clock.now(), sidecar.snapshot.load());
        let mut resumed = 0;
        for record in contents.holds {
            let [boot_ns, raw_ns, real_ns] = record.since_ns;
            let ttl = Duration::from_millis(record.granted_ms);
            let deadline = Deadline::new(Stamp { boot_ns, raw_ns, real_ns }, ttl);
            let Some(class) = snapshot.class_of(&record.at) else { continue };
            let most = class.renew_deadline.unwrap_or(Duration::MAX);
            if deadline.within(most).passed(now) {
                continue;
            }
            let held = HeldLock {
                fence: record.fence,
                ttl,
                deadline,
                claimed: false,
                inbox: hub.register(&record.hold),
            };
            let new = NewHold {
                class: class.clone(),
                at: record.at,
                held,
                ttl: Duration::from_millis(record.asked_ms),
                max_hold: Duration::from_millis(record.max_hold_ms),
                permits: record.permits,
                bound: record.bound.map(|bound| Bound::from_record(bound, now)),
                is_retry: true,
                // An heir of before may have been told already.
                heir: Heir::nobody(),
            };
            resumed += usize::from(self.insert(new, now).is_ok());
        }
        self.keep_to(&snapshot);
        resumed
    }
}
