//! The rules one by one. That they keep fences apart is in [`model`].

use super::*;
use crate::{
    HoldId, Holder,
    lock::{HolderView, LockView},
};

mod model;

const MS: Duration = Duration::from_millis(1);

fn granted(seq: u64, ttl_ms: u32) -> Result<Vote, BackendError> {
    Ok(Vote::Granted { fence: Fence::new(seq), ttl: ttl_ms * MS, is_new: true })
}

fn locked(ms: u32) -> Result<Vote, BackendError> {
    Ok(Vote::Locked { retry_after: ms * MS })
}

fn away() -> BackendError {
    BackendError::Unavailable("cannot connect".into())
}

fn open() -> BackendError {
    BackendError::Unknown("no answer".into())
}

fn ballot(votes: &[Option<Result<Vote, BackendError>>]) -> Ballot {
    let mut ballot = Ballot::new(votes.len());
    for (server, vote) in votes.iter().enumerate() {
        if let Some(vote) = vote {
            ballot.note(server, vote.clone());
        }
    }
    ballot
}

#[test]
fn a_majority_is_more_than_half_and_patience_is_a_twentieth() {
    assert_eq!([1, 3, 5, 7].map(majority), [1, 2, 3, 4]);
    assert_eq!(patience(Duration::from_secs(15)), 750 * MS);
    assert_eq!(patience(100 * MS), MIN_PATIENCE);
    assert_eq!(patience(Duration::from_secs(600)), MAX_PATIENCE);
    assert_eq!(grace(Duration::from_micros(80), Duration::from_secs(15)), MS);
    assert_eq!(grace(Duration::from_secs(9), Duration::from_secs(15)), 750 * MS);
}

#[test]
fn a_grant_needs_a_majority_at_one_fence() {
    let mut votes = ballot(&[Some(granted(7, 900)), Some(granted(9, 1_000)), None]);
    assert!(votes.is_granted() && !votes.is_lost());
    let fence = votes.fence().unwrap();
    assert_eq!((fence, votes.to_raise(fence)), (Fence::new(9), vec![0]));
    assert_eq!(votes.grant(fence), None, "one server stands at it");
    votes.note_raised(0);
    // What the majority has at the least, without the drift.
    assert_eq!(
        votes.grant(fence),
        Some(Grant { fence, ttl: 898 * MS, claimed: true, since: None })
    );
    assert_eq!(votes.pending().collect::<Vec<_>>(), [2]);
}

#[test]
fn a_fence_that_a_majority_agrees_on_is_kept_though_another_is_higher() {
    let votes = ballot(&[Some(granted(7, 900)), Some(granted(9, 900)), Some(granted(7, 800))]);
    let fence = votes.fence().unwrap();
    assert_eq!((fence, votes.to_raise(fence)), (Fence::new(7), vec![]));
    assert_eq!(votes.grant(fence).map(|grant| grant.ttl), Some(798 * MS));
}

#[test]
fn what_is_taken_back_is_what_this_request_put_there() {
    let old = Ok(Vote::Granted { fence: Fence::new(5), ttl: MS, is_new: false });
    let mut votes = ballot(&[Some(granted(7, 9)), Some(old), Some(granted(3, 9)), None, None]);
    votes.note_raised(2);
    let undo = |server, seq| Undo { server, fence: Fence::new(seq) };
    assert_eq!(votes.undo(Some(Fence::new(7))), [undo(0, 7), undo(2, 7)]);
    assert_eq!(votes.undo(None), [undo(0, 7), undo(2, 3)]);
}

#[test]
fn a_refusal_says_when_a_majority_may_be_free() {
    let refused = |votes: &[_]| ballot(votes).refusal(4);
    let after = |ms: u32| Ok(Attempt::Locked { retry_after: ms * MS, waiters: 4 });
    assert_eq!(refused(&[Some(locked(900)), Some(locked(300)), Some(locked(20))]), after(300));
    assert_eq!(refused(&[Some(granted(1, 9)), Some(locked(300)), Some(Err(away()))]), after(300));
    let gone = || Some(Ok(Vote::Cancelled));
    assert_eq!(refused(&[gone(), gone(), Some(granted(1, 9))]), Ok(Attempt::Cancelled));
    assert_eq!(refused(&[gone(), Some(locked(70)), Some(locked(50))]), after(70));
}

#[test]
fn without_a_majority_the_error_says_what_is_known() {
    let error = |votes: &[_]| ballot(votes).refusal(0).unwrap_err();
    let few = error(&[Some(granted(1, 9)), Some(Err(away())), Some(Err(away()))]);
    assert_eq!(few.code(), "backend_unavailable");
    assert!(few.to_string().contains("1 of 3 servers vote now, and 2 are needed"), "{few}");
    assert!(few.to_string().contains("server 2: cannot connect"), "{few}");
    // Two that have not answered could have granted.
    assert_eq!(error(&[Some(Err(away())), Some(Err(open())), None]).code(), "outcome_unknown");
    let epoch = || Some(Err(BackendError::Epoch));
    assert_eq!(error(&[epoch(), epoch(), None]), BackendError::Epoch);
    assert_eq!(error(&[epoch(), Some(granted(1, 9)), Some(Err(away()))]).code(), few.code());
    let is_lost = |votes: &[_]| ballot(votes).is_lost();
    assert!(is_lost(&[Some(locked(1)), Some(locked(1)), None]));
    assert!(is_lost(&[epoch(), Some(Err(away())), Some(locked(1))]));
    assert!(!is_lost(&[epoch(), Some(locked(1)), None]), "the third says whether it is held");
    assert!(!is_lost(&[Some(locked(1)), None, None]));
}

