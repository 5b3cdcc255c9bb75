//! Envoy's rate limit service, on RateLimit classes.
//!
//! A descriptor's keys choose the class, its values are below it ([`names`]); each descriptor is one
//! check, charged by itself.

use std::sync::Arc;

use futures::future::join_all;
use holdfast_core::ratelimit::Outcome;
use holdfast_peers::{
    rls::{
        HeaderValue, RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
        rate_limit_response::{Code as Verdict, DescriptorStatus},
        rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
    },
    tonic::{self, Request, Response, Status},
};
use holdfast_wire::{CheckRequest, Code, PeekQuery, RefundRequest};
use prometheus::{IntCounterVec, Opts, Registry};

use super::grpc;
use crate::{
    error::Failure,
    service::{Checked, Sidecar},
    snapshot::RateLimitClass,
};

mod answers;
mod names;

/// Descriptors of one request; Envoy has a few.
const MAX_DESCRIPTORS: usize = 64;

/// The service.
pub struct RateLimits {
    sidecar: Arc<Sidecar>,
    hits: IntCounterVec,
}

/// What a server serves.
///
/// # Errors
/// When its metrics are registered already.
pub fn service(
    sidecar: Arc<Sidecar>,
    registry: &Registry,
) -> anyhow::Result<RateLimitServiceServer<RateLimits>> {
    let help = "Hits that Envoy asked about, by outcome; near: less than a fifth was left.";
    let hits =
        IntCounterVec::new(Opts::new("holdfast_rls_hits_total", help), &["name", "outcome"])?;
    registry.register(Box::new(hits.clone()))?;
    let service = RateLimitServiceServer::new(RateLimits { sidecar, hits });
    Ok(service.max_decoding_message_size(grpc::MAX_MESSAGE))
}

/// What one descriptor asks for.
#[derive(Clone, Copy)]
enum Ask {
    Charge(u64),
    Look,
    GiveBack(u64),
}

/// What came of one descriptor.
struct Answer {
    status: DescriptorStatus,
    /// After how many seconds the same would pass, when it does not now.
    retry_seconds: Option<u64>,
}

#[tonic::async_trait]
impl RateLimitService for RateLimits {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        match self.decide(&request).await {
            Ok(answer) => Ok(Response::new(answer)),
            Err(failure) => {
                tracing::debug!(domain = request.domain, why = failure.0.detail, "not decided");
                Err(grpc::status(&failure))
            }
        }
    }
}

impl RateLimits {
    async fn decide(&self, request: &RateLimitRequest) -> Result<RateLimitResponse, Failure> {
        let count = request.descriptors.len();
        if request.domain.is_empty() || count == 0 || count > MAX_DESCRIPTORS {
            let why = format!("a request has a domain and 1 to {MAX_DESCRIPTORS} descriptors");
            return Err(Failure::new(Code::InvalidField, why));
        }
        // Nothing is charged of a request that is wrong somewhere.
        let mut plans = Vec::with_capacity(count);
        for descriptor in &request.descriptors {
            let ask = read_ask(descriptor, request.hits_addend)?;
            plans.push((self.class_of(&request.domain, descriptor)?, ask, descriptor));
        }
        let answers = match &plans[..] {
            [(class, ask, descriptor)] => vec![self.ask(class.as_ref(), *ask, descriptor).await],
            many => {
                let asked = many
                    .iter()
                    .map(|(class, ask, descriptor)| self.ask(class.as_ref(), *ask, descriptor));
                join_all(asked).await
            }
        };
        let answers: Vec<Answer> = answers.into_iter().collect::<Result<_, Failure>>()?;
        let is_over = |answer: &&Answer| answer.status.code == Verdict::OverLimit as i32;
        let over = answers.iter().any(|answer| is_over(&answer));
        // The last of the limits to let it pass; without one, it never will.
        let retry = answers.iter().filter(is_over).map(|a| a.retry_seconds).max().flatten();
        let header =
            |seconds: u64| HeaderValue { key: "retry-after".into(), value: seconds.to_string() };
        Ok(RateLimitResponse {
            overall_code: if over { Verdict::OverLimit } else { Verdict::Ok }.into(),
            statuses: answers.into_iter().map(|answer| answer.status).collect(),
            response_headers_to_add: retry.map(header).into_iter().collect(),
        })
    }

