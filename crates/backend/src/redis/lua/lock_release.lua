-- Ends a hold. Before its minimal time is over nobody else is granted.
-- KEYS: record, queue, waiters
-- ARGV: the common six, 7 hold, 8 'u' to undo a grant that nobody was told of: no minimal time,
--   9 the session that asks, or ''
--   10 if there: only the grant of this sequence, never a later one of the same hold
-- Returns {doubt, 1}, or {doubt, 0} when it was not held; and if it is a waiter of the session that asks
-- who has it now and has not been heard of, also hold, seq, ttl ms, epoch, and who is first in line then,
-- or ''. Whoever releases again, because the answer was lost, is so told again.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
local held, was_held = st.held, 0
if held and held.hold == ARGV[7] and (not ARGV[10] or st.seq == tonumber(ARGV[10])) then
  was_held = 1
  st.held = nil
  if ARGV[8] ~= 'u' then st.free_at = held.since + st.policy.min_hold end
end
promote(st, nil, ARGV[9])
save(st)
held = st.held
if held and held.claimed == '0' and held.session == ARGV[9] then
  return {
    st.doubt, was_held, held.hold, st.seq, held.expires - st.now, st.epoch, first_in_line(st),
  }
end
return { st.doubt, was_held }
