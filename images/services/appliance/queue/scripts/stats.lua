-- Counts for the cluster page and for estimates. Reads only.
-- A        {}
-- result   JSON object; averages and ratios by resolution, numbers are 0 while unknown
local OLDEST_OF = 1000

local waiting, oldest, lines = 0, now, {K.ready}
for _, class in ipairs(redis.call('HKEYS', K.classes)) do lines[#lines + 1] = ready_key(class) end
for _, line in ipairs(lines) do
  waiting = waiting + redis.call('ZCARD', line)
  oldest = math.min(oldest, oldest_in(line, math.max(1, math.floor(OLDEST_OF / #lines))))
end

-- Those that take jobs.
local OUT_OF_SERVICE = {unready = true, stopped = true, draining = true, drained = true, quarantined = true}
local live_workers = 0
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', K.workers, int(now - C.lease_ms), '+inf')) do
  if not OUT_OF_SERVICE[redis.call('HGET', K.w .. worker, 'state')] then live_workers = live_workers + 1 end
end

local stored, totals = redis.call('HGETALL', K.stats), {}
local averages, ratios = {}, {}
for index = 1, #stored, 2 do
  local kind, resolution = string.match(stored[index], '^(%l+):(.+)$')
  local into = kind == 'run' and averages or kind == 'ratio' and ratios or totals
  into[resolution or stored[index]] = tonumber(stored[index + 1])
end

local function object(values) return next(values) and cjson.encode(values) or '{}' end

local counts = cjson.encode({
  waiting = waiting,
  delayed = redis.call('ZCARD', K.delayed),
  running = redis.call('ZCARD', K.lease),
  oldest_waiting_seconds = (now - oldest) / 1000,
  live_workers = live_workers,
  submitted_total = totals.submitted or 0,
  done_total = totals.done or 0,
  dead_total = totals.dead or 0,
  cancelled_total = totals.cancelled or 0,
  replayed_total = totals.replayed or 0,
  average_run_ms = totals.average_run_ms or 0,
  average_ratio = totals.average_ratio or 0,
})
return string.format('{"averages":%s,"ratios":%s,%s', object(averages), object(ratios), string.sub(counts, 2))