    /// The class of a descriptor; `None` when there is none for it, and so no limit.
    fn class_of(
        &self,
        domain: &str,
        descriptor: &RateLimitDescriptor,
    ) -> Result<Option<Arc<RateLimitClass>>, Failure> {
        let snapshot = self.sidecar.snapshot.load();
        let Some(class) = names::class_of(&snapshot.rate_limits, domain, descriptor) else {
            return match names::is_known(&snapshot.rate_limits, domain) {
                true => Ok(None),
                false => snapshot.rate_limit(&names::of_domain(domain)).map(|_| None),
            };
        };
        if class.has_permits {
            let why = format!(
                "RateLimit \"{}\" has a Concurrency limit, and Envoy never gives a permit back: \
                 use another algorithm",
                class.name
            );
            return Err(Failure::new(Code::InvalidField, why));
        }
        Ok(Some(class.clone()))
    }

    async fn ask(
        &self,
        class: Option<&Arc<RateLimitClass>>,
        ask: Ask,
        descriptor: &RateLimitDescriptor,
    ) -> Result<Answer, Failure> {
        let Some(class) = class else {
            self.count("", "unlimited", ask);
            return Ok(answers::mk_ok());
        };
        let (name, key) = (class.name.as_str(), Some(names::key_of(&descriptor.entries)));
        let asked = match ask {
            Ask::Charge(cost) => {
                let request = CheckRequest { key, cost: Some(cost), wait_seconds: None };
                self.sidecar.check(name, &request).await.map(Some)
            }
            Ask::Look => self.sidecar.peek(name, &PeekQuery { key, cost: None }).await.map(Some),
            Ask::GiveBack(cost) => {
                let request = RefundRequest { key, cost: Some(cost) };
                self.sidecar.refund(name, &request).await.map(|_| None)
            }
        };
        let outcome = match &asked {
            Ok(Some(checked)) => outcome_of(checked),
            Ok(None) => "refunded",
            Err(_) => "failed",
        };
        self.count(name, outcome, ask);
        Ok(asked?.map_or_else(answers::mk_ok, |checked| answers::mk_answer(&checked)))
    }

    fn count(&self, name: &str, outcome: &str, ask: Ask) {
        let hits = match ask {
            Ask::Charge(hits) | Ask::GiveBack(hits) => hits,
            // Nothing was hit.
            Ask::Look => return,
        };
        self.hits.with_label_values(&[name, outcome]).inc_by(hits);
    }
}

fn read_ask(descriptor: &RateLimitDescriptor, of_request: u32) -> Result<Ask, Failure> {
    let invalid = |why: &str| Err(Failure::new(Code::InvalidField, why));
    if descriptor.entries.is_empty() {
        return invalid("a descriptor has at least one entry");
    }
    if descriptor.limit.is_some() {
        return invalid("a descriptor cannot bring its own limit: limits are those of the class");
    }
    let hits = descriptor.hits_addend.unwrap_or_else(|| u64::from(of_request.max(1)));
    Ok(match (hits, descriptor.is_negative_hits) {
        (0, _) => Ask::Look,
        (hits, false) => Ask::Charge(hits),
        (hits, true) => Ask::GiveBack(hits),
    })
}

fn outcome_of(checked: &Checked) -> &'static str {
    match checked.decision.outcome {
        // The class is open while its store is away.
        Outcome::Allowed { .. } if checked.degraded => "unchecked",
        Outcome::Allowed { .. } if answers::is_near(checked) => "near",
        Outcome::Allowed { .. } => "within",
        Outcome::Limited { .. } | Outcome::TooLarge if checked.class.config.shadow => "shadowed",
        Outcome::Limited { .. } | Outcome::TooLarge => "over",
    }
}
