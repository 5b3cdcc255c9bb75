-- Extends a hold and claims it. Never brings one back.
-- KEYS: record, queue, waiters
-- ARGV: the common six, 7 hold, 8 ttl ms
-- Returns {doubt, ttl ms}, or {doubt, -1} when the hold is not there.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
local held, left = st.held, -1
if held and held.hold == ARGV[7] then
  extend(st, held, tonumber(ARGV[8]))
  left = held.expires - st.now
else
  promote(st)
end
save(st)
return { st.doubt, left }
