//! `holdfast explain`: what a problem's code means, and what to do about it.

use std::process::ExitCode;

use anyhow::bail;
use holdfast_api::load::did_you_mean;
use holdfast_wire::Code;

use crate::output::table;

/// Which.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The `code` of a problem document; all of them when absent.
    code: Option<String>,
}

/// Prints it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(wanted) = &args.code else {
        let row = |code: &Code| {
            vec![code.as_str().into(), code.status().to_string(), advice(*code).into()]
        };
        print!("{}", table(&["CODE", "STATUS", "WHAT TO DO"], Code::ALL.iter().map(row).collect()));
        return Ok(ExitCode::SUCCESS);
    };
    let Some(code) = Code::ALL.iter().find(|code| code.as_str() == wanted) else {
        let hint = did_you_mean(wanted, Code::ALL.iter().map(|code| code.as_str()));
        bail!("there is no code \"{wanted}\"{hint}");
    };
    println!("{} (HTTP {}): {}", code.as_str(), code.status(), advice(*code));
    Ok(ExitCode::SUCCESS)
}

const fn advice(code: Code) -> &'static str {
    match code {
        Code::Locked => "Another holds it. Wait with waitSeconds, or try again after retryAfterMs.",
        Code::NotLeading => "This pod does not lead. Do nothing that only the leader may do.",
        Code::QuotaExceeded => {
            "a limit of the RateLimit does not allow it now: wait for `retryAfterMs`, or send \
             waitSeconds; violated-policies names the limits"
        }
        Code::CostTooLarge => {
            "the cost is more than a limit ever allows, or the permits more than one hold can have: \
             split it up, or raise the limit"
        }
        Code::Fenced => {
            "A newer fence was granted: whoever sent this one is stale. Stop, and acquire again."
        }
        Code::QueueFull => "As many wait as spec.queue.maxWaiters allows. Try again later.",
        Code::HoldLost => {
            "The hold is over. Stop what it protected; acquire again for a new fence."
        }
        Code::ClassNotFound => "No such class in this namespace. GET /v1 lists them.",
        Code::NotFound => "No such route. GET /openapi.json lists them.",
        Code::MethodNotAllowed => "Another method: changes are POSTs, the rest are GETs.",
        Code::KeyNotAllowed => "The class lists its keys in spec.keys; use one of them.",
        Code::BadRequest => "The request cannot be read: send JSON or query parameters.",
        Code::InvalidField => "A field has a value that it cannot have; the detail names it.",
        Code::TooLarge => "Send less: a request is a few fields.",
        Code::NotJson => "Send content-type: application/json, or query parameters.",
        Code::Forbidden => "spec.access does not permit it to this pod's ServiceAccount.",
        Code::Misdirected => "Call localhost, 127.0.0.1 or [::1].",
        Code::TooMany => "This pod has too many holds or waiters. Release some, or wait.",
        Code::Epoch => "The Redis may have lost data. The operator opens a new epoch; try again.",
        Code::BackendUnavailable => {
            "The store did not take the request; nothing was done. Try again."
        }
        Code::OutcomeUnknown => "No answer in time. It is being settled and will hold nothing.",
        Code::BackendForbidden => {
            "A Role or an ACL user lacks a right: see the class's conditions."
        }
        Code::NotProvisioned => "The operator is not done with the class: see its conditions.",
        Code::NotReady => "The sidecar starts or stops. Try again.",
        Code::Internal => "A defect of the sidecar: please report it with its log.",
    }
}
