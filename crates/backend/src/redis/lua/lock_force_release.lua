-- Takes the lock from whoever has it, if it is meant, tells its session, and raises the fence past
-- anything granted.
-- KEYS: record, queue, waiters
-- ARGV: the common six, 7 to 9 which hold is meant
-- Returns {doubt}, and when it was taken also: holder, seq, epoch, what was left in ms, held for ms,
-- and 1.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
local held, reply = st.held, { st.doubt }
if held and is_meant(ARGV, st.seq, st.epoch) then
  reply = {
    st.doubt, held.holder, st.seq, st.epoch, held.expires - st.now, st.now - held.since, 1,
  }
  st.held = nil
  st.seq = st.seq + STEP
  st.free_at = 0
  redis.call('PUBLISH', st.channel .. held.session, 'l ' .. held.hold)
end
promote(st)
save(st)
return reply
