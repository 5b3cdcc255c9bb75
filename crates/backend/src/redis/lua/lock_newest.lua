-- The fence granted last, if the epoch is sure. Changes nothing.
-- KEYS: record, queue, waiters
-- ARGV: the common six
-- Returns {doubt, seq, epoch, the hold, empty for none}; zeros when nothing was granted.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
return { st.doubt, st.seq, st.epoch, st.held and st.held.hold or '' }
