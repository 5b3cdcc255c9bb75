-- Notes that a session is alive, and tells it what it may have missed.
-- KEYS: the common seven
-- ARGV: the common six, 7 session
-- Returns {doubt, tickets, next change ms, seq, epoch}, and for every hold of the session that is
-- offered and not claimed also: hold, seq, epoch, what is left of the offer in ms.
local st, refused = sem_begin(KEYS, ARGV)
if not st then return refused end
local session, tickets = ARGV[7], 0
note_beat(st, session)
sem_promote(st)
sem_save(st)
if st.waiters > 0 then
  local _, count = read_beat(st, session)
  tickets = count
end
local reply = { st.doubt, tickets, sem_next_change_ms(st), st.seq, st.epoch }
for _, hold in ipairs(redis.call('ZRANGE', KEYS[7], 0, -1)) do
  local held = sem_read(st, hold)
  if held and held.session == session then
    local n = #reply
    reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] =
      hold, held.seq, held.epoch, held.expires - st.now
  end
end
return reply