#[test]
fn a_renewal_is_what_a_majority_says() {
    let renewed = |ms: u32| Some(Ok(Renewal::Renewed { ttl: ms * MS }));
    let lost = || Some(Ok(Renewal::Lost));
    let both = |answers: &[_]| (renewal(answers, false), renewal(answers, true));
    let done = Some(Ok(Renewal::Renewed { ttl: 698 * MS }));
    assert_eq!(renewal(&[renewed(700), None, renewed(900)], false), done);
    assert_eq!(renewal(&[lost(), lost(), None], false), Some(Ok(Renewal::Lost)));
    let (wait, end) = both(&[renewed(700), lost(), None]);
    assert_eq!((wait, end.unwrap().unwrap_err().code()), (None, "outcome_unknown"));
    // A server in doubt may have had it: the hold is not known to be lost.
    let doubt = renewal(&[renewed(7), Some(Err(BackendError::Epoch)), Some(Err(away()))], false);
    assert_eq!(doubt.unwrap().unwrap_err().code(), "backend_unavailable");
}

#[test]
fn a_release_is_true_if_a_majority_knew_the_hold() {
    let (yes, no) = (|| Some(Ok(Release::Released)), || Some(Ok(Release::NotHeld)));
    assert_eq!(release(&[yes(), yes(), None], false), Some(Ok(Release::Released)));
    assert_eq!(release(&[yes(), no(), None], false), None);
    assert_eq!(release(&[yes(), no(), None], true), Some(Ok(Release::Released)));
    assert_eq!(release(&[yes(), no(), no()], false), Some(Ok(Release::NotHeld)));
    assert_eq!(release(&[no(), no(), Some(Err(away()))], false), Some(Ok(Release::NotHeld)));
    assert!(release(&[yes(), Some(Err(away())), None], true).unwrap().is_err());
    assert_eq!(done(&[yes(), no(), None], false), Some(Ok(())));
    assert_eq!(done(&[yes(), None, None], false), None);
    assert!(done(&[yes(), None, Some(Err(away()))], true).unwrap().is_err());
}

fn seen(hold: Option<&str>, seq: u64) -> Option<Result<Seen, BackendError>> {
    let holder = hold.map(|name| HolderView {
        holder: Holder::new(name).unwrap(),
        fence: Fence::new(seq),
        ttl: Duration::from_millis(seq),
        held_for: MS,
        permits: 1,
    });
    let last_fence = (seq > 0).then_some(Fence::new(seq));
    let view = LockView { holder, last_fence, ..LockView::default() };
    Some(Ok(Seen { hold: hold.map(|name| HoldId::new(name).unwrap()), view }))
}

#[test]
fn a_view_shows_the_hold_that_a_majority_has() {
    let shown = |answers: &[_]| {
        let view = view(answers).unwrap();
        let holder = view.holder.map(|h| (h.holder.to_string(), h.fence.get(), h.ttl.as_millis()));
        (holder, view.last_fence.map(Fence::get))
    };
    let a = |seq, ttl| Some(("a".to_owned(), seq, ttl));
    assert_eq!(shown(&[seen(Some("a"), 7), seen(Some("a"), 7), None]), (a(7, 7), Some(7)));
    assert_eq!(shown(&[seen(Some("a"), 7), seen(Some("a"), 9), seen(Some("b"), 8)]).0, a(9, 7));
    assert_eq!(shown(&[seen(Some("a"), 7), seen(Some("b"), 9), seen(None, 8)]), (None, Some(8)));
    assert_eq!(shown(&[seen(None, 0), seen(None, 0), None]), (None, None));
    assert!(view(&[seen(None, 0), None, Some(Err(away()))]).is_err());
}

#[test]
fn the_newest_fence_stops_whoever_holds_no_longer_and_nobody_else() {
    let at = |hold: Option<&str>, seq| {
        let hold = hold.map(|name| HoldId::new(name).unwrap());
        Some(Ok(Standing { hold, fence: Fence::new(seq) }))
    };
    let newest = |answers: &[_]| newest(answers).map(Fence::get);
    // Held, with one server that another's failed request has raised.
    assert_eq!(newest(&[at(Some("a"), 7), at(Some("a"), 7), at(None, 9)]), Ok(7));
    assert_eq!(newest(&[at(None, 7), at(None, 7), at(None, 9)]), Ok(7));
    // One is away: it may be one of the two that stood at 9.
    assert_eq!(newest(&[at(None, 7), None, at(None, 9)]), Ok(9));
    assert_eq!(newest(&[at(Some("a"), 7), None, at(None, 6)]), Ok(7));
    // …or one of the two that stand at 7, with "a" in them.
    let unsure = newest(&[at(Some("a"), 7), None, at(None, 9)]).unwrap_err();
    assert_eq!(unsure.code(), "backend_unavailable");
    assert!(newest(&[at(None, 7), None, Some(Err(away()))]).is_err());
}
