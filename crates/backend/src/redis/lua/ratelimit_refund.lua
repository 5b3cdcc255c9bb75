-- Gives back what a check charged.
-- KEYS: the record
-- ARGV: the token, 2 cost
-- Returns {1}
local st, cost = rate_begin(KEYS, ARGV), tonumber(ARGV[2])
for i, rule in ipairs(st.policy) do
  local slot = st[i]
  if rule.kind == 't' then
    slot[1] = math.max(slot[1] - cost * rule.a, 0)
  elseif rule.kind ~= 'c' then
    slot[#slot] = math.max(slot[#slot] - cost, 0)
  end
end
rate_save(KEYS, st)
return { 1 }
