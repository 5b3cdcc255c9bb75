-- Gives back what was taken and not used, as far as it still counts.
-- KEYS: the record
-- ARGV: the token, 2 how much, 3 when it was charged, us
-- Returns {1}, or {0} when the class has changed since
local st, amount, at, now = rate_begin(KEYS, ARGV), tonumber(ARGV[2]), tonumber(ARGV[3]), 0
now = st.last
if not st.same then
  rate_save(KEYS, st)
  return { 0 }
end
for i, rule in ipairs(st.policy) do
  local slot = st[i]
  if rule.kind == 't' then
    local gone = math.max(now - at, 0) * rule.b
    slot[1] = math.max(slot[1] - math.max(amount * rule.a - gone, 0), 0)
  elseif rule.kind ~= 'c' and slot[1] <= at then
    slot[#slot] = math.max(slot[#slot] - amount, 0)
  end
end
rate_save(KEYS, st)
return { 1 }
