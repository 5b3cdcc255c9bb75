-- Withdraws a request whatever became of it, and refuses it should it still arrive. A hold it got is
-- freed at once: nobody has been told of it, so no minimal time applies.
-- KEYS: record, queue, waiters, tombstone of the hold
-- ARGV: the common six, 7 hold, 8 ttl ms
-- Returns {doubt}.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
local hold = ARGV[7]
if st.held and st.held.hold == hold then st.held = nil end
remove(st, hold)
local keep = TOMB_FACTOR * math.max(tonumber(ARGV[8]), claim_ms(st))
-- The script judges by its own time; the store only collects, later, so that a step of its clock
-- does not let a late request in.
redis.call('SET', KEYS[4], int(st.now + keep), 'PX', int(keep + 60000))
promote(st)
save(st)
return { st.doubt }
