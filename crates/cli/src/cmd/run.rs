//! `holdfast run`: a command under a lock, for scripts and cron jobs.
//!
//! The command is ended *before* the hold's deadline when the hold cannot be kept. Each heartbeat
//! renews the app's sign of life and brings the newest deadline; it counts from before the heartbeat
//! was sent. If this process dies, the kernel ends the command, and the heartbeats with it.
//!
//! Exit codes: the command's own (128 + the signal that ended it); 75 when the lock was not acquired, or
//! lost before the command began; 74 when the hold was lost and the command was ended for it; 64 to 73 are not ours.

use std::{process::ExitCode, time::Duration};

use holdfast_core::{Clock, Stamp, SystemClock, clock::trusted_for};
use holdfast_runtime::shutdown;
use holdfast_wire::{AcquireResponse, Code, HoldInfo, ReleaseResponse};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::http::{CallError, Sidecar, SidecarArgs, encode};

pub mod child;

use child::{Child, Ended};

/// EX_TEMPFAIL of sysexits.h: try again later.
const NOT_ACQUIRED: u8 = 75;
/// EX_IOERR of sysexits.h: the hold was lost on the way.
const LOST: u8 = 74;
/// The longest wait that one request may ask for.
const WAIT_AT_ONCE: f64 = 60.0;
/// So many heartbeats are sent while a hold may be trusted, or more.
const BEATS: u32 = 8;
/// An answer may be this late beyond what was asked for.
const SLACK: Duration = Duration::from_secs(10);

/// What to run, and under what.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    sidecar: SidecarArgs,
    /// The lock.
    #[arg(long)]
    lock: String,
    /// The key, when the lock has more than one.
    #[arg(long)]
    key: Option<String>,
    /// Give up when the lock was not acquired after so many seconds; 0 tries once. Waits forever
    /// when absent.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<f64>,
    /// How many seconds the hold lasts without a sign of life; the class's when absent.
    #[arg(long = "ttl", value_name = "SECONDS")]
    ttl: Option<f64>,
    /// How many seconds the command gets between SIGTERM and SIGKILL when the hold is lost. At most
    /// a quarter of what the hold is trusted for: a hold that is renewed is never that close to its end.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    grace: f64,
    /// The command. It finds HOLDFAST_FENCE, HOLDFAST_HOLD_ID, HOLDFAST_KEY and HOLDFAST_URL in its
    /// environment.
    #[arg(last = true, required = true)]
    command: Vec<std::ffi::OsString>,
}

/// Waits, runs, releases.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let stop = shutdown::on_signal()?;
    let sidecar = args.sidecar.sidecar()?;
    let (held, sent) = match acquire(&args, &sidecar, &stop).await {
        Ok(Some(held)) => held,
        Ok(None) => return Ok(ExitCode::from(NOT_ACQUIRED)),
        Err(error) => {
            eprintln!("holdfast: {error}");
            return Ok(ExitCode::from(NOT_ACQUIRED));
        }
    };
    let mut watch = Watch::new(sent, &held, args.grace);
    let is_trusted = tokio::select! {
        is_trusted = watch.begin(&sidecar) => is_trusted,
        () = stop.cancelled() => false,
    };
    if !is_trusted {
        eprintln!("holdfast: the hold of {} was not kept until the command began", args.lock);
        release(&args, &sidecar, &held).await;
        return Ok(ExitCode::from(NOT_ACQUIRED));
    }
    let environment = [
        ("HOLDFAST_FENCE", held.fence.as_str()),
        ("HOLDFAST_HOLD_ID", held.hold_id.as_str()),
        ("HOLDFAST_KEY", held.key.as_str()),
        ("HOLDFAST_URL", args.sidecar.url.as_str()),
    ];
    let child = match Child::spawn(&args.command, &environment) {
        Ok(child) => child,
        Err(error) => {
            release(&args, &sidecar, &held).await;
            return Err(error);
        }
    };
    let ended = watch.over(child, &sidecar, &stop).await?;
    if watch.lost {
        eprintln!("holdfast: the hold of {} was lost; the command was ended", args.lock);
        return Ok(ExitCode::from(LOST));
    }
    release(&args, &sidecar, &held).await;
    Ok(ended.code())
}

