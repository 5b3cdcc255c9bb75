-- Ends a hold that its holder has passed on already, to a waiter of its own session, with the sequence
-- after its own and in its epoch. Makes that true; where it cannot, the heir is cancelled.
-- KEYS: record, queue, waiters, tombstone of the heir
-- ARGV: the common six, 7 hold, 8 its sequence, then of the heir: 9 hold, 10 session, 11 ttl ms,
--   12 max hold ms, 13 holder
-- Returns {doubt, 1 if it was held, 1 if it is the heir's now, who is first in line, or ''}.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
local held, seq, was_held = st.held, tonumber(ARGV[8]), 0
local heir = {
  hold = ARGV[9], session = ARGV[10], ttl = tonumber(ARGV[11]), max_hold = tonumber(ARGV[12]),
  holder = ARGV[13],
}
if held and held.hold == ARGV[7] and st.seq == seq then
  was_held = 1
  st.held = nil
  st.free_at = held.since + st.policy.min_hold
  if not st.tombed then
    remove(st, heir.hold)
    st.grant_epoch = st.epoch
    grant(st, seq + 1, heir, true)
  end
end
-- Or it was made true before, and the answer was lost.
held = st.held
local is_heirs = held and held.hold == heir.hold and st.seq == seq + 1
-- Told what is not so: it has nothing, not even under another number.
if not is_heirs then withdraw(st, heir.hold, KEYS[4], heir.ttl) end
promote(st)
save(st)
if not is_heirs then return { st.doubt, was_held, 0, '' } end
return { st.doubt, was_held, 1, first_in_line(st) }
