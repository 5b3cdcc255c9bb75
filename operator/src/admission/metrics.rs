//! The webhook's metrics: labels come from closed lists, never from pods.

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

/// The webhook's metric families. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    /// Reviews by outcome.
    pub reviews: IntCounterVec,
    /// How long reviews took.
    pub review_seconds: Histogram,
    /// How long the serving certificate is still valid.
    pub certificate_left_days: Gauge,
    /// How often this replica has replaced the certificates.
    pub rotations: IntCounter,
}

impl Metrics {
    /// Declares the families in a registry.
    ///
    /// # Errors
    /// When they are declared already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Metrics {
            reviews: IntCounterVec::new(
                Opts::new(
                    "holdfast_admission_reviews_total",
                    "Pods the API server asked about, by what was decided.",
                ),
                &["outcome"],
            )?,
            review_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "holdfast_admission_review_seconds",
                    "How long a review took, from the whole request to the answer.",
                )
                .buckets(vec![0.0001, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 2.0]),
            )?,
            certificate_left_days: Gauge::new(
                "holdfast_webhook_certificate_left_days",
                "How long the webhook's serving certificate is still valid. It is replaced after \
                 two thirds of its life: alert when less than a quarter is left.",
            )?,
            rotations: IntCounter::new(
                "holdfast_webhook_certificate_rotations_total",
                "How often this replica has replaced the webhook's certificates.",
            )?,
        };
        registry.register(Box::new(metrics.reviews.clone()))?;
        registry.register(Box::new(metrics.review_seconds.clone()))?;
        registry.register(Box::new(metrics.certificate_left_days.clone()))?;
        registry.register(Box::new(metrics.rotations.clone()))?;
        Ok(metrics)
    }
}
