-- The parts that all lock transitions share: a transcription of `holdfast_core::lock::state`.
-- Same names, same order of steps; a differential test holds the two together.
--
-- KEYS of every script, all in one hash tag:
--   1 `:l` the record      string, never expires: it keeps the fence
--   2 `:q` the queue       list of hold ids, first come first
--   3 `:w` the waiters     hash: 't:<hold>' -> '<session> <ttl> <max hold> <holder>',
--                                's:<session>' -> '<last beat> <tickets>'
--   4 `:x:<hold>` tombstone of a cancelled hold (acquire, pass on and cancel only): until when, with PX
-- ARGV of every script:
--   1 the marker's key  2 epoch  3 replid  4 's' strict or 'b' best effort  5 policy
--   6 the prefix of the sessions' channels  7… the script's own
-- The marker is read but not declared: it has another hash tag, and a tenant's user may only read
-- it. In a cluster, 3 is ':' and the runs that are trusted: '<replid>:<tag>+<tag>,…'. The marker of
-- a run is in the slots of these tags, which are on the run's own server: a Function may read there
-- what it has not declared. The last of KEYS is then a name that never exists: while a slot is being
-- moved, the server refuses all that names it, and so no transition is carried out in part.
--
-- The record: '<seen> <epoch> <seq> <free at> <waiters> <policy>', and when it is held also
--   ' <hold> <session> <since> <expires> <ttl> <max hold> <claimed> <holder>'.
-- The policy: '<generation>:<min hold>:<lock delay>:<max waiters>:<beat>:<1 = fifo>:<fence floor>'.
--
-- Numbers become text by `numbers.lua` only.

local BEATS_TO_LIVE, REAP_AT_ONCE, TOMB_FACTOR, STEP = 3, 32, 2, 2
local RECORD, HELD = '%d %d %d %d %d %s', ' %s %s %d %d %d %d %s %s'

-- A store sees few policies many times: a Function keeps what it has parsed (a script, which starts
-- anew every time, does not).
local policies, policies_kept = {}, 0

local function parse_policy(token)
  local known = policies[token]
  if known then return known end
  local generation, min_hold, lock_delay, max_waiters, beat, fifo, floor = string.match(
    token, '^(%d+):(%d+):(%d+):(%d+):(%d+):(%d):(%d+)$')
  local policy = {
    token = token, generation = tonumber(generation), min_hold = tonumber(min_hold),
    lock_delay = tonumber(lock_delay), max_waiters = tonumber(max_waiters),
    beat = tonumber(beat), fifo = fifo == '1', floor = tonumber(floor),
  }
  if policies_kept >= 1000 then policies, policies_kept = {}, 0 end
  policies[token], policies_kept = policy, policies_kept + 1
  return policy
end

local function parse_record(record)
  local seen, epoch, seq, free_at, waiters, policy, held = string.match(
    record, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%S+) ?(.*)$')
  local st = {
    now = tonumber(seen), epoch = tonumber(epoch), seq = tonumber(seq),
    free_at = tonumber(free_at), waiters = tonumber(waiters), policy_token = policy,
  }
  if held ~= '' then
    local hold, session, since, expires, ttl, max_hold, claimed, holder = string.match(
      held, '^(%S+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d) (.*)$')
    st.held = {
      hold = hold, session = session, since = tonumber(since), expires = tonumber(expires),
      ttl = tonumber(ttl), max_hold = tonumber(max_hold), claimed = claimed, holder = holder,
    }
  end
  return st
end

-- The marker of this very server, if it is one of the runs that are trusted; in a cluster only. One
-- place whose slot has been moved away is an error, and the next one tells. One that is empty has
-- been lost, with all that was on the server.
local function own_marker(ARGV)
  local own = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  local tags = own and string.match(ARGV[3], own .. ':([%d+]*)')
  if not tags then return nil end
  for tag in string.gmatch(tags, '%d+') do
    local found = redis.pcall('GET', ARGV[1] .. ':{' .. tag .. '}')
    if type(found) == 'string' then return found end
    if not found then return nil end
  end
  return nil
end

local function is_cluster(ARGV)
  return string.sub(ARGV[3], 1, 1) == ':'
end

-- The marker, the record, the tombstone.
local function read_all(KEYS, ARGV, tomb)
  if is_cluster(ARGV) then
    -- Names of two slots cannot be read at once.
    local got = redis.call('MGET', KEYS[1], tomb or KEYS[1])
    return { own_marker(ARGV), got[1], tomb and got[2] }
  end
  if tomb then return redis.call('MGET', ARGV[1], KEYS[1], tomb) end
  return redis.call('MGET', ARGV[1], KEYS[1])
end

