//! Checks of one key that are under way at once share calls, on a real Redis.

use std::{collections::BTreeSet, sync::Arc};

use futures::{FutureExt, future::join_all};
use holdfast_backend::limiter::{Limiter, Plan};
use holdfast_core::ratelimit::{Algorithm, Decision, Outcome, RateLimitConfig};

use crate::{
    fixture::eventually,
    limiters::{calls, mk_address, mk_check, mk_config, passes, sidecar},
    server::RedisServer,
};

const MONTH: u32 = 2_678_400;

fn mk_plan(limit: u64) -> Plan {
    Plan::new(&mk_config(Algorithm::FixedWindow, limit, MONTH))
}

async fn check(limiter: &Arc<Limiter>, plan: &Plan, key: &str) -> Decision {
    limiter.check(&mk_address(key), plan, &mk_check(1)).await.unwrap().0
}

#[tokio::test]
async fn checks_of_one_key_share_a_call_and_are_counted_one_by_one() {
    let server = RedisServer::start(&[]);
    let (plan, limiter) = (mk_plan(300), sidecar(&server));
    check(&limiter, &plan, "other").await;
    let before = calls(&server).await;
    let decisions = join_all((0..400).map(|_| check(&limiter, &plan, "k"))).await;
    assert_eq!(
        calls(&server).await - before,
        2,
        "the first one, and one for all who came meanwhile"
    );
    let (passed, refused): (Vec<Decision>, Vec<Decision>) = decisions
        .into_iter()
        .partition(|decision| matches!(decision.outcome, Outcome::Allowed { .. }));
    assert_eq!((passed.len(), refused.len()), (300, 100));
    let left: BTreeSet<u64> = passed.iter().map(|told| told.verdicts()[0].remaining).collect();
    assert_eq!(left, (0..300).collect(), "each is told what is left after itself");
    for told in refused {
        let Outcome::Limited { retry_us } = told.outcome else { panic!("{told:?}") };
        assert!(retry_us > 0 && retry_us == told.verdicts()[0].wait_us, "{told:?}");
    }
    // The control: of as many keys, each is asked by itself.
    let before = calls(&server).await;
    let keys: Vec<String> = (0..100).map(|n| format!("k{n}")).collect();
    join_all(keys.iter().map(|key| check(&limiter, &plan, key))).await;
    assert_eq!(calls(&server).await - before, 100);
}

#[tokio::test]
async fn who_goes_away_takes_nobody_along_and_is_not_counted_while_it_waits() {
    let server = RedisServer::start(&[]);
    let (plan, limiter) = (mk_plan(100), sidecar(&server));
    check(&limiter, &plan, "k").await;
    server.pause(true);
    let mut first = Box::pin(check(&limiter, &plan, "k"));
    assert!((&mut first).now_or_never().is_none());
    let mut gone = Box::pin(check(&limiter, &plan, "k"));
    assert!((&mut gone).now_or_never().is_none());
    let mut waiting = Box::pin(join_all((0..10).map(|_| check(&limiter, &plan, "k"))));
    assert!((&mut waiting).now_or_never().is_none());
    // The one whose call it is, and one of those who wait for the next.
    drop((first, gone));
    server.pause(false);
    let left: BTreeSet<u64> =
        waiting.await.iter().map(|told| told.verdicts()[0].remaining).collect();
    // The call that nobody waits for any more may have been sent.
    let sent = 100 - 1 - 10 - left.first().unwrap();
    assert!(sent <= 1, "{left:?}");
    assert_eq!(left.len(), 10, "{left:?}");
    assert!(passes(&limiter, &plan, "k").await, "nothing is left behind");
}

#[tokio::test]
async fn checks_by_an_older_class_are_asked_apart() {
    let server = RedisServer::start(&[]);
    let limiter = sidecar(&server);
    let older = mk_plan(100);
    let newer = RateLimitConfig { generation: 2, ..mk_config(Algorithm::FixedWindow, 5, MONTH) };
    let newer = Plan::new(&newer);
    let plans = [&older, &older, &older, &newer, &newer, &newer, &newer];
    let decisions = join_all(plans.map(|plan| check(&limiter, plan, "k"))).await;
    let left: Vec<u64> = decisions.iter().map(|told| told.verdicts()[0].remaining).collect();
    // Three are spent when the newer class comes, and stay spent.
    assert_eq!(left, [99, 98, 97, 1, 0, 0, 0]);
}

#[tokio::test]
async fn all_are_told_when_the_store_is_away() {
    let mut server = RedisServer::start(&[]);
    let (plan, limiter) = (mk_plan(100), sidecar(&server));
    check(&limiter, &plan, "k").await;
    server.kill();
    let (address, one) = (mk_address("k"), mk_check(1));
    let asked = join_all((0..50).map(|_| limiter.check(&address, &plan, &one))).await;
    assert!(asked.iter().all(|asked| asked.as_ref().is_err_and(|error| error.is_retryable())));
    server.restart();
    eventually("it is asked again", async || passes(&limiter, &plan, "k").await.then_some(()))
        .await;
}
