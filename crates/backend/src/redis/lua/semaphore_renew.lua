-- Extends a hold and claims it. Never brings one back.
-- KEYS: the common seven
-- ARGV: the common six, 7 hold, 8 ttl ms
-- Returns {doubt, ttl ms}, or {doubt, -1} when the hold is not there.
local st, refused = sem_begin(KEYS, ARGV)
if not st then return refused end
local held, left = sem_read(st, ARGV[7]), -1
if held then
  sem_extend(st, held, tonumber(ARGV[8]))
  left = held.expires - st.now
end
sem_promote(st)
sem_save(st)
return { st.doubt, left }
