-- Prepended to every script of this folder: names, the clock and the moves that several scripts share.
-- KEYS     the fixed keys and key prefixes, in the order of SCRIPT_KEYS in appliance/keys.py
-- ARGV[1]  JSON object A: the script's own arguments plus the queue settings
--          {lease_ms, grace_ms, stall_ms, queue_limit, crash_budget, error_budget, oom_budget, retention_ms}
-- Numbers above 14 digits (fences) travel as text: Lua's and cjson's default formats would round them.
-- The clock is the server's own, so that no host's clock can expire another host's lease.
local K = {
  ready = KEYS[1], vft = KEYS[2], delayed = KEYS[3], lease = KEYS[4], done = KEYS[5], deadline = KEYS[6],
  run = KEYS[7], wake = KEYS[8], ev = KEYS[9], dead = KEYS[10], epoch = KEYS[11], stats = KEYS[12],
  workers = KEYS[13], all = KEYS[14], j = KEYS[15], p = KEYS[16], jev = KEYS[17], w = KEYS[18], ujobs = KEYS[19],
}
local A = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local outcomes = {}

local function int(number) return string.format('%.0f', number) end

local function get(id, ...) return redis.call('HMGET', K.j .. id, ...) end

local function ready_key(class)
  if not class or class == 'default' then return K.ready end
  return K.ready .. ':' .. class
end

local function list(items)
  if #items == 0 then return '[]' end
  return cjson.encode(items)
end

-- One job's event stream, for SSE and WebSocket; it outlives the job's last event by an hour.
local function emit(id, kind, data)
  redis.call('XADD', K.jev .. id, 'MAXLEN', '~', 500, '*', 'type', kind, 'data', cjson.encode(data))
  redis.call('EXPIRE', K.jev .. id, 3600)
end

local function announce(kind, id, worker, reason)
  redis.call('XADD', K.ev, 'MAXLEN', '~', 5000, '*', 'type', kind, 'job', id, 'worker', worker or '', 'reason', reason or '')
end

local function enter_ready(id)
  local job = get(id, 'class', 'score')
  redis.call('HSET', K.j .. id, 'state', 'queued')
  redis.call('ZADD', ready_key(job[1]), job[2], id)
  redis.call('XADD', K.wake, 'MAXLEN', '~', 64, '*', 'j', id)
end

-- Takes a running job out of the ledger and the leases, and frees its worker's record.
local function leave_running(id)
  local job = get(id, 'entry', 'owner')
  if job[1] then
    redis.call('XACK', K.run, 'g', job[1])
    redis.call('XDEL', K.run, job[1])
  end
  redis.call('ZREM', K.lease, id)
  if job[2] and redis.call('HGET', K.w .. job[2], 'job') == id then redis.call('HDEL', K.w .. job[2], 'job') end
end

local function finish(id, state, reason, message)
  local worker = redis.call('HGET', K.j .. id, 'owner') or ''
  redis.call('HSET', K.j .. id, 'state', state, 'finished', int(now), 'reason', reason or '', 'message', message or '')
  redis.call('HDEL', K.j .. id, 'cancel')
  redis.call('ZADD', K.done, int(now), id)
  redis.call('ZREM', K.deadline, id)
  redis.call('HINCRBY', K.stats, state, 1)
  -- A request may be megabytes, the memory is finite, and only the dead may be asked for again.
  if state ~= 'dead' or reason == 'INVALID_INPUT' then redis.call('EXPIRE', K.p .. id, 3600) end
  emit(id, state, {state = state, reason = reason or cjson.null, message = message or cjson.null})
  announce(state, id, worker, reason)
  if state == 'dead' then
    redis.call('XADD', K.dead, '*', 'job', id, 'reason', reason or '', 'message', message or '', 'worker', worker)
  end
  return state
end

-- Back to the waiting line with the original score: a retry does not pay for its place twice.
local function requeue(id, delay_ms, reason, message)
  redis.call('HSET', K.j .. id, 'reason', reason, 'message', message)
  local state = 'queued'
  if delay_ms > 0 then
    state = 'delayed'
    redis.call('HSET', K.j .. id, 'state', state)
    redis.call('ZADD', K.delayed, int(now + delay_ms), id)
  else
    enter_ready(id)
  end
  emit(id, state, {state = state, reason = reason, message = message, delay_seconds = delay_ms / 1000})
  return state
end

local LONGEST_DELAY_MS = 75000

local function backoff_ms(failures)
  return math.floor(math.min(LONGEST_DELAY_MS / 1.25, 1000 * 2 ^ (failures - 1)) * (0.75 + 0.5 * (A.jitter or 0.5)))
end

