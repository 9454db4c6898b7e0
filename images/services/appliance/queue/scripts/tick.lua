-- The housekeeping that every api replica runs: grace, promotion, reaping, deadlines, retention.
-- A        {} (the queue settings only)
-- result   JSON {grace, promoted, reaped, removed, outcomes}
local function expire_deadlines()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.deadline, '-inf', int(now), 'LIMIT', 0, 100)) do
    local job = get(id, 'state', 'class')
    -- A running job's agent watches the deadline itself; if it is requeued instead, claim looks again.
    if job[1] == 'queued' or job[1] == 'delayed' then expire_waiting(id, job[1], job[2]) end
    redis.call('ZREM', K.deadline, id)
  end
end

local function remove_old()
  local limit = int(now - A.retention_ms)
  local old = redis.call('ZRANGEBYSCORE', K.done, '-inf', limit, 'LIMIT', 0, 100)
  for _, id in ipairs(old) do
    local user = redis.call('HGET', K.j .. id, 'user') or ''
    redis.call('DEL', K.j .. id, K.p .. id, K.jev .. id)
    redis.call('ZREM', K.done, id)
    redis.call('ZREM', K.all, id)
    redis.call('ZREM', K.ujobs .. user, id)
  end
  redis.call('XTRIM', K.dead, 'MINID', '~', limit)
  redis.call('ZREMRANGEBYSCORE', K.vft, '-inf', int(now))
  return #old
end

local function forget_workers()
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', K.workers, '-inf', int(now - 86400000), 'LIMIT', 0, 100)) do
    redis.call('DEL', K.w .. worker)
    redis.call('ZREM', K.workers, worker)
  end
end

local grace = observe_epoch()
local promoted = promote_due()
local reaped = reap_expired()
expire_deadlines()
local removed = remove_old()
forget_workers()
local counts = string.format('"promoted":%d,"reaped":%d,"removed":%d', promoted, reaped, removed)
return string.format('{"grace":%s,%s,"outcomes":%s}', tostring(grace), counts, list(outcomes))
