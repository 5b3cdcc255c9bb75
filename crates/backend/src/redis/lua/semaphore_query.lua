-- Reads the state of a key. Changes nothing, and needs no epoch.
-- KEYS: the common seven
-- ARGV: 1 how many of the queue to name, 2 how many holders
-- Returns {seq, epoch, waiters, {holders of the first tickets}, holds, permits in use}, and for the
-- oldest holds also: holder, seq, epoch, what is left in ms, held for ms, permits.
local record = redis.call('GET', KEYS[1])
if not record then return { 0, 0, 0, {}, 0, 0 } end
local st = sem_parse(record)
st.keys, st.now = KEYS, math.max(store_ms(), st.now)
local names, waiters = {}, 0
if st.waiters > 0 then
  waiters = redis.call('LLEN', KEYS[2])
  for _, hold in ipairs(redis.call('LRANGE', KEYS[2], 0, tonumber(ARGV[1]) - 1)) do
    local ticket = sem_ticket(st, hold)
    if ticket then names[#names + 1] = ticket.holder end
  end
end
local holds, used, gone = redis.call('ZCARD', KEYS[5]), st.used, {}
for _, hold in ipairs(sem_expired(st)) do
  local held = sem_read(st, hold)
  holds, gone[hold] = holds - 1, true
  if held then used = used - held.permits end
end
if holds == 0 then used = 0 end
local reply, named, at = { st.seq, st.epoch, waiters, names, holds, used }, 0, 0
while named < math.min(holds, tonumber(ARGV[2])) do
  local hold = redis.call('ZRANGE', KEYS[6], at, at)[1]
  if not hold then break end
  at = at + 1
  local held = not gone[hold] and sem_read(st, hold)
  if held then
    named = named + 1
    for _, value in ipairs({
      held.holder, held.seq, held.epoch, held.expires - st.now, st.now - held.since, held.permits,
    }) do
      reply[#reply + 1] = value
    end
  end
end
return reply
