-- Prepended to every script, after counting.lua: from the lines of K.tally to the sums. Lines that nobody knows, and
-- sums that cannot be written, are passed by.
local LABELS_LIMIT = 24

-- A value as a label, while there is room: what users send must not make series without end.
local function known_label(kind, value)
  if not value or value == '' then return 'other' end
  local key = K.labels .. kind
  if redis.pcall('SISMEMBER', key, value) == 1 then return value end
  local known = redis.pcall('SCARD', key)
  if type(known) ~= 'number' or known >= LABELS_LIMIT then return 'other' end
  redis.pcall('SADD', key, value)
  return value
end

local function spread_bound(ms)
  for _, seconds in ipairs(C.bounds) do
    if ms <= 1000 * seconds then return seconds end
  end
  return 'more'
end

-- K.rates, from the exporters: worker -> "<USD per hour, or 0> <GPU model>".
local function rate_of(worker)
  local rate = redis.pcall('HGET', K.rates, worker)
  local usd, model = string.match(type(rate) == 'string' and rate or '', '^(%S+) (.+)$')
  return {usd = tonumber(usd) or 0, model = known_label('gpu', model)}
end

-- The values of a function of one argument, each found once.
local function once(find)
  local found = {}
  return function(value)
    if not found[value] then found[value] = find(value) end
    return found[value]
  end
end

-- Adds what one line says to the sums, by host and field. `label` and `rate` are once() of the functions above.
local function add_line(sums, line, label, rate)
  local parts = {}
  for part in string.gmatch(line .. '\t', '(.-)\t') do parts[#parts + 1] = part end
  local kind, worker, size = parts[1], parts[2], label.size(parts[3])
  local host = string.match(worker, '^(.+)/')
  if not host then return end
  local sum = sums[host] or {}
  sums[host] = sum
  local function add(by, ...)
    local field = table.concat({...}, '\t')
    sum[field] = (sum[field] or 0) + tonumber(by)
  end
  local function add_spread(name, ms)
    add(1, name, size, spread_bound(tonumber(ms)))
    add(ms, name, size, 'sum')
  end
  local function add_gpu(ms)
    add(ms, 'gpu', size, rate(worker).model)
    local cost = tonumber(ms) * rate(worker).usd * 1e9 / 3600000
    if cost > 0 then add(math.floor(cost), 'cost', size) end
  end
  if kind == 'wait' then
    add_spread('wait', parts[4])
  elseif kind == 'done' then
    add_gpu(parts[4])
    if parts[5] ~= '' then add_spread('took', parts[5]) end
    if parts[6] ~= '' then add(parts[6], 'video', size) end
    add(1, 'done', size, label.model(parts[7]))
  elseif kind == 'end' then
    add_gpu(parts[4])
    if parts[5] ~= '' then add(1, 'failed', parts[5], size) end
  elseif kind == 'late' then
    add(1, 'failed', 'TIMEOUT', size)
  end
end

local TALLY_LIMIT = 1000  -- lines a call

local function add_up()
  local lines = redis.pcall('LPOP', K.tally, TALLY_LIMIT)
  if type(lines) ~= 'table' or lines.err then return end
  local sums, rate = {}, once(rate_of)
  local label = {
    size = once(function(size) return known_label('size', size) end),
    model = once(function(model) return known_label('model', model) end),
  }
  -- A line that breaks off in the middle must not take the others with it.
  for _, line in ipairs(lines) do pcall(add_line, sums, line, label, rate) end
  for host, sum in pairs(sums) do
    for field, by in pairs(sum) do redis.pcall('HINCRBY', K.counts .. host, field, int(by)) end
  end
end
