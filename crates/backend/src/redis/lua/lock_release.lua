-- Ends a hold. Before its minimal time is over nobody else is granted.
-- KEYS: record, queue, waiters
-- ARGV: the common six, 7 hold, 8 'u' to undo a grant that nobody was told of: no minimal time,
--   9 with it, if there: only the grant of this sequence, never a later one of the same hold
-- Returns {doubt, 1}, or {doubt, 0} when it was not held.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
local held, was_held = st.held, 0
if held and held.hold == ARGV[7] and (not ARGV[9] or st.seq == tonumber(ARGV[9])) then
  was_held = 1
  st.held = nil
  if ARGV[8] ~= 'u' then st.free_at = held.since + st.policy.min_hold end
end
promote(st)
save(st)
return { st.doubt, was_held }
