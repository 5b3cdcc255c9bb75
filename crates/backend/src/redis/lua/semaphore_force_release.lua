-- Takes the holds that are meant, tells their sessions, and raises the fence past any given so far.
-- KEYS: the common seven
-- ARGV: the common six, 7 to 9 which holds are meant
-- Returns {doubt}, and for every hold that was taken also: holder, seq, epoch, what was left in ms,
-- held for ms, permits.
local st, refused = sem_begin(KEYS, ARGV)
if not st then return refused end
local holds
if ARGV[7] == 'one' then
  holds = redis.call('ZRANGE', KEYS[6], ARGV[8], ARGV[8], 'BYSCORE')
else
  holds = redis.call('ZRANGE', KEYS[6], 0, -1)
end
local reply = { st.doubt }
for _, hold in ipairs(holds) do
  local held = sem_read(st, hold)
  if held and is_meant(ARGV, held.seq, held.epoch) then
    sem_drop(st, held)
    redis.call('PUBLISH', st.channel .. held.session, 'l ' .. hold)
    for _, value in ipairs({
      held.holder, held.seq, held.epoch, held.expires - st.now, st.now - held.since, held.permits,
    }) do
      reply[#reply + 1] = value
    end
  end
end
if #reply > 1 then st.seq = st.seq + 1 end
sem_promote(st)
sem_save(st)
return reply
