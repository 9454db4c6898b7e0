-- Leases the best waiting job to a worker that holds none.
-- A        {worker, nonce, classes}; the same nonce again returns the same job (a lost answer costs nothing)
-- result   {"job", id, fence, attempts, deadline ms or "", now ms, request body, outcomes JSON}
--          {"none", wake cursor, ms to the next due item or "-1", outcomes JSON}
local function hand_over(id)
  local job = get(id, 'fence', 'attempts', 'deadline')
  return {'job', id, job[1], job[2], job[3] or '', int(now), redis.call('GET', K.p .. id) or '', list(outcomes)}
end

local function lease(id)
  local fence = int(math.max(tonumber(redis.call('HGET', K.j .. id, 'fence')) + 1, now_us))
  if redis.call('EXISTS', K.run) == 0 then redis.call('XGROUP', 'CREATE', K.run, 'g', '0', 'MKSTREAM') end
  local entry = redis.call('XADD', K.run, '*', 'job', id, 'fence', fence, 'worker', A.worker)
  redis.call('XREADGROUP', 'GROUP', 'g', A.worker, 'STREAMS', K.run, '>')
  redis.call('ZADD', K.lease, int(now + A.lease_ms), id)
  redis.call('HSET', K.j .. id, 'state', 'running', 'owner', A.worker, 'nonce', A.nonce, 'fence', fence,
    'entry', entry, 'started', int(now), 'step', 0, 'total', 0, 'phase', '')
  redis.call('HINCRBY', K.j .. id, 'attempts', 1)
  redis.call('HSET', K.w .. A.worker, 'job', id)
  emit(id, 'running', {state = 'running', worker = A.worker, fence = fence})
end

local function best_waiting()
  local best, best_key, best_score
  for _, class in ipairs(A.classes) do
    local head = redis.call('ZRANGE', ready_key(class), 0, 0, 'WITHSCORES')
    if head[1] and (not best or tonumber(head[2]) < best_score) then
      best, best_key, best_score = head[1], ready_key(class), tonumber(head[2])
    end
  end
  if best then redis.call('ZREM', best_key, best) end
  return best
end

observe_epoch()
local held = redis.call('HGET', K.w .. A.worker, 'job')
if held then
  local job = get(held, 'state', 'owner', 'nonce')
  if job[1] == 'running' and job[2] == A.worker then
    if job[3] == A.nonce then return hand_over(held) end
    -- An agent holds one job at a time; asking for another one says that it has forgotten this one.
    end_attempt(held, 'crash', 'WORKER_LOST', 'its agent started again without it')
  end
end
promote_due()
reap_expired()
while true do
  local id = best_waiting()
  if not id then break end
  local job = get(id, 'state', 'deadline', 'class')
  if job[1] == 'queued' then
    if job[2] and tonumber(job[2]) <= now then
      expire_waiting(id, 'queued', job[3])
    else
      lease(id)
      return hand_over(id)
    end
  end
end

local cursor = redis.call('XREVRANGE', K.wake, '+', '-', 'COUNT', 1)
local next_due = -1
for _, key in ipairs({K.delayed, K.lease}) do
  local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if head[2] and (next_due < 0 or tonumber(head[2]) - now < next_due) then
    next_due = math.max(0, tonumber(head[2]) - now)
  end
end
return {'none', cursor[1] and cursor[1][1] or '0-0', int(next_due), list(outcomes)}
