-- Counts for the cluster page and for estimates. Reads only.
-- A        {classes, live_ms (a worker seen within this is alive)}
-- result   JSON object of numbers; average_run_ms is 0 while unknown
local waiting, oldest = 0, now
for _, class in ipairs(A.classes) do
  local ids = redis.call('ZRANGE', ready_key(class), 0, 999)
  waiting = waiting + redis.call('ZCARD', ready_key(class))
  for _, id in ipairs(ids) do
    oldest = math.min(oldest, tonumber(redis.call('HGET', K.j .. id, 'created') or now))
  end
end
local totals = redis.call('HMGET', K.stats, 'submitted', 'done', 'dead', 'cancelled', 'average_run_ms')
return cjson.encode({
  waiting = waiting,
  delayed = redis.call('ZCARD', K.delayed),
  running = redis.call('ZCARD', K.lease),
  oldest_waiting_seconds = (now - oldest) / 1000,
  live_workers = redis.call('ZCOUNT', K.workers, int(now - A.live_ms), '+inf'),
  submitted_total = tonumber(totals[1] or 0),
  done_total = tonumber(totals[2] or 0),
  dead_total = tonumber(totals[3] or 0),
  cancelled_total = tonumber(totals[4] or 0),
  average_run_ms = tonumber(totals[5] or 0),
})
