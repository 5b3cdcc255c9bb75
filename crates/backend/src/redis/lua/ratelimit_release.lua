-- Gives back a permit.
-- KEYS: the record
-- ARGV: the token, 2 the permit's name
-- Returns {1} when it was held, else {0}
local st, name, found = rate_begin(KEYS, ARGV), tonumber(ARGV[2]), 0
for i, rule in ipairs(st.policy) do
  if rule.kind == 'c' then
    local slot, kept = st[i], {}
    for n = 1, #slot, 3 do
      if slot[n] == name then
        found = 1
      else
        local k = #kept
        kept[k + 1], kept[k + 2], kept[k + 3] = slot[n], slot[n + 1], slot[n + 2]
      end
    end
    st[i] = kept
  end
end
rate_save(KEYS, st)
return { found }
