-- Ends a hold.
-- KEYS: the common seven
-- ARGV: the common six, 7 hold
-- Returns {doubt, 1}, or {doubt, 0} when it was not held.
local st, refused = sem_begin(KEYS, ARGV)
if not st then return refused end
local held = sem_read(st, ARGV[7])
if held then sem_drop(st, held) end
sem_promote(st)
sem_save(st)
return { st.doubt, held and 1 or 0 }
