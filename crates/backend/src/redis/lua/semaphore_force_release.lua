-- Takes the hold with a fence, or all of them, tells their sessions, and raises the fence past any
-- given so far.
-- KEYS: the common seven
-- ARGV: the common six, 7 the fence's seq, or '' for all, 8 its epoch
-- Returns {doubt}, and for every hold that was taken also: holder, seq, epoch, what was left in ms,
-- held for ms, permits.
local st, refused = sem_begin(KEYS, ARGV)
if not st then return refused end
local holds, reply
if ARGV[7] == '' then
  holds = redis.call('ZRANGE', KEYS[6], 0, -1)
else
  holds = redis.call('ZRANGE', KEYS[6], ARGV[7], ARGV[7], 'BYSCORE')
end
reply = { st.doubt }
for _, hold in ipairs(holds) do
  local held = sem_read(st, hold)
  if held and (ARGV[7] == '' or held.epoch == tonumber(ARGV[8])) then
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
