-- The parts that all rate-limit transitions share: a transcription of `holdfast_core::ratelimit`.
-- Same rules, same order of steps; a differential test holds the two together.
--
-- KEYS of every script: 1 `:r` the record, a string that ends with what it says (PX)
-- ARGV of every script: 1 the policy's token, 2… the script's own
-- The record: '<token> <last us> <numbers…>', per rule and by its letter:
--   t level | s start previous current | f start count | c how many, then name cost expires of each
-- The token: '<generation>' and per rule ';t,<unit>,<drain>,<burst>', ';s,<limit>,<window us>,0',
--   ';f,<limit>,<window us>,0' or ';c,<limit>,<ttl us>,0'.
-- Numbers become text by `numbers.lua` only.
local rate_policies, rate_policies_kept = {}, 0

local function rate_policy(token)
  local known = rate_policies[token]
  if known then return known end
  local policy = { token = token, generation = tonumber(string.match(token, '^-?%d+')) }
  for kind, a, b, c in string.gmatch(token, ';(%a),(%d+),(%d+),(%d+)') do
    a, b, c = tonumber(a), tonumber(b), tonumber(c)
    local full = a
    if kind == 't' then full = c end
    policy[#policy + 1] = { kind = kind, a = a, b = b, c = c, capacity = full, name = kind .. a .. ',' .. b .. ',' .. c }
  end
  if rate_policies_kept >= 1000 then rate_policies, rate_policies_kept = {}, 0 end
  rate_policies[token], rate_policies_kept = policy, rate_policies_kept + 1
  return policy
end

local function rate_new(rule, now, spent)
  spent = math.min(spent, rule.capacity)
  if rule.kind == 't' then return { spent * rule.a } end
  if rule.kind == 's' then return { now - now % rule.b, 0, spent } end
  if rule.kind == 'f' then return { now - now % rule.b, spent } end
  return {}
end

-- A sliding window's last count, as far as it still weighs.
local function rate_carried(previous, left, window)
  if previous == 0 then return 0 end
  local share = math.ceil(math.ceil(left / 1000) * 1000000 / (window / 1000))
  return math.ceil(previous * share / 1000000)
end

local function rate_left_for(count, room, window)
  if count <= room then return window end
  return math.floor(math.floor(room * 1000000 / count) * (window / 1000) / 1000000) * 1000
end

local function rate_left(slot, window, now)
  return math.min(math.max(slot[1] + window - now, 0), window)
end

-- Lets time pass.
local function rate_roll(slot, rule, last, now)
  local kind = rule.kind
  if kind == 't' then
    slot[1] = math.max(slot[1] - (now - last) * rule.b, 0)
  elseif kind == 'c' then
    local kept = {}
    for i = 1, #slot, 3 do
      if slot[i + 2] > now then
        local n = #kept
        kept[n + 1], kept[n + 2], kept[n + 3] = slot[i], slot[i + 1], slot[i + 2]
      end
    end
    return kept
  else
    local begun = now - now % rule.b
    if begun > slot[1] then
      if kind == 'f' then return { begun, 0 } end
      return { begun, begun == slot[1] + rule.b and slot[3] or 0, 0 }
    end
  end
  return slot
end

-- What is left, when all of it is back, after how long this would fit.
local function rate_judge(slot, rule, now, cost)
  local kind = rule.kind
  if kind == 't' then
    local level, full = slot[1], rule.c * rule.a
    return math.floor(math.max(full - level, 0) / rule.a), math.ceil(level / rule.b),
      math.ceil(math.max(level + cost * rule.a - full, 0) / rule.b)
  elseif kind == 'f' then
    local left, wait = math.max(slot[1] + rule.b - now, 0), 0
    if slot[2] + cost > rule.a then wait = math.max(left, 1) end
    return math.max(rule.a - slot[2], 0), left, wait
  elseif kind == 's' then
    local limit, window, left = rule.a, rule.b, rate_left(slot, rule.b, now)
    local used, wait = rate_carried(slot[2], left, window) + slot[3], 0
    if used + cost > limit then
      if slot[3] + cost <= limit then
        wait = math.max(left - rate_left_for(slot[2], limit - cost - slot[3], window), 1)
      else
        wait = left + window - rate_left_for(slot[3], limit - cost, window)
      end
    end
    return math.max(limit - used, 0), left, wait
  end
  local used, first, freed, wait = 0, 0, 0, 0
  for i = 1, #slot, 3 do used = used + slot[i + 1] end
  for i = 1, #slot, 3 do
    local left = math.max(slot[i + 2] - now, 1)
    if first == 0 then first = left end
    if used + cost > rule.a + freed then
      freed, wait = freed + slot[i + 1], left
    end
  end
  return math.max(rule.a - used, 0), first, wait
end

-- What was spent and is not back yet.
local function rate_spent(slot, rule, now)
  if rule.kind == 't' then return math.ceil(slot[1] / rule.a) end
  if rule.kind == 'f' then return slot[2] end
  if rule.kind == 's' then
    return rate_carried(slot[2], rate_left(slot, rule.b, now), rule.b) + slot[3]
  end
  return 0
end

local function rate_ends(slot, rule, now)
  if rule.kind == 't' then return math.ceil(slot[1] / rule.b) end
  if rule.kind == 'f' then return math.max(slot[1] + rule.b - now, 0) end
  if rule.kind == 's' then return math.max(slot[1] + 2 * rule.b - now, 0) end
  return #slot > 0 and math.max(slot[#slot] - now, 0) or 0
end

local rate_sizes = { t = 1, s = 3, f = 2 }

local function rate_parse(text)
  local numbers = string.gmatch(text, '%S+')
  local st = { policy = rate_policy(numbers()), last = tonumber(numbers()) }
  for i, rule in ipairs(st.policy) do
    local slot, size = {}, rate_sizes[rule.kind] or 3 * tonumber(numbers())
    for n = 1, size do slot[n] = tonumber(numbers()) end
    st[i] = slot
  end
  return st
end

-- What every transition starts with: time goes on, never back, and the newest class wins.
local function rate_begin(KEYS, ARGV)
  local text, now = redis.call('GET', KEYS[1]), store_us()
  local policy = rate_policy(ARGV[1])
  if not text then
    local st = { policy = policy, last = now, same = true }
    for i, rule in ipairs(policy) do st[i] = rate_new(rule, now, 0) end
    return st
  end
  local st = rate_parse(text)
  now = math.max(now, st.last)
  local old = st.policy
  for i, rule in ipairs(old) do st[i] = rate_roll(st[i], rule, st.last, now) end
  st.last, st.same = now, old == policy
  if old ~= policy and policy.generation >= old.generation then
    local fresh = { policy = policy, last = now }
    for i, rule in ipairs(policy) do
      local was = old[i]
      if not was then
        fresh[i] = rate_new(rule, now, 0)
      elseif was.name == rule.name or (was.kind == 'c' and rule.kind == 'c') then
        fresh[i] = st[i]
      else
        fresh[i] = rate_new(rule, now, rate_spent(st[i], was, now))
      end
    end
    return fresh
  end
  return st
end

local function rate_save(KEYS, st)
  local text, ends = { st.policy.token, int(st.last) }, 0
  for i, rule in ipairs(st.policy) do
    local slot = st[i]
    ends = math.max(ends, rate_ends(slot, rule, st.last))
    if rule.kind == 'c' then text[#text + 1] = tostring(#slot / 3) end
    for n = 1, #slot do text[#text + 1] = int(slot[n]) end
  end
  redis.call('SET', KEYS[1], table.concat(text, ' '), 'PX', math.max(math.ceil(ends / 1000), 1))
end
