-- Withdraws a request whatever became of it, and refuses it should it still arrive.
-- KEYS: the common seven, 8 tombstone of the hold
-- ARGV: the common six, 7 hold, 8 ttl ms
-- Returns {doubt}.
local st, refused = sem_begin(KEYS, ARGV)
if not st then return refused end
local hold = ARGV[7]
local held = sem_read(st, hold)
if held then sem_drop(st, held) end
sem_remove(st, hold)
local keep = TOMB_FACTOR * math.max(tonumber(ARGV[8]), claim_ms(st))
-- The script judges by its own time; the store only collects, later, so that a step of its clock
-- does not let a late request in.
redis.call('SET', KEYS[8], int(st.now + keep), 'PX', int(keep + 60000))
sem_promote(st)
sem_save(st)
return { st.doubt }
