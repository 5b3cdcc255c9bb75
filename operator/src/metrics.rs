//! The operator's own metrics. Labels are kinds and outcomes, never names.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

use crate::gate::metrics::GateMetrics;

/// The metric families of the controllers. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    /// Whether this replica leads.
    pub leads: IntGauge,
    /// Reconciliations by kind and outcome.
    pub reconciles: IntCounterVec,
    /// How long they took.
    pub reconcile_seconds: HistogramVec,
    /// Writes to the API server by what was written.
    pub writes: IntCounterVec,
    /// Pods that hold.
    pub gates: GateMetrics,
}

impl Metrics {
    /// Declares the families in a registry.
    ///
    /// # Errors
    /// When they are declared already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Metrics {
            leads: IntGauge::new(
                "holdfast_operator_leads",
                "1 on the replica that writes, 0 on the others.",
            )?,
            reconciles: IntCounterVec::new(
                Opts::new(
                    "holdfast_operator_reconciles_total",
                    "Reconciliations by kind and outcome: done, or what was in the way.",
                ),
                &["kind", "outcome"],
            )?,
            reconcile_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "holdfast_operator_reconcile_seconds",
                    "How long a reconciliation took, its calls included.",
                )
                .buckets(vec![0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0]),
                &["kind"],
            )?,
            writes: IntCounterVec::new(
                Opts::new(
                    "holdfast_operator_writes_total",
                    "Writes to the API server: children, status, finalizers, Events.",
                ),
                &["what"],
            )?,
            gates: GateMetrics::register(registry)?,
        };
        registry.register(Box::new(metrics.leads.clone()))?;
        registry.register(Box::new(metrics.reconciles.clone()))?;
        registry.register(Box::new(metrics.reconcile_seconds.clone()))?;
        registry.register(Box::new(metrics.writes.clone()))?;
        Ok(metrics)
    }

    /// Counts a write.
    pub fn wrote(&self, what: &'static str) {
        self.writes.with_label_values(&[what]).inc();
    }
}
