-- Takes holds, tells their sessions, and raises the fence past any given so far.
-- KEYS: the common seven
-- ARGV: the common six, 7 which: 'all', 'one' with the fence that follows, or 'upto' it: that one and
-- all that are older; 8 the fence's seq, 9 its epoch
-- Returns {doubt}, and for every hold that was taken also: holder, seq, epoch, what was left in ms,
-- held for ms, permits.
local st, refused = sem_begin(KEYS, ARGV)
if not st then return refused end
local which, seq, epoch = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local function is_meant(held)
  if which == 'one' then return held.epoch == epoch and held.seq == seq end
  return which == 'all' or held.epoch < epoch or (held.epoch == epoch and held.seq <= seq)
end
local reply = { st.doubt }
for _, hold in ipairs(redis.call('ZRANGE', KEYS[6], 0, -1)) do
  local held = sem_read(st, hold)
  if held and is_meant(held) then
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
