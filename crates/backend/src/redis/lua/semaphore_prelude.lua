-- The parts that all semaphore transitions share: a transcription of
-- `holdfast_core::semaphore::state`, on top of the lock's prelude (beats, epochs, numbers). Same
-- order of steps; a differential test holds the two together.
--
-- KEYS of every script, all in one hash tag:
--   1 `:l` the record, 2 `:q` the queue, 3 `:w` the waiters, as of a lock
--   4 `:h` the holds       hash: 'h:<hold>' -> '<seq> <epoch> <session> <since> <expires> <ttl>
--                                              <max hold> <claimed> <permits> <holder>',
--                                'u:<session>' -> the permits of all its holds
--   5 `:e` when they expire, 6 `:s` their fences: sorted sets of hold ids
--   7 `:o` those offered and not claimed, by fence: a sorted set of hold ids
--   8 `:x:<hold>` tombstone of a cancelled hold (acquire and cancel only)
-- ARGV of every script: the common six of a lock, 7... the script's own
--
-- The record: '<seen> <epoch> <seq> <permits in use> <waiters> <policy>'; it never expires.
-- The policy: '<generation>:<permits>:<max per holder>:<max waiters>:<beat>:<1 = fifo>:<fence floor>'.
-- A ticket: 't:<hold>' -> '<permits> <session> <ttl> <max hold> <holder>' in the waiters.
local SEM_HELD = '%d %d %s %d %d %d %d %s %d %s'
local sem_policies, sem_policies_kept = {}, 0

local function sem_policy(token)
  local known = sem_policies[token]
  if known then return known end
  local generation, permits, max, max_waiters, beat, fifo, floor = string.match(
    token, '^(%d+):(%d+):(%d+):(%d+):(%d+):(%d):(%d+)$')
  local policy = {
    token = token, generation = tonumber(generation), permits = tonumber(permits),
    max = tonumber(max), max_waiters = tonumber(max_waiters), beat = tonumber(beat),
    fifo = fifo == '1', floor = tonumber(floor),
  }
  -- The most that one hold can ever have.
  policy.most = policy.max > 0 and math.min(policy.permits, policy.max) or policy.permits
  if sem_policies_kept >= 1000 then sem_policies, sem_policies_kept = {}, 0 end
  sem_policies[token], sem_policies_kept = policy, sem_policies_kept + 1
  return policy
end

local function sem_parse(record)
  local seen, epoch, seq, used, waiters, policy = string.match(
    record, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%S+)$')
  return {
    now = tonumber(seen), epoch = tonumber(epoch), seq = tonumber(seq), used = tonumber(used),
    waiters = tonumber(waiters), policy_token = policy,
  }
end

local function sem_read(st, hold)
  local text = redis.call('HGET', st.keys[4], 'h:' .. hold)
  if not text then return nil end
  local seq, epoch, session, since, expires, ttl, max_hold, claimed, permits, holder = string.match(
    text, '^(%d+) (%d+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d) (%d+) (.*)$')
  return {
    hold = hold, seq = tonumber(seq), epoch = tonumber(epoch), session = session,
    since = tonumber(since), expires = tonumber(expires), ttl = tonumber(ttl),
    max_hold = tonumber(max_hold), claimed = claimed, permits = tonumber(permits), holder = holder,
  }
end

-- The permits that a session has.
local function sem_share(st, session)
  return tonumber(redis.call('HGET', st.keys[4], 'u:' .. session) or 0)
end

local function sem_set_share(st, session, permits)
  if permits > 0 then
    redis.call('HSET', st.keys[4], 'u:' .. session, int(permits))
  else
    redis.call('HDEL', st.keys[4], 'u:' .. session)
  end
end

-- Writes a hold that is there. Nobody may come to reap it: the store forgets it in the end.
local function sem_write(st, held)
  redis.call('HSET', st.keys[4], 'h:' .. held.hold, string.format(
    format_of(SEM_HELD), held.seq, held.epoch, held.session, held.since,
    held.expires, held.ttl, held.max_hold, held.claimed, held.permits, held.holder))
  redis.call('ZADD', st.keys[5], int(held.expires), held.hold)
  local last = redis.call('ZRANGE', st.keys[5], -1, -1, 'WITHSCORES')
  local ms = int(math.max(tonumber(last[2]) - st.now, 0) + 60000)
  for key = 4, 7 do redis.call('PEXPIRE', st.keys[key], ms) end
end

-- Takes a hold away.
local function sem_drop(st, held)
  redis.call('HDEL', st.keys[4], 'h:' .. held.hold)
  for key = 5, 7 do redis.call('ZREM', st.keys[key], held.hold) end
  sem_set_share(st, held.session, sem_share(st, held.session) - held.permits)
  st.used = math.max(st.used - held.permits, 0)
end

-- Counts a hold anew from now, and claims it.
local function sem_extend(st, held, ttl)
  if held.claimed == '0' then redis.call('ZREM', st.keys[7], held.hold) end
  extend(st, held, ttl)
  sem_write(st, held)
end

-- The holds whose time has come.
local function sem_expired(st)
  return redis.call('ZRANGE', st.keys[5], '-inf', int(st.now), 'BYSCORE')
end