/// The hold, and a stamp from before it was asked for. `None` when another keeps it.
async fn acquire(
    args: &Args,
    sidecar: &Sidecar,
    stop: &CancellationToken,
) -> Result<Option<(AcquireResponse, Stamp)>, CallError> {
    let begun = Instant::now();
    // A request whose answer got lost is sent again and gets the same grant.
    let request_id = holdfast_core::HoldId::random();
    for round in 0.. {
        let left = args.wait.map_or(WAIT_AT_ONCE, |wait| {
            (wait - begun.elapsed().as_secs_f64()).clamp(0.0, WAIT_AT_ONCE)
        });
        let mut path = format!(
            "/v1/locks/{}/acquire?bind=heartbeat&waitSeconds={left:.3}&requestId={request_id}-{round}",
            encode(&args.lock)
        );
        for (name, value) in
            [("ttlSeconds", args.ttl.map(|s| s.to_string())), ("key", args.key.clone())]
        {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encode(&value)));
            }
        }
        let sent = SystemClock.now();
        let within = Duration::from_secs_f64(left) + SLACK;
        let answer = tokio::select! {
            answer = sidecar.post::<AcquireResponse>(&path, within) => answer,
            () = stop.cancelled() => return Ok(None),
        };
        let is_over = args.wait.is_some_and(|wait| begun.elapsed().as_secs_f64() >= wait);
        match answer {
            Ok(held) => return Ok(Some((held, sent))),
            Err(CallError::Problem(problem)) if problem.code == Code::Locked && !is_over => {}
            Err(CallError::Problem(problem)) if problem.status == 503 && !is_over => {
                sleep(Duration::from_millis(problem.retry_after_ms.unwrap_or(1_000))).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

async fn release(args: &Args, sidecar: &Sidecar, held: &AcquireResponse) {
    let path = format!("/v1/locks/{}/release?holdId={}", encode(&args.lock), encode(&held.hold_id));
    if let Err(error) = sidecar.post::<ReleaseResponse>(&path, SLACK).await {
        eprintln!("holdfast: the release was not confirmed ({error}); the hold runs out by itself");
    }
}

/// The hold as this process sees it.
struct Watch {
    path: String,
    since: Stamp,
    trusted: Duration,
    /// The grace that was asked for.
    wanted: Duration,
    grace: Duration,
    beat: Duration,
    lost: bool,
}

impl Watch {
    fn new(sent: Stamp, held: &AcquireResponse, grace: f64) -> Self {
        let trusted = Duration::from_millis(held.hold_for_ms);
        let wanted = Duration::try_from_secs_f64(grace).unwrap_or_default();
        let path = format!("/v1/holds/{}/heartbeat", encode(&held.hold_id));
        let (grace, beat) = (Duration::ZERO, Duration::ZERO);
        let mut watch = Watch { path, since: sent, trusted, wanted, grace, beat, lost: false };
        watch.last_for(held.ttl_ms);
        watch
    }

    /// Goes by what a renewal brings: a hold that was waited for is short to begin with, and its class
    /// may be given a shorter time.
    fn last_for(&mut self, ttl_ms: u64) {
        let trusted = trusted_for(Duration::from_millis(ttl_ms));
        // A renewal comes after a third of the time to live, and is heard of a beat later.
        self.grace = self.wanted.min(trusted / 4);
        self.beat = (trusted / BEATS).clamp(Duration::from_millis(10), Duration::from_secs(1));
    }

    /// What is left until the command must be gone. Half a beat is kept in hand for the kernel to end
    /// it.
    fn left(&self) -> Duration {
        let spent = SystemClock.now().since(self.since);
        self.trusted.saturating_sub(spent).saturating_sub(self.beat / 2)
    }

    /// Counts the hold from now, since the acquire may have waited for longer than it lasts; whether
    /// there is time for a command.
    async fn begin(&mut self, sidecar: &Sidecar) -> bool {
        for _ in 0..BEATS {
            let sent = SystemClock.now();
            if self.answered(sent, beat(sidecar, &self.path, self.beat).await) {
                break;
            }
            sleep(self.beat).await;
        }
        self.left() > self.grace
    }

    /// Watches over the command until it has ended.
    async fn over(
        &mut self,
        mut child: Child,
        sidecar: &Sidecar,
        stop: &CancellationToken,
    ) -> anyhow::Result<Ended> {
        let mut told = false;
        loop {
            let left = self.left();
            if !self.lost && left <= self.grace {
                self.lost = true;
                child.terminate();
            }
            if self.lost && left.is_zero() {
                child.kill();
            }
            // However long an answer takes.
            let pause = if self.lost { Duration::from_millis(10) } else { left - self.grace };
            let sent = SystemClock.now();
            tokio::select! {
                ended = child.wait() => return ended,
                () = stop.cancelled(), if !told => {
                    told = true;
                    child.terminate();
                }
                answer = beat_after(self.beat, sidecar, &self.path), if !self.lost => {
                    self.answered(sent, answer);
                }
                () = sleep(pause) => {}
            }
        }
    }

    /// Takes in the answer to a heartbeat; whether it was one.
    fn answered(&mut self, sent: Stamp, answer: Result<HoldInfo, CallError>) -> bool {
        match answer {
            Ok(info) => {
                let trusted = Duration::from_millis(info.hold_for_ms);
                // An answer never takes back what an earlier one has granted.
                if trusted >= self.trusted.saturating_sub(sent.since(self.since)) {
                    (self.since, self.trusted) = (sent, trusted);
                    // A sidecar of before does not say.
                    if info.ttl_ms > 0 {
                        self.last_for(info.ttl_ms);
                    }
                }
            }
            // Over already, as when it was taken by force: no time is left.
            Err(CallError::Problem(problem)) if problem.code == Code::HoldLost => {
                self.trusted = self.trusted.min(SystemClock.now().since(self.since) + self.grace);
            }
            Err(error) => {
                tracing::debug!(%error, "a heartbeat failed");
                return false;
            }
        }
        true
    }
}

/// A heartbeat after a pause; its answer may take as long again.
async fn beat_after(pause: Duration, sidecar: &Sidecar, path: &str) -> Result<HoldInfo, CallError> {
    sleep(pause).await;
    beat(sidecar, path, pause).await
}

async fn beat(sidecar: &Sidecar, path: &str, within: Duration) -> Result<HoldInfo, CallError> {
    sidecar.post(path, within.max(Duration::from_millis(100))).await
}
