-- Accepts a job, once. The client makes the id, so a repeated call is safe.
-- A        {id, user, idem (key or ""), hash, prio, slack_ms, cost, weight, class, deadline_ms or null}
-- ARGV[2]  the request body
-- result   {"ok"|"duplicate", id, state} · {"conflict", id} · {"full", waiting}
local function duplicate(id)
  -- A write, so that the WAIT behind this call speaks about this connection's newest offset.
  redis.call('HSET', K.j .. id, 'asked_again', int(now))
  return {'duplicate', id, redis.call('HGET', K.j .. id, 'state')}
end

if redis.call('EXISTS', K.j .. A.id) == 1 then return duplicate(A.id) end
if A.idem ~= '' then
  local known = redis.call('GET', A.idem)
  if known then
    local id, hash = string.match(known, '^(%S+) (%S+)$')
    if redis.call('EXISTS', K.j .. id) == 1 then
      if hash ~= A.hash then return {'conflict', id} end
      return duplicate(id)
    end
  end
end
local waiting = redis.call('ZCARD', ready_key(A.class)) + redis.call('ZCARD', K.delayed)
if waiting >= A.queue_limit then return {'full', int(waiting)} end

-- Start-time fair queueing: a user's next job starts where the previous one would have finished.
local start = math.max(now, tonumber(redis.call('ZSCORE', K.vft, A.user) or 0))
redis.call('ZADD', K.vft, int(start + A.cost / A.weight), A.user)
redis.call('SET', K.p .. A.id, ARGV[2])
redis.call('HSET', K.j .. A.id, 'id', A.id, 'user', A.user, 'prio', A.prio, 'class', A.class, 'cost', int(A.cost),
  'score', int(start + A.slack_ms), 'created', int(now), 'attempts', 0, 'crash', 0, 'errs', 0, 'oom', 0, 'fence', 0)
if A.deadline_ms and A.deadline_ms ~= cjson.null then
  redis.call('HSET', K.j .. A.id, 'deadline', int(now + A.deadline_ms))
  redis.call('ZADD', K.deadline, int(now + A.deadline_ms), A.id)
end
redis.call('ZADD', K.all, 0, A.id)
redis.call('ZADD', K.ujobs .. A.user, 0, A.id)
if A.idem ~= '' then redis.call('SET', A.idem, A.id .. ' ' .. A.hash, 'EX', 86400) end
enter_ready(A.id)
redis.call('HINCRBY', K.stats, 'submitted', 1)
emit(A.id, 'queued', {state = 'queued'})
return {'ok', A.id, 'queued'}