-- 0 when the epoch is sure, 1 when it is not and the class goes on all the same, nil when it may not.
-- A new run id of the primary means a restart or a failover: what it has may be older than what was
-- granted. A record of a later epoch means the same of whoever sent the epoch; not so in a cluster,
-- where another server's loss raises the number of all: there the marker may be later, too.
--
-- INFO costs as much as the rest of a transition's reads. A Function therefore remembers for a moment
-- which run it is, once it has written in it: docs/design/0003 says why nothing is missed.
local SURE_MS = 100
local run, run_at = nil, 0
local function doubt_about(ARGV, st, marker, now)
  if is_cluster(ARGV) then
    if marker and tonumber(marker) >= tonumber(ARGV[2]) then return 0 end
  elseif marker == ARGV[2] and st.epoch <= tonumber(ARGV[2]) then
    if run == ARGV[3] and now >= run_at and now < run_at + SURE_MS then return 0 end
    if string.find(redis.call('INFO', 'replication'), 'master_replid:' .. ARGV[3], 1, true) then
      st.run, st.run_at = ARGV[3], now
      return 0
    end
  end
  return ARGV[4] == 'b' and 1 or nil
end

-- The epoch of what is granted now: never below what this key, or this server of a cluster, has seen.
local function epoch_of_grants(ARGV, marker, record_epoch)
  local epoch = math.max(record_epoch, tonumber(ARGV[2]))
  if is_cluster(ARGV) then epoch = math.max(epoch, tonumber(marker or 0)) end
  return epoch
end

local EPOCH_IN_DOUBT = 'EPOCH the epoch of this store is not the one expected'

-- What every transition starts with: the epoch is sure, time goes on, the newest class wins, an
-- expired hold is dropped. Returns nil and an error reply, with no effect, when the epoch is not.
local function begin(KEYS, ARGV)
  local got = read_all(KEYS, ARGV, KEYS[4])
  local st = got[2] and parse_record(got[2])
    or { now = 0, epoch = 0, seq = 0, free_at = 0, waiters = 0 }
  local now = store_ms()
  local doubt = doubt_about(ARGV, st, got[1], now)
  if not doubt then return nil, redis.error_reply(EPOCH_IN_DOUBT) end
  st.grant_epoch = epoch_of_grants(ARGV, got[1], st.epoch)
  st.doubt, st.keys, st.channel = doubt, KEYS, ARGV[6]
  st.now = math.max(now, st.now)
  st.policy = parse_policy(ARGV[5])
  if st.policy_token and st.policy_token ~= ARGV[5] then
    local known = parse_policy(st.policy_token)
    if known.generation > st.policy.generation then st.policy = known end
  end
  local held = st.held
  if held and st.now >= held.expires then
    st.held = nil
    st.free_at = held.expires + st.policy.lock_delay
  end
  st.tombed = got[3] and st.now < tonumber(got[3]) or false
  return st
end

-- The list is the truth: a queue that somebody deleted is empty, whatever the record says. For those
-- that tell the number; who takes from the list sees by itself when it is empty.
local function count_waiters(st)
  if st.waiters > 0 then st.waiters = redis.call('LLEN', st.keys[2]) end
end

-- What every transition that changes something ends with: only a primary can have written.
local function write_record(st, record)
  redis.call('SET', st.keys[1], record)
  if st.run then run, run_at = st.run, st.run_at end
end

local function save(st)
  local record, held = string.format(format_of(RECORD),
    st.now, st.epoch, st.seq, st.free_at, st.waiters, st.policy.token), st.held
  if held then
    record = record .. string.format(format_of(HELD),
      held.hold, held.session, held.since, held.expires, held.ttl, held.max_hold,
      held.claimed, held.holder)
  end
  write_record(st, record)
end

-- Whether a release by force takes the hold with this fence. ARGV: 7 which, 'all', 'one' that has the
-- fence that follows, or 'upto' that one and all older; 8 its seq, 9 its epoch.
local function is_meant(ARGV, seq, epoch)
  local which, of_seq, of_epoch = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
  if which == 'one' then return seq == of_seq and epoch == of_epoch end
  return which == 'all' or epoch < of_epoch or (epoch == of_epoch and seq <= of_seq)
end

local function is_free(st)
  return not st.held and st.now >= st.free_at
end

local function claim_ms(st)
  return BEATS_TO_LIVE * st.policy.beat
end

-- Counts a hold anew from now, never beyond its longest time.
local function extend(st, held, ttl)
  held.expires = st.now + ttl
  if held.max_hold > 0 then held.expires = math.min(held.expires, held.since + held.max_hold) end
  held.claimed = '1'
end

local function next_seq(st)
  return math.max(st.seq + STEP, st.now, st.policy.floor + STEP)
end

local function grant(st, seq, ticket, claimed)
  st.seq, st.epoch = seq, st.grant_epoch
  local held = {
    hold = ticket.hold, session = ticket.session, holder = ticket.holder, since = st.now,
    ttl = ticket.ttl, max_hold = ticket.max_hold,
  }
  extend(st, held, claimed and ticket.ttl or math.min(ticket.ttl, claim_ms(st)))
  held.claimed = claimed and '1' or '0'
  st.held = held
  return held.expires - st.now
end

