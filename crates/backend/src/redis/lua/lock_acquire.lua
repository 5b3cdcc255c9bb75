-- Grants, queues, or refuses.
-- KEYS: record, queue, waiters, tombstone of the hold
-- ARGV: the common six, 7 hold, 8 session, 9 ttl ms, 10 max hold ms, 11 '1' to queue, 12 holder
-- Returns {doubt, …}: 'G', seq, ttl ms, epoch, 1 if nobody knows of it yet | 'Q', position | 'L', retry ms, waiters
--                   | 'F', waiters | 'C'
local st, refused = begin(KEYS, ARGV)
if not st then return refused end
count_waiters(st)
local want = {
  hold = ARGV[7], session = ARGV[8], ttl = tonumber(ARGV[9]), max_hold = tonumber(ARGV[10]),
  holder = ARGV[12],
}
if st.tombed then
  promote(st)
  save(st)
  return { st.doubt, 'C' }
end
-- Who asks is alive: its tickets must not be dropped as dead in this very step.
note_beat(st, want.session)
if not st.policy.fifo and is_free(st) then
  remove(st, want.hold)
  local ttl = grant(st, next_seq(st), want, true)
  save(st)
  return { st.doubt, 'G', st.seq, ttl, st.epoch, 1 }
end
-- Promoting first keeps a newcomer behind those who wait, on a lock that has just expired.
promote(st, want.hold)
local held = st.held
if held and held.hold == want.hold then
  -- An offer that nobody has been told of yet counts as new.
  local new = held.claimed == '0' and 1 or 0
  extend(st, held, want.ttl)
  save(st)
  return { st.doubt, 'G', st.seq, held.expires - st.now, st.epoch, new }
end
if st.waiters > 0 and redis.call('HEXISTS', KEYS[3], 't:' .. want.hold) == 1 then
  local place = redis.call('LPOS', KEYS[2], want.hold)
  if place then
    save(st)
    return { st.doubt, 'Q', place + 1 }
  end
end
if is_free(st) and st.waiters == 0 then
  local ttl = grant(st, next_seq(st), want, true)
  save(st)
  return { st.doubt, 'G', st.seq, ttl, st.epoch, 1 }
end
if ARGV[11] ~= '1' then
  save(st)
  return { st.doubt, 'L', next_change_ms(st), st.waiters }
end
if st.waiters >= st.policy.max_waiters then
  for _, hold in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    local ticket = read_ticket(st, hold)
    if not ticket or is_dead(st, ticket.session) then
      redis.call('LREM', KEYS[2], 1, hold)
      forget(st, hold, ticket)
    end
  end
end
if st.waiters >= st.policy.max_waiters then
  save(st)
  return { st.doubt, 'F', st.waiters }
end
local _, tickets = read_beat(st, want.session)
write_beat(st, want.session, st.now, tickets + 1)
redis.call('HSET', KEYS[3], 't:' .. want.hold,
  want.session .. ' ' .. int(want.ttl) .. ' ' .. int(want.max_hold) .. ' ' .. want.holder)
st.waiters = redis.call('RPUSH', KEYS[2], want.hold)
keep_queue(st)
save(st)
return { st.doubt, 'Q', st.waiters }
