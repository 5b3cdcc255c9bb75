//! Metrics. Labels are kinds, class names and words of closed lists: never keys, holders or texts.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// Every family of the sidecar.
#[derive(Clone)]
pub struct Metrics {
    acquires: IntCounterVec,
    waits: HistogramVec,
    holds: HistogramVec,
    ends: IntCounterVec,
    renewals: IntCounterVec,
    live: IntGaugeVec,
    waiting: IntGaugeVec,
    checks: IntCounterVec,
    /// How many requests were refused before they reached a route.
    pub refused: IntCounter,
    /// The bundles taken.
    pub bundles: IntCounter,
    /// The bundles that could not be read.
    pub bad_bundles: IntCounter,
}

/// The handles of one class, resolved once.
#[derive(Clone)]
pub struct ClassMetrics {
    /// By outcome.
    pub acquired: IntCounter,
    /// Refused because another holds it.
    pub locked: IntCounter,
    /// Failed for another reason.
    pub failed: IntCounter,
    /// From request to grant.
    pub wait: Histogram,
    /// From grant to end.
    pub hold: Histogram,
    /// Ended by release.
    pub released: IntCounter,
    /// Ended otherwise.
    pub lost: IntCounter,
    /// Renewals that succeeded.
    pub renewed: IntCounter,
    /// Renewals that did not.
    pub renewal_failed: IntCounter,
    /// Holds now.
    pub live: IntGauge,
    /// Waiters now.
    pub waiting: IntGauge,
}

/// The handles of one RateLimit class, resolved once.
#[derive(Clone)]
pub struct RateLimitMetrics {
    /// Checks that passed.
    pub allowed: IntCounter,
    /// Checks that did not.
    pub limited: IntCounter,
    /// Checks that passed only because the class shadows.
    pub shadowed: IntCounter,
    /// Checks that were decided without the store.
    pub degraded: IntCounter,
    /// Checks that were not decided.
    pub failed: IntCounter,
}

const CLASS: [&str; 2] = ["kind", "name"];
const CLASS_OUTCOME: [&str; 3] = ["kind", "name", "outcome"];
const SECONDS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

impl Metrics {
    /// Registers every family.
    ///
    /// # Errors
    /// When one is registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let gauges = |name: &str, help: &str| {
            let family = IntGaugeVec::new(Opts::new(name, help), &CLASS)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let histograms = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let family = HistogramVec::new(options, &CLASS)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Metrics {
            acquires: counters(
                "holdfast_acquires_total",
                "Acquire requests, by outcome.",
                &CLASS_OUTCOME,
            )?,
            waits: histograms("holdfast_wait_seconds", "From an acquire request to its grant.")?,
            holds: histograms("holdfast_hold_seconds", "From a grant to its end.")?,
            ends: counters(
                "holdfast_holds_ended_total",
                "Holds that ended, by how.",
                &CLASS_OUTCOME,
            )?,
            renewals: counters("holdfast_renewals_total", "Renewals, by outcome.", &CLASS_OUTCOME)?,
            live: gauges("holdfast_holds", "Holds of this pod.")?,
            checks: counters(
                "holdfast_ratelimit_checks_total",
                "Checks of rate limits, by outcome.",
                &CLASS_OUTCOME,
            )?,
            waiting: gauges("holdfast_waiters", "Requests of this pod that wait.")?,
            refused: counter(
                "holdfast_requests_refused_total",
                "Requests refused for their Host, Origin or content type.",
            )?,
            bundles: counter("holdfast_bundles_total", "Bundles taken into use.")?,
            bad_bundles: counter(
                "holdfast_bundles_rejected_total",
                "Bundles that could not be read; the last good one stays in use.",
            )?,
        })
    }

    /// The handles of a RateLimit class.
    pub fn rate_limit(&self, name: &str) -> RateLimitMetrics {
        let outcome = |outcome: &str| self.checks.with_label_values(&["RateLimit", name, outcome]);
        RateLimitMetrics {
            allowed: outcome("allowed"),
            limited: outcome("limited"),
            shadowed: outcome("shadowed"),
            degraded: outcome("degraded"),
            failed: outcome("failed"),
        }
    }

    /// The handles of a class.
    pub fn class(&self, kind: &str, name: &str) -> ClassMetrics {
        let outcome = |family: &IntCounterVec, outcome: &str| {
            family.with_label_values(&[kind, name, outcome])
        };
        ClassMetrics {
            acquired: outcome(&self.acquires, "acquired"),
            locked: outcome(&self.acquires, "locked"),
            failed: outcome(&self.acquires, "failed"),
            wait: self.waits.with_label_values(&[kind, name]),
            hold: self.holds.with_label_values(&[kind, name]),
            released: outcome(&self.ends, "released"),
            lost: outcome(&self.ends, "lost"),
            renewed: outcome(&self.renewals, "renewed"),
            renewal_failed: outcome(&self.renewals, "failed"),
            live: self.live.with_label_values(&[kind, name]),
            waiting: self.waiting.with_label_values(&[kind, name]),
        }
    }
}
