-- Takes the lock from whoever has it, tells its session, and raises the fence past anything granted.
-- KEYS: record, queue, waiters
-- ARGV: the common six
-- Returns {doubt}, and when it was held also: holder, seq, epoch, what was left in ms, held for ms.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
local held, reply = st.held, { st.doubt }
if held then
  reply = {
    st.doubt, held.holder, st.seq, st.epoch, held.expires - st.now, st.now - held.since,
  }
  st.held = nil
  st.seq = st.seq + STEP
  st.free_at = 0
  redis.call('PUBLISH', st.channel .. held.session, 'l ' .. held.hold)
end
promote(st)
save(st)
return reply
