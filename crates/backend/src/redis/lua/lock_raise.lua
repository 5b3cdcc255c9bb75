-- Raises the fence to a number that other stores agree on, if the key is held as the caller says and
-- its fence is not beyond that yet. The hold has that fence then.
-- KEYS: record, queue, waiters
-- ARGV: the common six, 7 hold, empty for none, 8 epoch of the fence, 9 its sequence
-- Returns {doubt, 1 if it stands at that fence now}.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
local epoch, seq, raised = tonumber(ARGV[8]), tonumber(ARGV[9]), 0
local held = st.held and st.held.hold or ''
if held == ARGV[7] and (st.epoch < epoch or (st.epoch == epoch and st.seq <= seq)) then
  st.epoch, st.seq, raised = epoch, seq, 1
end
promote(st)
save(st)
return { st.doubt, raised }