-- How long until something changes without anybody's doing; a minute when nothing does.
local function next_change_ms(st)
  local at = st.held and st.held.expires or st.free_at
  if at > st.now then return math.min(at - st.now, 60000) end
  return 60000
end

local function read_beat(st, session)
  local beat = redis.call('HGET', st.keys[3], 's:' .. session)
  if not beat then return 0, 0 end
  local at, tickets = string.match(beat, '^(%d+) (%d+)$')
  return tonumber(at), tonumber(tickets)
end

local function write_beat(st, session, at, tickets)
  if tickets > 0 then
    redis.call('HSET', st.keys[3], 's:' .. session, int(at) .. ' ' .. int(tickets))
  else
    redis.call('HDEL', st.keys[3], 's:' .. session)
  end
end

-- Nobody comes to reap a class that nobody uses: the store forgets its waiters in the end.
local function keep_queue(st)
  local ms = int(math.max(60000, 4 * claim_ms(st)))
  redis.call('PEXPIRE', st.keys[2], ms)
  redis.call('PEXPIRE', st.keys[3], ms)
end

-- Notes that a session is alive; how many tickets it has here.
local function note_beat(st, session)
  if st.waiters == 0 then return 0 end
  local _, tickets = read_beat(st, session)
  if tickets > 0 then
    write_beat(st, session, st.now, tickets)
    keep_queue(st)
  end
  return tickets
end

local function is_dead(st, session)
  local at = read_beat(st, session)
  return st.now >= at + claim_ms(st)
end

local function read_ticket(st, hold)
  local text = redis.call('HGET', st.keys[3], 't:' .. hold)
  if not text then return nil end
  local session, ttl, max_hold, holder = string.match(text, '^(%S+) (%d+) (%d+) (.*)$')
  return {
    hold = hold, session = session, ttl = tonumber(ttl), max_hold = tonumber(max_hold),
    holder = holder,
  }
end

-- Forgets the ticket of a hold that has been taken from the list; `at` and `tickets` are its session's
-- beat where it has been read.
local function forget(st, hold, ticket, at, tickets)
  st.waiters = st.waiters - 1
  if ticket and not at then at, tickets = read_beat(st, ticket.session) end
  if tickets == 1 then
    redis.call('HDEL', st.keys[3], 't:' .. hold, 's:' .. ticket.session)
    return
  end
  redis.call('HDEL', st.keys[3], 't:' .. hold)
  if ticket and tickets > 0 then write_beat(st, ticket.session, at, tickets - 1) end
end

-- Takes a ticket out of the queue, wherever it stands.
local function remove(st, hold)
  local ticket = st.waiters > 0 and read_ticket(st, hold)
  if ticket then
    redis.call('LREM', st.keys[2], 1, hold)
    forget(st, hold, ticket)
  end
end

-- Takes back all that a hold has and may get; `tomb` refuses its request should it still arrive.
local function withdraw(st, hold, tomb, ttl)
  if st.held and st.held.hold == hold then st.held = nil end
  remove(st, hold)
  local keep = TOMB_FACTOR * math.max(ttl, claim_ms(st))
  -- The script judges by its own time; the store only collects, later, so that a step of its clock
  -- does not let a late request in.
  redis.call('SET', tomb, int(st.now + keep), 'PX', int(keep + 60000))
end

-- Drops the dead from the head, at most REAP_AT_ONCE, and takes out the first who is alive.
local function pop_live(st)
  for reaped = 0, REAP_AT_ONCE do
    local is_last, hold = reaped == REAP_AT_ONCE
    if is_last then
      hold = redis.call('LINDEX', st.keys[2], 0)
    else
      hold = redis.call('LPOP', st.keys[2])
    end
    if not hold then
      st.waiters = 0
      return nil
    end
    local ticket, at, tickets = read_ticket(st, hold)
    if ticket then at, tickets = read_beat(st, ticket.session) end
    local dead = not ticket or st.now >= at + claim_ms(st)
    if is_last then
      if dead then return nil end
      redis.call('LPOP', st.keys[2])
    end
    forget(st, hold, ticket, at, tickets)
    if not dead then return ticket end
  end
end

-- Whose turn is next, or '' where that is nobody's, or not in the order in which they came.
local function first_in_line(st)
  return st.waiters > 0 and st.policy.fifo and redis.call('LINDEX', st.keys[2], 0) or ''
end

-- What every transition ends with: a free lock goes to the first who is alive. Its session is told,
-- unless the hold is the one that this very transition answers for, or `told` is the session: it
-- learns it from the answer.
local function promote(st, answered, told)
  if st.waiters == 0 or not is_free(st) then return end
  local head = pop_live(st)
  if not head then return end
  local ttl = grant(st, next_seq(st), head, false)
  if head.hold ~= answered and head.session ~= told then
    redis.call('PUBLISH', st.channel .. head.session,
      'g ' .. head.hold .. ' ' .. int(st.seq) .. ' ' .. int(ttl) .. ' ' .. int(st.epoch))
  end
end
