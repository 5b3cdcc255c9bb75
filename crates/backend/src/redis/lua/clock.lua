-- The store's clock in milliseconds. Kept apart so that tests can put another one in its place.
local function store_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
-- The same in microseconds.
local function store_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
