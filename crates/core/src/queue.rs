//! First come, first served: the tickets of those who wait, and how the dead among them are found.
//!
//! A waiter lives as long as its session beats. One beat per session and object covers all its
//! tickets there, so a thousand waiters of one pod cost one command per beat. A session that has
//! missed three beats is dead; its tickets are dropped when they reach the head of the queue, or all
//! at once when the queue is full.

use std::collections::{BTreeMap, VecDeque};

use crate::{HoldId, Holder, SessionId};

/// Beats a session may miss before its tickets are dropped.
pub const BEATS_TO_LIVE: u64 = 3;
/// Dead tickets dropped from the head in one transition, so that no transition is slow.
pub const REAP_AT_ONCE: usize = 32;

/// A waiter's place in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The hold this ticket becomes when its turn comes.
    pub hold: HoldId,
    /// Whose beats keep it alive.
    pub session: SessionId,
    /// Who waits, for people.
    pub holder: Holder,
    /// The time to live that the hold will be granted for.
    pub ttl_ms: u64,
    /// The longest that the hold may last, zero for no bound.
    pub max_hold_ms: u64,
    /// How many permits it asks for; 1 for a lock.
    pub permits: u32,
}

/// The beat of a session that waits here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Beat {
    at_ms: u64,
    tickets: u32,
}

/// A FIFO queue with live and dead waiters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    tickets: VecDeque<Ticket>,
    beats: BTreeMap<SessionId, Beat>,
}

impl Queue {
    /// How many wait, the dead that nobody has noticed yet included.
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// The tickets, first come first.
    pub fn iter(&self) -> impl Iterator<Item = &Ticket> {
        self.tickets.iter()
    }

    /// The place of a hold's ticket, counted from 1.
    pub fn position(&self, hold: &HoldId) -> Option<u32> {
        self.tickets.iter().position(|t| t.hold == *hold).map(|i| i as u32 + 1)
    }

    /// How many tickets a session has here.
    pub fn tickets_of(&self, session: &SessionId) -> u32 {
        self.beats.get(session).map_or(0, |beat| beat.tickets)
    }

    /// Appends a ticket; its session beats by that. Returns the ticket's place, counted from 1.
    pub fn push(&mut self, now_ms: u64, ticket: Ticket) -> u32 {
        let beat =
            self.beats.entry(ticket.session.clone()).or_insert(Beat { at_ms: now_ms, tickets: 0 });
        beat.at_ms = now_ms;
        beat.tickets += 1;
        self.tickets.push_back(ticket);
        self.tickets.len() as u32
    }

    /// Notes that a session is alive. A session without tickets here is not remembered.
    pub fn beat(&mut self, now_ms: u64, session: &SessionId) {
        if let Some(beat) = self.beats.get_mut(session) {
            beat.at_ms = now_ms;
        }
    }

    /// Takes a ticket out, wherever it stands.
    pub fn remove(&mut self, hold: &HoldId) -> Option<Ticket> {
        let at = self.tickets.iter().position(|t| t.hold == *hold)?;
        self.remove_at(at)
    }

    /// The ticket at a place counted from 0.
    pub fn get(&self, at: usize) -> Option<&Ticket> {
        self.tickets.get(at)
    }

    /// Takes out the ticket at a place counted from 0.
    pub fn remove_at(&mut self, at: usize) -> Option<Ticket> {
        let ticket = self.tickets.remove(at)?;
        self.forget(&ticket.session);
        Some(ticket)
    }

    /// Takes the first ticket out.
    pub fn pop(&mut self) -> Option<Ticket> {
        let ticket = self.tickets.pop_front()?;
        self.forget(&ticket.session);
        Some(ticket)
    }

    /// Takes the first ticket out if its session is alive.
    pub fn pop_live(&mut self, now_ms: u64, beat_ms: u64) -> Option<Ticket> {
        let head = self.tickets.front()?;
        if self.is_dead(&head.session, now_ms, beat_ms) { None } else { self.pop() }
    }

    /// Drops dead tickets from the head, at most [`REAP_AT_ONCE`].
    pub fn reap_head(&mut self, now_ms: u64, beat_ms: u64) {
        for _ in 0..REAP_AT_ONCE {
            match self.tickets.front() {
                Some(head) if self.is_dead(&head.session, now_ms, beat_ms) => self.pop(),
                _ => return,
            };
        }
    }

    /// Drops every dead ticket.
    pub fn reap_all(&mut self, now_ms: u64, beat_ms: u64) {
        let dead: Vec<HoldId> = self
            .tickets
            .iter()
            .filter(|t| self.is_dead(&t.session, now_ms, beat_ms))
            .map(|t| t.hold.clone())
            .collect();
        for hold in dead {
            self.remove(&hold);
        }
    }

    /// Whether a session has missed its beats.
    pub(crate) fn is_dead(&self, session: &SessionId, now_ms: u64, beat_ms: u64) -> bool {
        let at_ms = self.beats.get(session).map_or(0, |beat| beat.at_ms);
        now_ms >= at_ms.saturating_add(BEATS_TO_LIVE * beat_ms)
    }

    fn forget(&mut self, session: &SessionId) {
        if let Some(beat) = self.beats.get_mut(session) {
            beat.tickets -= 1;
            if beat.tickets == 0 {
                self.beats.remove(session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_ticket(hold: &str, session: &str) -> Ticket {
        Ticket {
            hold: HoldId::new(hold).unwrap(),
            session: SessionId::new(session).unwrap(),
            holder: Holder::new("pod").unwrap(),
            ttl_ms: 1_000,
            max_hold_ms: 0,
            permits: 1,
        }
    }

    #[test]
    fn one_beat_keeps_all_tickets_of_a_session_and_silence_drops_them() {
        let mut queue = Queue::default();
        queue.push(0, mk_ticket("a1", "a"));
        queue.push(0, mk_ticket("b1", "b"));
        queue.push(0, mk_ticket("a2", "a"));
        queue.beat(250, &SessionId::new("a").unwrap());
        queue.reap_all(300, 100);
        let left: Vec<_> = queue.iter().map(|t| t.hold.to_string()).collect();
        assert_eq!(left, ["a1", "a2"]);
        assert_eq!(queue.tickets_of(&SessionId::new("b").unwrap()), 0);
    }

    #[test]
    fn only_the_head_is_reaped_in_passing_and_no_more_than_a_handful() {
        let mut queue = Queue::default();
        for i in 0..40 {
            queue.push(0, mk_ticket(&format!("d{i}"), "dead"));
        }
        queue.push(1_000, mk_ticket("live", "live"));
        queue.reap_head(1_000, 100);
        assert_eq!(queue.len(), 41 - REAP_AT_ONCE);
        queue.reap_head(1_000, 100);
        assert_eq!(queue.position(&HoldId::new("live").unwrap()), Some(1));
    }
}
