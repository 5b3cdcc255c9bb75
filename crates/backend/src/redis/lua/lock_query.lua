-- Reads the state of a key. Changes nothing, and needs no epoch.
-- KEYS: record, queue, waiters
-- ARGV: 1 how many of the queue to name
-- Returns {seq, epoch, waiters, {holders of the first tickets}}, and when it is held also: holder,
-- what is left in ms, held for ms, hold.
local record = redis.call('GET', KEYS[1])
if not record then return { 0, 0, 0, {} } end
local st = parse_record(record)
st.keys, st.now = KEYS, math.max(store_ms(), st.now)
local names, waiters = {}, 0
if st.waiters > 0 then
  waiters = redis.call('LLEN', KEYS[2])
  for _, hold in ipairs(redis.call('LRANGE', KEYS[2], 0, tonumber(ARGV[1]) - 1)) do
    local ticket = read_ticket(st, hold)
    if ticket then names[#names + 1] = ticket.holder end
  end
end
local held = st.held
if held and st.now < held.expires then
  return {
    st.seq, st.epoch, waiters, names, held.holder, held.expires - st.now, st.now - held.since,
    held.hold,
  }
end
return { st.seq, st.epoch, waiters, names }
