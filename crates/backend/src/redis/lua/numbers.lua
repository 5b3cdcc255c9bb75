-- Whole numbers as text. They are below 2^53, because Lua's numbers are doubles. '%d' is several times
-- faster than '%.0f', but goes through a C long, which is too short for them on a 32-bit server.
local formats = {}
-- A format whose every '%d' takes any whole number. Found out when first asked: a library that is
-- being loaded may call nothing.
local function format_of(text)
  local known = formats[text]
  if known then return known end
  local has_longs = string.format('%d', 4294967296) == '4294967296'
  known = has_longs and text or string.gsub(text, '%%d', '%%.0f')
  formats[text] = known
  return known
end
local function int(number)
  return string.format(format_of('%d'), number)
end
