-- Prepended to every script, after attempts.lua: what happens because time has passed, or because Redis was away.
-- Times written before a clock went back (a new master's clock may be behind the old one's) would hold their jobs for
-- as long as it went back.
local function pull_in(key, latest)
  local far = redis.call('ZRANGEBYSCORE', key, '(' .. int(latest), '+inf')
  for _, id in ipairs(far) do redis.call('ZADD', key, int(latest), id) end
  return far
end

-- Redis was away, or its clock has jumped: it cannot tell which, and nobody could work while it was away. Either way
-- the time that passed so is not the jobs'. There may be many of them: it is added up in one sum, and a deadline is kept
-- as its time less the sum of then, so that with the sum of now it has moved. A running job's agent measures what it has
-- left on a clock of its own.
local function deadline_shift() return tonumber(redis.call('HGET', K.epoch, 'shift') or 0) end

-- Only after observe_epoch: a clock that went back before now must not take its time from a deadline of now.
local function set_deadline(id, allowed_ms)
  local deadline = int(now - deadline_shift() + allowed_ms)
  redis.call('HSET', K.j .. id, 'deadline', deadline, 'allowed', int(allowed_ms))
  redis.call('ZADD', K.deadline, deadline, id)
end

-- After a failover, a restart or a standstill of Redis nobody could renew a lease: give all of them time to try.
-- `seen` is when any script last ran; a gap in it is a standstill, which leaves the run id as it was. To ask for the
-- run id costs as much as all the rest of a heartbeat: only who might reap, and who has time, is `thorough`.
-- After a long gap what seems old is not removed for as long again: if a clock is wrong, there is time to set it right.
local SEEN_STEP_MS = 50
local LEAP_MS = 3600000
local LONGEST_DOUBT_MS = 86400000

-- For how many ms from now.
local function time_in_doubt()
  local left = tonumber(redis.call('HGET', K.epoch, 'doubt') or 0) - now
  return left <= LONGEST_DOUBT_MS and math.max(0, left) or 0  -- more: the clock has been set back since
end

local function observe_epoch(thorough)
  local last = redis.call('HMGET', K.epoch, 'run_id', 'seen')
  local passed = last[2] and now - tonumber(last[2]) or SEEN_STEP_MS
  local gap = math.abs(passed)
  local stalled = gap > C.stall_ms
  if last[1] and not thorough and not stalled then
    if gap >= SEEN_STEP_MS then redis.call('HSET', K.epoch, 'seen', int(now)) end
    return false
  end
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  redis.call('HSET', K.epoch, 'run_id', run_id, 'seen', int(now))
  if last[1] == run_id and not stalled then return false end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.lease, '-inf', int(now + C.grace_ms))) do
    redis.call('ZADD', K.lease, int(now + C.grace_ms), id)
  end
  if stalled then redis.call('HINCRBY', K.epoch, 'shift', int(passed)) end
  if passed > LEAP_MS then
    local doubt = math.max(time_in_doubt(), math.min(passed, LONGEST_DOUBT_MS))
    redis.call('HSET', K.epoch, 'doubt', int(now + doubt))
  end
  pull_in(K.lease, now + math.max(C.grace_ms, C.lease_ms))
  pull_in(K.delayed, now + LONGEST_DELAY_MS)
  for _, worker in ipairs(pull_in(K.workers, now)) do redis.call('HSET', K.w .. worker, 'seen', int(now)) end
  redis.call('HSET', K.epoch, 'since', int(now))
  if not last[1] then return false end
  announce(last[1] == run_id and 'stall' or 'failover', '', '', '')
  return true
end

local function promote_due()
  local due = redis.call('ZRANGEBYSCORE', K.delayed, '-inf', now, 'LIMIT', 0, 100)
  for _, id in ipairs(due) do
    redis.call('ZREM', K.delayed, id)
    local job = get(id, 'state', 'fence', 'owner')
    if job[1] == 'delayed' then
      enter_ready(id)
      emit(id, 'queued', {state = 'queued', fence = job[2] or '0', worker = job[3] or ''})
    end
  end
  return #due
end

-- Only after observe_epoch(true): the leases that ran out while Redis was away get their grace first.
local function reap_expired()
  local expired = redis.call('ZRANGEBYSCORE', K.lease, '-inf', int(now), 'LIMIT', 0, 100)
  for _, id in ipairs(expired) do
    if redis.call('HGET', K.j .. id, 'state') == 'running' then
      reclaim(id, 'its worker sent no heartbeat in time')
    else
      redis.call('ZREM', K.lease, id)
    end
  end
  return #expired
end

-- An attempt ended with the result as good as made: COMMIT may exist, and only an agent can look for it. So it stays
-- until a heartbeat tells that one has looked, however many attempts end before that. Of a job that waits, `phase` is
-- that of its last attempt: a script of the release before has not noted more.
local function may_be_made(unsure, phase) return unsure == '1' or phase == 'commit' end

local function expire_waiting(id)
  local job = get(id, 'state', 'class', 'owner', 'fence', 'created', 'res')
  if job[1] == 'queued' then redis.call('ZREM', ready_key(job[2]), id) else redis.call('ZREM', K.delayed, id) end
  local about = {owner = job[3], fence = job[4], created = job[5], deadline = true}
  finish(id, about, 'dead', 'TIMEOUT', 'its deadline passed before a worker was free')
  count_expired(job[6])
  outcomes[#outcomes + 1] = {id = id, state = 'dead', kind = 'deadline', reason = 'TIMEOUT', worker = '', fence = '0'}
end

-- Whether the caller still holds the job: true, or the state it found instead.
local function owns(id, nonce, fence)
  local job = get(id, 'state', 'nonce', 'fence')
  if job[2] == nonce and job[3] == fence then return job[1] == 'running', job[1], true end
  return false, job[1], false
end
