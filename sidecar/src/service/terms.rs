//! A request to acquire, checked against its class.

use std::{ops::RangeInclusive, time::Duration};

use holdfast_core::{RequestId, Substrate};
use holdfast_wire::{AcquireRequest, Bind, Code, Renew};

use super::MAX_WAIT;
use crate::{error::Failure, snapshot::LockClass};

/// The longest that heartbeats may be apart.
const MAX_HEARTBEAT: Duration = Duration::from_secs(3_600);

/// A request to acquire, checked.
pub(super) struct Terms {
    pub(super) ttl: Duration,
    pub(super) wait: Duration,
    pub(super) max_hold: Duration,
    pub(super) request_id: Option<RequestId>,
    /// `None` when the caller renews.
    pub(super) bind: Option<Bind>,
    pub(super) heartbeat: Duration,
    /// How many permits; 1 of a lock.
    pub(super) permits: u32,
    /// Asked for by the pod as a whole: by a candidate.
    pub(super) of_pod: bool,
}

impl Terms {
    /// Those of a candidate: it waits as long as a request may, and leads as long as the app lives.
    pub(super) fn of_candidate(class: &LockClass, in_pod: bool) -> Self {
        let ttl = Duration::from_millis(class.config.ttl_ms);
        Terms {
            ttl,
            wait: MAX_WAIT,
            max_hold: Duration::ZERO,
            request_id: None,
            bind: Some(if in_pod { Bind::Container } else { Bind::Process }),
            heartbeat: ttl,
            permits: 1,
            of_pod: true,
        }
    }

    pub(super) fn read(
        request: &AcquireRequest,
        class: &LockClass,
        in_pod: bool,
    ) -> Result<Self, Failure> {
        let config = &class.config;
        let floor = ttl_floor(class.client.backend().substrate());
        let class_ttl = Duration::from_millis(config.ttl_ms);
        let ttl = seconds("ttlSeconds", request.ttl_seconds, floor..=class_ttl)?;
        let wait = seconds("waitSeconds", request.wait_seconds, Duration::ZERO..=MAX_WAIT)?;
        let class_max = match config.max_hold_ms {
            0 => Duration::from_secs(10 * 365 * 86_400),
            ms => Duration::from_millis(ms),
        };
        let max_hold = seconds("maxHoldSeconds", request.max_hold_seconds, floor..=class_max)?;
        let beats = Duration::from_millis(100)..=MAX_HEARTBEAT;
        let heartbeat = seconds("heartbeatSeconds", request.heartbeat_seconds, beats)?;
        let request_id = request
            .request_id
            .as_deref()
            .map(|id| RequestId::new(id).map_err(|why| invalid("requestId", &why.to_string())))
            .transpose()?;
        let bind = match (request.renew.unwrap_or(Renew::Auto), request.bind) {
            (Renew::Auto, bind) => {
                Some(bind.unwrap_or(if in_pod { Bind::Container } else { Bind::Process }))
            }
            (Renew::Manual, None) => None,
            (Renew::Manual, Some(_)) => {
                return Err(invalid("bind", "is about automatic renewal; leave it out"));
            }
        };
        if bind == Some(Bind::Container) && !in_pod {
            return Err(invalid("bind", "container needs a pod; use stream, heartbeat or process"));
        }
        if heartbeat.is_some() && bind != Some(Bind::Heartbeat) {
            return Err(invalid("heartbeatSeconds", "goes with bind: heartbeat only"));
        }
        let ttl = ttl.unwrap_or(class_ttl);
        Ok(Terms {
            ttl,
            wait: wait.unwrap_or_default(),
            max_hold: max_hold.unwrap_or(Duration::from_millis(config.max_hold_ms)),
            request_id,
            bind,
            heartbeat: heartbeat.unwrap_or(ttl),
            permits: 1,
            of_pod: false,
        })
    }
}

/// The shortest time to live that a substrate can keep.
const fn ttl_floor(substrate: Substrate) -> Duration {
    match substrate {
        Substrate::Lease => Duration::from_secs(1),
        // Two rounds to all servers must fit in, with a share of it for each of them.
        Substrate::Redlock => Duration::from_millis(500),
        Substrate::Redis | Substrate::Memory => Duration::from_millis(100),
    }
}

fn seconds(
    field: &str,
    value: Option<f64>,
    range: RangeInclusive<Duration>,
) -> Result<Option<Duration>, Failure> {
    let Some(value) = value else { return Ok(None) };
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if range.contains(&duration) => Ok(Some(duration)),
        _ => {
            let (low, high) = (range.start().as_secs_f64(), range.end().as_secs_f64());
            Err(invalid(field, &format!("must be from {low} to {high} here; got {value}")))
        }
    }
}

pub(super) fn invalid(field: &str, why: &str) -> Failure {
    Failure::new(Code::InvalidField, format!("{field} {why}"))
}
