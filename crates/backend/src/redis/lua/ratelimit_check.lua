-- Decides, and charges all limits or none.
-- KEYS: the record
-- ARGV: the token, 2 cost, 3 'e' to charge or 'p' to look, 4 longest wait us, 5 the permit's name,
--   6 absent, or less than the cost: charges what there is, but at least so much
-- Returns {1 allowed | 0 limited | -1 too large, wait us, with a 6th argument what was charged and
--   when, then per limit: left, reset us, wait us (after a charge with a 6th argument: for as much
--   as that once more)}
local st = rate_begin(KEYS, ARGV)
local now, policy = st.last, st.policy
local cost, max_wait, least = tonumber(ARGV[2]), tonumber(ARGV[4]), ARGV[6]
local reply, base, too_large, refused, longest = { 1, 0 }, 0, false, false, 0
if least then
  local room = cost
  for i, rule in ipairs(policy) do room = math.min(room, (rate_judge(st[i], rule, now, 0))) end
  cost, base, reply[3], reply[4] = math.max(room, tonumber(least)), 2, 0, 0
end
for i, rule in ipairs(policy) do
  local at = base + 3 * i
  if cost > rule.capacity then
    too_large = true
    reply[at], reply[at + 1], reply[at + 2] = rate_judge(st[i], rule, now, 0)
  else
    local left, reset, wait = rate_judge(st[i], rule, now, cost)
    reply[at], reply[at + 1], reply[at + 2] = left, reset, wait
    if wait > (rule.kind == 't' and max_wait or 0) then refused = true end
    longest = math.max(longest, wait)
  end
end
reply[2] = longest
if too_large then
  reply[1] = -1
elseif refused then
  reply[1] = 0
elseif ARGV[3] == 'e' then
  if least then reply[3], reply[4] = cost, now end
  for i, rule in ipairs(policy) do
    local slot, kind = st[i], rule.kind
    if kind == 't' then
      slot[1] = slot[1] + cost * rule.a
    elseif kind == 'c' then
      local n = #slot
      slot[n + 1], slot[n + 2], slot[n + 3] = tonumber(ARGV[5]), cost, now + rule.b
    else
      slot[#slot] = slot[#slot] + cost
    end
    local at, left, reset, wait = base + 3 * i, rate_judge(slot, rule, now, tonumber(least or 0))
    reply[at], reply[at + 1] = left, reset
    -- Who is content with less wants to know when there is more.
    if least then reply[at + 2] = wait end
  end
end
if ARGV[3] == 'e' then rate_save(KEYS, st) end
return reply
