-- Withdraws a request whatever became of it, and refuses it should it still arrive. A hold it got is
-- freed at once: nobody has been told of it, so no minimal time applies.
-- KEYS: record, queue, waiters, tombstone of the hold
-- ARGV: the common six, 7 hold, 8 ttl ms
-- Returns {doubt}.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
withdraw(st, ARGV[7], KEYS[4], tonumber(ARGV[8]))
promote(st)
save(st)
return { st.doubt }
