-- Notes that a session is alive, and tells it what it may have missed.
-- KEYS: record, queue, waiters
-- ARGV: the common six, 7 session
-- Returns {doubt, tickets, next change ms, seq, epoch}, and when a hold of the session is offered
-- and not claimed also: hold, what is left of the offer in ms.
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
count_waiters(st)
local session = ARGV[7]
note_beat(st, session)
promote(st)
save(st)
local tickets = 0
if st.waiters > 0 then
  local _, count = read_beat(st, session)
  tickets = count
end
local held = st.held
if held and held.session == session and held.claimed == '0' then
  return {
    st.doubt, tickets, next_change_ms(st), st.seq, st.epoch, held.hold, held.expires - st.now,
  }
end
return { st.doubt, tickets, next_change_ms(st), st.seq, st.epoch }