-- Counts workers, not crashes: one killed host must not spend the budget of an innocent job. Five crashes per
-- allowed worker end it all the same, or a poisonous job would circle for ever in a cluster of two.
-- A worker lost while it commits counts only there: COMMIT may exist, and the next claim has to look for it.
local function crash_budget_spent(id, worker)
  local job = get(id, 'crash_workers', 'phase')
  local known = cjson.decode(job[1] or '{}')
  if job[2] ~= 'commit' then known[worker] = (known[worker] or 0) + 1 end
  local distinct = 0
  for _ in pairs(known) do distinct = distinct + 1 end
  local total = redis.call('HINCRBY', K.j .. id, 'crash', 1)
  if distinct > 0 then redis.call('HSET', K.j .. id, 'crash_workers', cjson.encode(known)) end
  return distinct >= A.crash_budget or total >= 5 * A.crash_budget
end

-- Free, but not at the head of the line for ever: a job that no webui takes must let the others pass.
local function refusal_delay_ms(id)
  local refusals = redis.call('HINCRBY', K.j .. id, 'refusals', 1)
  return refusals > 3 and backoff_ms(refusals - 3) or 0
end

-- The end of an attempt without a result. kind: error | oom | crash | release | refused | permanent | cancelled
local function end_attempt(id, kind, reason, message)
  local job = get(id, 'owner', 'fence', 'cancel')
  leave_running(id)
  local state
  if job[3] or kind == 'cancelled' then  -- the flag may be lost in a failover after the worker has heard of it
    reason = 'CANCELLED'
    state = finish(id, 'cancelled', reason, 'cancelled while running')
  elseif kind == 'permanent' then
    state = finish(id, 'dead', reason, message)
  elseif kind == 'crash' then
    if crash_budget_spent(id, job[1]) then state = finish(id, 'dead', reason, message)
    else state = requeue(id, 0, reason, message) end
  elseif kind == 'error' or kind == 'oom' then
    local field, budget = 'errs', A.error_budget
    if kind == 'oom' then field, budget = 'oom', A.oom_budget end
    local failures = redis.call('HINCRBY', K.j .. id, field, 1)
    if failures >= budget then state = finish(id, 'dead', reason, message)
    else state = requeue(id, backoff_ms(failures), reason, message) end
  else
    state = requeue(id, kind == 'refused' and refusal_delay_ms(id) or 0, reason, message)
  end
  if kind ~= 'release' and kind ~= 'refused' and state ~= 'cancelled' then announce('failure', id, job[1], reason) end
  outcomes[#outcomes + 1] = {id = id, state = state, kind = kind, reason = reason, worker = job[1], fence = job[2]}
  return state
end

-- Times written before a clock went back (a new master's clock may be behind the old one's) would hold their jobs for
-- as long as it went back.
local function pull_in(key, latest)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. int(latest), '+inf')) do
    redis.call('ZADD', key, int(latest), id)
  end
end

-- After a failover, a restart or a standstill of Redis nobody could renew a lease: give all of them time to try.
-- `seen` is when any script last ran; a gap in it is a standstill, which leaves the run id as it was.
local function observe_epoch()
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  local last = redis.call('HMGET', K.epoch, 'run_id', 'seen')
  redis.call('HSET', K.epoch, 'run_id', run_id, 'seen', int(now))
  local stalled = last[2] and math.abs(now - tonumber(last[2])) > A.stall_ms
  if last[1] == run_id and not stalled then return false end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.lease, '-inf', int(now + A.grace_ms))) do
    redis.call('ZADD', K.lease, int(now + A.grace_ms), id)
  end
  pull_in(K.lease, now + math.max(A.grace_ms, A.lease_ms))
  pull_in(K.delayed, now + LONGEST_DELAY_MS)
  if not last[1] then return false end
  announce(last[1] == run_id and 'stall' or 'epoch', '', '', '')
  return true
end

local function promote_due()
  local due = redis.call('ZRANGEBYSCORE', K.delayed, '-inf', int(now), 'LIMIT', 0, 100)
  for _, id in ipairs(due) do
    redis.call('ZREM', K.delayed, id)
    if redis.call('HGET', K.j .. id, 'state') == 'delayed' then
      enter_ready(id)
      emit(id, 'queued', {state = 'queued'})
    end
  end
  return #due
end

local function reap_expired()
  local expired = redis.call('ZRANGEBYSCORE', K.lease, '-inf', int(now), 'LIMIT', 0, 100)
  for _, id in ipairs(expired) do
    if redis.call('HGET', K.j .. id, 'state') == 'running' then
      end_attempt(id, 'crash', 'WORKER_LOST', 'its worker sent no heartbeat in time')
    else
      redis.call('ZREM', K.lease, id)
    end
  end
  return #expired
end

local function expire_waiting(id, state, class)
  if state == 'queued' then redis.call('ZREM', ready_key(class), id) else redis.call('ZREM', K.delayed, id) end
  finish(id, 'dead', 'TIMEOUT', 'its deadline passed before a worker was free')
  outcomes[#outcomes + 1] = {id = id, state = 'dead', kind = 'deadline', reason = 'TIMEOUT', worker = '', fence = '0'}
end

-- Whether the caller still holds the job: true, or the state it found instead.
local function owns(id, nonce, fence)
  local job = get(id, 'state', 'nonce', 'fence')
  if job[2] == nonce and job[3] == fence then return job[1] == 'running', job[1], true end
  return false, job[1], false
end
