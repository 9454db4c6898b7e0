-- The housekeeping that every api replica runs: grace, promotion, reaping, deadlines, retention.
-- A        {host (that of the caller, or "")}
-- result   JSON {grace, since (when the last one began, ms), promoted, reaped, removed, outcomes}
-- How much longer than its deadline a job that may be made waits for a worker that can look; there may be none any more.
local LOOK_MS = 600000

local function expire_deadlines()
  if redis.call('EXISTS', K.deadline) == 0 then return end
  local latest = int(now - deadline_shift())
  local due = redis.call('ZRANGEBYSCORE', K.deadline, '-inf', latest, 'WITHSCORES', 'LIMIT', 0, 100)
  for index = 1, #due, 2 do
    local id, score = due[index], tonumber(due[index + 1])
    local job = get(id, 'state', 'unsure', 'deadline', 'phase')
    local waits = job[1] == 'queued' or job[1] == 'delayed'
    -- A score above its own deadline has been put off before.
    if waits and may_be_made(job[2], job[4]) and score <= tonumber(job[3] or 0) then
      redis.call('ZADD', K.deadline, int(score + LOOK_MS), id)
    else
      -- A running job's agent watches the deadline itself; if it is requeued instead, there is an entry again.
      if waits then expire_waiting(id) end
      redis.call('ZREM', K.deadline, id)
    end
  end
end

local OVER = {done = true, cancelled = true, dead = true}

-- What a job left on storage is for agents to remove: the set says where to look.
local function remove_old()
  if time_in_doubt() > 0 then return 0 end
  local limit = int(now - C.retention_ms)
  local old = redis.call('ZRANGEBYSCORE', K.done, '-inf', limit, 'LIMIT', 0, 100)
  for _, id in ipairs(old) do
    local job = get(id, 'user', 'attempts', 'state')
    redis.call('ZREM', K.done, id)
    if not job[3] or OVER[job[3]] then
      if job[2] then redis.call('SADD', K.trash, id) end
      redis.call('DEL', K.j .. id, K.p .. id, K.jev .. id)
      redis.call('ZREM', K.all, id)
      redis.call('ZREM', K.ujobs .. (job[1] or ''), id)
    end
  end
  redis.call('XTRIM', K.dead, 'MINID', '~', limit)
  redis.call('ZREMRANGEBYSCORE', K.vft, '-inf', int(now))
  return #old
end

-- Nobody was heard while Redis was away: that says nothing about the workers until they had their grace.
local function notice_lost_workers()
  local since = tonumber(redis.call('HGET', K.epoch, 'since') or 0)
  if now < since + math.max(C.grace_ms, C.lease_ms + C.beat_ms) then return end
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', K.workers, '-inf', int(now - C.lease_ms - C.beat_ms))) do
    if redis.call('HGET', K.w .. worker, 'up') == '1' then
      redis.call('HSET', K.w .. worker, 'up', '0')
      announce('worker_down', '', worker, 'no heartbeat')
    end
  end
end

local function forget_workers()
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', K.workers, '-inf', int(now - 86400000), 'LIMIT', 0, 100)) do
    redis.call('DEL', K.w .. worker)
    redis.pcall('XGROUP', 'DELCONSUMER', K.run, 'g', worker)
    redis.call('ZREM', K.workers, worker)
    redis.call('HDEL', K.rates, worker)
  end
end

local function forget_classes()
  for _, class in ipairs(redis.call('HKEYS', K.classes)) do
    if redis.call('EXISTS', ready_key(class)) == 0 then redis.call('HDEL', K.classes, class) end
  end
end

local grace = observe_epoch(true)
local promoted = promote_due()
local reaped = reap_expired()
expire_deadlines()
local removed = remove_old()
notice_lost_workers()
forget_workers()
forget_classes()
add_up()
local counts = string.format('"promoted":%d,"reaped":%d,"removed":%d', promoted, reaped, removed)
local since = redis.call('HGET', K.epoch, 'since') or '0'
return string.format('{"grace":%s,"since":%s,%s,"outcomes":%s}', tostring(grace), since, counts, list(outcomes))
