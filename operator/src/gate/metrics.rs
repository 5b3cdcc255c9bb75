//! What is counted of pods that hold. Labels are from closed lists, never names.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGaugeVec, Opts, Registry};

/// The metric families. Clones share them.
#[derive(Clone)]
pub struct GateMetrics {
    /// Pods by what is done about their holds.
    pub pods: IntGaugeVec,
    /// What became of holds.
    pub ends: IntCounterVec,
    /// How long pods waited.
    pub wait_seconds: Histogram,
}

impl GateMetrics {
    /// Declares the families in a registry.
    ///
    /// # Errors
    /// When they are declared already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = GateMetrics {
            pods: IntGaugeVec::new(
                Opts::new(
                    "holdfast_pod_holds",
                    "Pods with the annotation holdfast.dev/hold: gated at their scheduling gate, or \
                     holding. Of the replica that leads.",
                ),
                &["state"],
            )?,
            ends: IntCounterVec::new(
                Opts::new(
                    "holdfast_pod_hold_changes_total",
                    "What became of pods' holds: granted, adopted from an earlier leader, released, \
                     withdrawn before the pod ran, lost while it runs, left to expire.",
                ),
                &["change"],
            )?,
            wait_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "holdfast_pod_hold_wait_seconds",
                    "How long pods were gated, as far as one leader saw it.",
                )
                .buckets(vec![0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0]),
            )?,
        };
        registry.register(Box::new(metrics.pods.clone()))?;
        registry.register(Box::new(metrics.ends.clone()))?;
        registry.register(Box::new(metrics.wait_seconds.clone()))?;
        Ok(metrics)
    }

    /// Counts a change.
    pub fn changed(&self, change: &'static str) {
        self.ends.with_label_values(&[change]).inc();
    }
}
