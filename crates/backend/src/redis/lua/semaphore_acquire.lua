-- Grants, queues, or refuses.
-- KEYS: the common seven, 8 tombstone of the hold
-- ARGV: the common six, 7 hold, 8 session, 9 ttl ms, 10 max hold ms, 11 '1' to queue, 12 permits,
--   13 holder
-- Returns {doubt, ...}: 'G', seq, ttl ms, epoch, 1 if nobody knows of it yet | 'Q', position
--                     | 'L', retry ms, waiters | 'F', waiters | 'M', the most permits | 'C'
local st, refused = sem_begin(KEYS, ARGV)
if not st then return refused end
local want = {
  hold = ARGV[7], session = ARGV[8], ttl = tonumber(ARGV[9]), max_hold = tonumber(ARGV[10]),
  permits = tonumber(ARGV[12]), holder = ARGV[13],
}
if st.tombed then
  sem_promote(st)
  sem_save(st)
  return { st.doubt, 'C' }
end
-- Who asks is alive: its tickets must not be dropped as dead in this very step.
note_beat(st, want.session)
-- Whoever waits goes first; a newcomer gets what is left.
sem_promote(st, want.hold)
local held = sem_read(st, want.hold)
if held then
  -- The same request again. An offer that nobody has been told of yet counts as new.
  local new = held.claimed == '0' and 1 or 0
  sem_extend(st, held, want.ttl)
  sem_save(st)
  return { st.doubt, 'G', held.seq, held.expires - st.now, held.epoch, new }
end
if want.permits > st.policy.most then
  -- It may have fitted when it was queued; those behind it need not wait for it.
  if sem_remove(st, want.hold) then sem_promote(st) end
  sem_save(st)
  return { st.doubt, 'M', st.policy.most }
end
if st.waiters > 0 and redis.call('HEXISTS', KEYS[3], 't:' .. want.hold) == 1 then
  local place = redis.call('LPOS', KEYS[2], want.hold)
  if place then
    sem_save(st)
    return { st.doubt, 'Q', place + 1 }
  end
end
if want.permits <= sem_free(st) and not sem_is_capped(st, want) and sem_is_next(st, want.session) then
  local ttl = sem_grant(st, want, true)
  sem_save(st)
  return { st.doubt, 'G', st.seq, ttl, st.epoch, 1 }
end
if ARGV[11] ~= '1' then
  sem_save(st)
  return { st.doubt, 'L', sem_next_change_ms(st), st.waiters }
end
if st.waiters >= st.policy.max_waiters then
  for _, hold in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    local ticket = sem_ticket(st, hold)
    if not ticket or is_dead(st, ticket.session) then
      redis.call('LREM', KEYS[2], 1, hold)
      forget(st, hold, ticket)
    end
  end
end
if st.waiters >= st.policy.max_waiters then
  sem_save(st)
  return { st.doubt, 'F', st.waiters }
end
local _, tickets = read_beat(st, want.session)
write_beat(st, want.session, st.now, tickets + 1)
redis.call('HSET', KEYS[3], 't:' .. want.hold, int(want.permits) .. ' ' .. want.session .. ' '
  .. int(want.ttl) .. ' ' .. int(want.max_hold) .. ' ' .. want.holder)
st.waiters = redis.call('RPUSH', KEYS[2], want.hold)
keep_queue(st)
sem_save(st)
return { st.doubt, 'Q', st.waiters }
