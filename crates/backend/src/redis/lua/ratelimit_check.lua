-- Decides, and charges all limits or none.
-- KEYS: the record
-- ARGV: the token, 2 cost, 3 'e' to charge or 'p' to look, 4 longest wait us, 5 the permit's name
-- Returns {1 allowed | 0 limited | -1 too large, wait us, then per limit: left, reset us, wait us}
local st = rate_begin(KEYS, ARGV)
local now, policy = st.last, st.policy
local cost, max_wait = tonumber(ARGV[2]), tonumber(ARGV[4])
local reply, too_large, refused, longest = { 1, 0 }, false, false, 0
for i, rule in ipairs(policy) do
  local at = 3 * i
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
    reply[3 * i], reply[3 * i + 1] = rate_judge(slot, rule, now, 0)
  end
end
if ARGV[3] == 'e' then rate_save(KEYS, st) end
return reply
