//! The one task behind all holds: renews, warns, ends.
//!
//! It sleeps until the earliest timer, at most a second while there are any: timers stop while the
//! machine is suspended, deadlines do not. Renewals run side by side, so that a slow store delays no
//! warning and no end.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use holdfast_core::{
    BackendError, HoldId, Stamp,
    lock::{Push, Renewal},
};
use holdfast_wire::HoldEventKind;
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Holds, ended::End, entry::Hold, life::Step};

/// Renewals under way at once; more stand in line.
const AT_ONCE: usize = 512;
/// The longest sleep while there is a hold.
const LOOK_EVERY: Duration = Duration::from_secs(1);

struct Answer {
    hold: HoldId,
    sent: Stamp,
    asked: Duration,
    outcome: Result<Renewal, BackendError>,
}

impl Holds {
    /// Keeps the holds until the token is cancelled.
    pub async fn keep(
        self: Arc<Self>,
        mut pushes: UnboundedReceiver<(HoldId, Push)>,
        stop: CancellationToken,
    ) {
        let mut line = VecDeque::new();
        let mut renewals = FuturesUnordered::new();
        loop {
            let next = self.turn(&mut line);
            while renewals.len() < AT_ONCE
                && let Some(hold) = line.pop_front()
            {
                renewals.extend(self.renewal(hold));
            }
            tokio::select! {
                Some(answer) = renewals.next(), if !renewals.is_empty() => self.answered(answer),
                Some((hold, push)) = pushes.recv() => self.pushed(&hold, push),
                () = self.wake.notified() => {}
                () = sleep(next.unwrap_or(LOOK_EVERY)), if next.is_some() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Does what is due now; renewals are put in line. Returns how long to sleep, if there is
    /// anything to wait for.
    fn turn(&self, line: &mut VecDeque<HoldId>) -> Option<Duration> {
        let now = self.clock.now();
        let mut table = self.table();
        loop {
            let Some((due_ns, hold)) = table.first_timer() else {
                table.planned_ns = u64::MAX;
                return None;
            };
            if due_ns > now.boot_ns {
                let pause = Duration::from_nanos(due_ns - now.boot_ns).min(LOOK_EVERY);
                table.planned_ns = now.boot_ns + pause.as_nanos() as u64;
                return Some(pause);
            }
            let Some(there) = table.live.get_mut(&hold) else { continue };
            let alive = there.bound.is_alive(now);
            match there.life.step(now, alive) {
                Step::Wait => {}
                Step::Renew => line.push_back(hold.clone()),
                Step::Suspend => there.tell(HoldEventKind::Suspended, now),
                Step::Lose => self.end_in(&mut table, &hold, End::Expired, now),
            }
            if let Some(timer) = table.live.get_mut(&hold).and_then(Hold::next_timer) {
                table.set_timer(timer);
            }
        }
    }

    /// The renewal of a hold that is still there.
    fn renewal(&self, hold: HoldId) -> Option<BoxFuture<'static, Answer>> {
        let table = self.table();
        let there = table.live.get(&hold)?;
        let facts = there.facts.clone();
        let sent = self.clock.now();
        let (asked, patience) = (there.life.asks(sent), there.life.patience());
        let renewing = async move {
            let class = &facts.class;
            let answer = class.client.renew(&facts.at, &class.config, &hold, asked);
            let outcome = match timeout(patience, answer).await {
                Ok(outcome) => outcome,
                Err(_) => Err(BackendError::Unknown("no answer in time".into())),
            };
            Answer { hold, sent, asked, outcome }
        };
        Some(renewing.boxed())
    }

    fn answered(&self, answer: Answer) {
        let Answer { hold, sent, asked, outcome } = answer;
        let now = self.clock.now();
        let mut table = self.table();
        let Some(there) = table.live.get_mut(&hold) else { return };
        match outcome {
            Ok(Renewal::Renewed { ttl }) => {
                there.facts.class.metrics.renewed.inc();
                // A deadline that has passed was or will be told as lost: no way back.
                if !there.life.deadline().passed(now)
                    && there.life.renewed(sent, asked, ttl)
                    && !there.releasing
                {
                    there.tell(HoldEventKind::Granted, now);
                }
            }
            // A release that overtook the renewal is not a loss; its own answer ends the hold.
            Ok(Renewal::Lost) if there.releasing => return,
            Ok(Renewal::Lost) => self.end_in(&mut table, &hold, End::Expired, now),
            Err(error) => {
                there.facts.class.metrics.renewal_failed.inc();
                tracing::debug!(at = %there.facts.at, %error, "a renewal failed");
                there.life.failed(now);
            }
        }
        self.reschedule(&mut table, &hold);
        drop(table);
        self.note_change();
    }

    fn pushed(&self, hold: &HoldId, push: Push) {
        match push {
            Push::Lost => self.end(hold, End::Forced),
            // It is held already: another waiter's news.
            Push::Granted { .. } | Push::Requeue => {}
        }
    }
}
