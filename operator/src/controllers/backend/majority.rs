//! What is said of servers of which a majority decides. Pure.

use holdfast_api::{
    conditions::{
        READY, REASON_BACKEND_UNAVAILABLE, REASON_PROBED, REASON_QUARANTINE, REASON_RECONCILED,
        REPLICATED, Verdict,
    },
    v1alpha1::backend::EpochStatus,
};
use holdfast_core::lock::redlock::majority;

/// `Ready`: as long as a majority is open and answers. `away` is who does not answer, and why.
pub fn ready(servers: usize, epoch: Option<&EpochStatus>, away: &[String]) -> Verdict {
    let runs = epoch.map_or(&[][..], |epoch| &epoch.runs);
    let number = epoch.map_or(0, |epoch| epoch.number);
    let is_away = |server: &str| {
        away.iter().any(|why| why.strip_prefix(server).is_some_and(|rest| rest.starts_with(' ')))
    };
    let voting = runs.iter().filter(|run| run.open && !is_away(&run.server)).count();
    let closed: Vec<String> = (runs.iter().filter(|run| !run.open && !is_away(&run.server)))
        .map(|run| format!("{} (in quarantine until {})", run.server, run.not_before.0))
        .collect();
    if voting == servers {
        let message = format!("epoch {number} is open on all {servers} servers");
        return Verdict::new(READY, true, REASON_RECONCILED, message);
    }
    let without = [away, &closed[..]].concat().join("; ");
    if voting >= majority(servers) {
        let message = format!(
            "epoch {number} is open on {voting} of {servers} servers, which is a majority; without a \
             vote: {without}"
        );
        return Verdict::new(READY, true, REASON_RECONCILED, message);
    }
    let reason = match closed.len() + voting >= majority(servers) {
        true => REASON_QUARANTINE,
        false => REASON_BACKEND_UNAVAILABLE,
    };
    let message = format!(
        "{voting} of {servers} servers have a vote, and {} are needed; without one: {without}",
        majority(servers)
    );
    Verdict::new(READY, false, reason, message)
}

/// `Replicated`, by having a majority.
pub fn replicated(servers: usize) -> Verdict {
    let message = format!("every grant is on {} of {servers} servers", majority(servers));
    Verdict::new(REPLICATED, true, REASON_PROBED, message)
}

#[cfg(test)]
mod tests {
    use holdfast_api::v1alpha1::backend::RunStatus;
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn mk_epoch(open: [bool; 3]) -> EpochStatus {
        let not_before = Time(Timestamp::UNIX_EPOCH);
        let run = |(n, open): (usize, bool)| RunStatus {
            server: format!("redis-{n}:6379"),
            replid: "r".into(),
            tags: Vec::new(),
            not_before: not_before.clone(),
            open,
        };
        let runs = open.into_iter().enumerate().map(run).collect();
        EpochStatus {
            number: 7,
            replid: String::new(),
            not_before: not_before.clone(),
            open: true,
            runs,
        }
    }

    #[test]
    fn a_majority_that_is_open_and_answers_is_ready() {
        let of = |open, away: &[&str]| {
            let away: Vec<String> =
                away.iter().map(|n| format!("redis-{n}:6379 (refused)")).collect();
            ready(3, Some(&mk_epoch(open)), &away)
        };
        assert_eq!(of([true; 3], &[]).message, "epoch 7 is open on all 3 servers");
        let one_away = of([true; 3], &["2"]);
        assert!(one_away.status && one_away.message.contains("redis-2:6379 (refused)"));
        let one_closed = of([true, false, true], &[]);
        assert!(one_closed.status && one_closed.message.contains("redis-1:6379 (in quarantine"));
        let both = of([true, false, true], &["0"]);
        assert_eq!((both.status, both.reason), (false, REASON_QUARANTINE), "{}", both.message);
        let away = of([true; 3], &["0", "1"]);
        assert_eq!((away.status, away.reason), (false, REASON_BACKEND_UNAVAILABLE));
        assert!(!ready(3, None, &[]).status);
    }
}
