//! Envoy's rate limit service, on RateLimit classes.
//!
//! A descriptor's keys choose the class, its values are below it ([`names`]); each descriptor is one
//! check, charged by itself.

use std::sync::Arc;

use futures::future::join_all;
use holdfast_peers::{
    rls::{
        RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
        rate_limit_response::DescriptorStatus,
        rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
    },
    tonic::{self, Request, Response, Status},
};
use holdfast_wire::{CheckRequest, Code, PeekQuery, RefundRequest};
use prometheus::{IntCounterVec, Opts, Registry};

use super::grpc;
use crate::{error::Failure, service::Sidecar, snapshot::RateLimitClass};

mod answers;
mod names;

pub use answers::Shown;

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
    retry: Option<Retry>,
}

/// When something that does not pass now may. The later of two is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Retry {
    /// After so many seconds.
    After(u64),
    /// It never will.
    Never,
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

/// One descriptor, read.
struct Plan<'a> {
    /// `None` when there is no class for it, and so no limit.
    class: Option<Arc<RateLimitClass>>,
    ask: Ask,
    descriptor: &'a RateLimitDescriptor,
}

impl RateLimits {
    async fn decide(&self, request: &RateLimitRequest) -> Result<RateLimitResponse, Failure> {
        if request.domain.is_empty() {
            return Err(Failure::new(Code::InvalidField, "a request has a domain"));
        }
        let (mut statuses, mut retry) = (Vec::new(), None);
        match &request.descriptors[..] {
            // Most requests, and the cheapest way.
            [descriptor] => {
                let answer = self.ask(self.plan(request, descriptor)?).await?;
                retry = answer.retry;
                statuses.push(answer.status);
            }
            many if (1..=MAX_DESCRIPTORS).contains(&many.len()) => {
                let plans = many.iter().map(|descriptor| self.plan(request, descriptor));
                // Nothing is charged of a request that is wrong somewhere.
                let plans: Vec<Plan<'_>> = plans.collect::<Result<_, Failure>>()?;
                for answer in join_all(plans.into_iter().map(|plan| self.ask(plan))).await {
                    let answer = answer?;
                    retry = retry.max(answer.retry);
                    statuses.push(answer.status);
                }
            }
            _ => {
                let why = format!("a request has 1 to {MAX_DESCRIPTORS} descriptors");
                return Err(Failure::new(Code::InvalidField, why));
            }
        }
        Ok(answers::mk_response(statuses, retry))
    }

    fn plan<'a>(
        &self,
        request: &RateLimitRequest,
        descriptor: &'a RateLimitDescriptor,
    ) -> Result<Plan<'a>, Failure> {
        let ask = read_ask(descriptor, request.hits_addend)?;
        let class = self.class_of(&request.domain, descriptor)?;
        Ok(Plan { class, ask, descriptor })
    }

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

    async fn ask(&self, plan: Plan<'_>) -> Result<Answer, Failure> {
        let Plan { class, ask, descriptor } = plan;
        let Some(class) = class else {
            if let Ask::Charge(hits) | Ask::GiveBack(hits) = ask {
                self.hits.with_label_values(&["", "unlimited"]).inc_by(hits);
            }
            return Ok(answers::mk_ok());
        };
        let shown = class.envoy.get_or_init(|| Shown::new(&class.config, &class.name, &self.hits));
        let (name, key) = (class.name.as_str(), Some(names::key_of(&descriptor.entries)));
        match ask {
            Ask::Charge(hits) => {
                let request = CheckRequest { key, cost: Some(hits), wait_seconds: None };
                let checked = self.sidecar.check_class(class.clone(), &request).await;
                let checked = checked.inspect_err(|_| shown.failed.inc_by(hits))?;
                shown.outcome(&checked).inc_by(hits);
                Ok(answers::mk_answer(shown, &checked))
            }
            Ask::Look => {
                let checked = self.sidecar.peek(name, &PeekQuery { key, cost: None }).await?;
                Ok(answers::mk_answer(shown, &checked))
            }
            Ask::GiveBack(hits) => {
                let request = RefundRequest { key, cost: Some(hits) };
                let refunded = self.sidecar.refund(name, &request).await;
                refunded.inspect_err(|_| shown.failed.inc_by(hits))?;
                shown.refunded.inc_by(hits);
                Ok(answers::mk_ok())
            }
        }
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