-- What every transition starts with, as `begin` of a lock.
local function sem_begin(KEYS, ARGV)
  local got = read_all(KEYS, ARGV, KEYS[8])
  local st = got[2] and sem_parse(got[2]) or { now = 0, epoch = 0, seq = 0, used = 0, waiters = 0 }
  local now = store_ms()
  local doubt = doubt_about(ARGV, st, got[1], now)
  if not doubt then return nil, redis.error_reply(EPOCH_IN_DOUBT) end
  st.grant_epoch = epoch_of_grants(ARGV, got[1], st.epoch)
  st.doubt, st.keys, st.channel = doubt, KEYS, ARGV[6]
  st.now = math.max(now, st.now)
  st.policy = sem_policy(ARGV[5])
  if st.policy_token and st.policy_token ~= ARGV[5] then
    local known = sem_policy(st.policy_token)
    if known.generation > st.policy.generation then st.policy = known end
  end
  if st.used > 0 then
    for _, hold in ipairs(sem_expired(st)) do
      local held = sem_read(st, hold)
      if held then sem_drop(st, held) end
    end
    -- The holds are the truth: those that somebody deleted are gone, whatever the record says.
    if redis.call('ZCARD', KEYS[5]) == 0 then st.used = 0 end
  end
  count_waiters(st)
  st.tombed = got[3] and st.now < tonumber(got[3]) or false
  return st
end

local function sem_save(st)
  write_record(st, string.format(format_of(RECORD),
    st.now, st.epoch, st.seq, st.used, st.waiters, st.policy.token))
end

-- Permits that nobody has; none while more are out than a shrunken class has.
local function sem_free(st)
  return math.max(st.policy.permits - st.used, 0)
end

-- Whether the grant would give its session more than its share.
local function sem_is_capped(st, want)
  return st.policy.max > 0 and sem_share(st, want.session) + want.permits > st.policy.max
end

local function sem_grant(st, ticket, claimed)
  st.seq = math.max(st.seq + 1, st.now, st.policy.floor + 1)
  st.epoch = st.grant_epoch
  local held = {
    hold = ticket.hold, session = ticket.session, holder = ticket.holder, since = st.now,
    ttl = ticket.ttl, max_hold = ticket.max_hold, permits = ticket.permits, seq = st.seq,
    epoch = st.epoch,
  }
  extend(st, held, claimed and ticket.ttl or math.min(ticket.ttl, claim_ms(st)))
  held.claimed = claimed and '1' or '0'
  st.used = st.used + held.permits
  sem_set_share(st, held.session, sem_share(st, held.session) + held.permits)
  redis.call('ZADD', st.keys[6], int(held.seq), held.hold)
  if not claimed then redis.call('ZADD', st.keys[7], int(held.seq), held.hold) end
  sem_write(st, held)
  return held.expires - st.now
end

-- How long until something changes without anybody's doing; a minute when nothing does.
local function sem_next_change_ms(st)
  local first = redis.call('ZRANGE', st.keys[5], 0, 0, 'WITHSCORES')
  return first[2] and math.min(tonumber(first[2]) - st.now, 60000) or 60000
end

local function sem_ticket(st, hold)
  local text = redis.call('HGET', st.keys[3], 't:' .. hold)
  if not text then return nil end
  local permits, session, ttl, max_hold, holder = string.match(
    text, '^(%d+) (%S+) (%d+) (%d+) (.*)$')
  return {
    hold = hold, permits = tonumber(permits), session = session, ttl = tonumber(ttl),
    max_hold = tonumber(max_hold), holder = holder,
  }
end

-- Takes a ticket out of the queue, wherever it stands; whether it was there.
local function sem_remove(st, hold)
  local ticket = st.waiters > 0 and sem_ticket(st, hold)
  if not ticket then return false end
  redis.call('LREM', st.keys[2], 1, hold)
  forget(st, hold, ticket)
  return true
end

-- What every transition ends with: grants to those whose turn has come. The first who does not fit
-- stops those behind it, unless the class has no order; who has its own session's share stops its own
-- session only. Sessions are told, unless the hold is the one that this transition answers for.
local function sem_promote(st, answered)
  local passed, at, reaped = {}, 0, 0
  while st.waiters > 0 and sem_free(st) > 0 do
    local hold = redis.call('LINDEX', st.keys[2], at)
    if not hold then break end
    local ticket = sem_ticket(st, hold)
    if not ticket or is_dead(st, ticket.session) then
      if reaped == REAP_AT_ONCE then break end
      reaped = reaped + 1
      redis.call('LREM', st.keys[2], 1, hold)
      forget(st, hold, ticket)
    elseif ticket.permits > st.policy.most then
      redis.call('LREM', st.keys[2], 1, hold)
      forget(st, hold, ticket)
    elseif passed[ticket.session] then
      at = at + 1
    elseif sem_is_capped(st, ticket) then
      passed[ticket.session] = true
      at = at + 1
    elseif ticket.permits <= sem_free(st) then
      redis.call('LREM', st.keys[2], 1, hold)
      forget(st, hold, ticket)
      local ttl = sem_grant(st, ticket, false)
      if hold ~= answered then
        redis.call('PUBLISH', st.channel .. ticket.session,
          'g ' .. hold .. ' ' .. int(st.seq) .. ' ' .. int(ttl) .. ' ' .. int(st.epoch))
      end
    elseif not st.policy.fifo then
      at = at + 1
    else
      break
    end
  end
end

-- Whether nobody waits whom a newcomer would overtake: those who wait for their own session's share
-- are not overtaken by others.
local function sem_is_next(st, session)
  if not st.policy.fifo or st.waiters == 0 then return true end
  local _, tickets = read_beat(st, session)
  if tickets > 0 or st.policy.max == 0 then return false end
  local stopped = {}
  for _, hold in ipairs(redis.call('LRANGE', st.keys[2], 0, -1)) do
    local ticket = sem_ticket(st, hold)
    if ticket and not stopped[ticket.session] then
      -- The first of its session.
      if not sem_is_capped(st, ticket) then return false end
      stopped[ticket.session] = true
    end
  end
  return true
end
