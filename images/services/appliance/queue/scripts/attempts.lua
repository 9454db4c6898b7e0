-- Prepended to every script, after counting.lua: how attempts begin and end, and where their jobs go from there.
local function add_to_ledger(id, fence, worker)
  local entry = redis.call('XADD', K.run, '*', 'job', id, 'fence', fence, 'worker', worker)
  local hold = {'XCLAIM', K.run, 'g', worker, 0, entry, 'FORCE', 'JUSTID'}  -- at half the price of XREADGROUP
  if redis.pcall(unpack(hold)).err then
    redis.call('XGROUP', 'CREATE', K.run, 'g', '0')
    redis.call(unpack(hold))
  end
  return entry
end

local function remove_from_ledger(entry)
  redis.call('XACK', K.run, 'g', entry)
  redis.call('XDEL', K.run, entry)
end

-- Takes a running job out of the ledger and the leases, and frees its worker's record.
local function leave_running(id, entry, owner)
  if entry then remove_from_ledger(entry) end
  redis.call('ZREM', K.lease, id)
  if owner and redis.call('HGET', K.w .. owner, 'job') == id then redis.call('HDEL', K.w .. owner, 'job') end
end

-- One ended attempt more on the job's own record, as text: to decode the whole list each time would be dear. JSON has
-- no bare line ends within its texts, so that those between the attempts tell where one ends.
local HISTORY_LIMIT = 20

local function with_attempt(history, attempt)
  local text = cjson.encode(attempt)
  if not history then return '[' .. text .. ']' end
  local joined = string.sub(history, 1, -2) .. ',\n' .. text .. ']'
  local _, separators = string.gsub(joined, '\n', '')
  if separators < HISTORY_LIMIT then return joined end
  return '[' .. string.sub(joined, string.find(joined, '\n', 1, true) + 1)
end

local function history_with(job, kind, reason, message, where)
  local attempt = {
    fence = job.fence, worker = job.owner, kind = kind, reason = reason or cjson.null, message = message or cjson.null,
    memory = job.memory or '', step = tonumber(job.step or 0), resumed_from = tonumber(job.resumed or 0), at = now,
    started = tonumber(job.started), gpu = job.gpu ~= '' and job.gpu or nil, where = where ~= '' and where or nil,
  }
  return with_attempt(job.history, attempt)
end

local function remember(id, job, kind, reason, message, where)
  redis.call('HSET', K.j .. id, 'history', history_with(job, kind, reason, message, where))
end

-- All that ending an attempt asks of a running job, by name.
local ATTEMPT_FIELDS = {'owner', 'fence', 'entry', 'cancel', 'memory', 'step', 'resumed', 'history', 'started', 'res',
  'cost', 'deadline', 'replayed', 'state', 'nonce', 'gpu', 'phase'}

local function get_attempt(id)
  local values, job = get(id, unpack(ATTEMPT_FIELDS)), {}
  for index, field in ipairs(ATTEMPT_FIELDS) do job[field] = values[index] or nil end
  job.unflagged = not job.cancel and not job.replayed
  return job
end

-- A request with pictures is megabytes, and the memory is finite: such requests leave a quarter of it to the others, and
-- the dead ones, which wait for a replay that may never come, a half.
local BIG_BYTES = 16384
local BIG_SHARE = 0.75
local BIG_DEAD_SHARE = 0.5

-- As Redis itself counts it: without what its replicas have yet to read.
local function memory_share()
  local text = redis.call('INFO', 'memory')
  local function bytes(name) return tonumber(string.match(text, '\n' .. name .. ':(%d+)')) end
  local most = bytes('maxmemory')
  return most > 0 and (bytes('used_memory') - bytes('mem_not_counted_for_evict')) / most or 0
end

-- Only the dead may be asked for again.
local function let_go_of_request(id, state, reason)
  local is_dead = state == 'dead' and reason ~= 'INVALID_INPUT'
  local is_big = redis.call('STRLEN', K.p .. id) > BIG_BYTES
  if is_dead and not (is_big and memory_share() > BIG_DEAD_SHARE) then return end
  redis.call('EXPIRE', K.p .. id, is_big and not is_dead and 60 or 3600)
end

-- `job` has at least owner, fence and deadline (false or nil where there is none), and `created` if it never ran.
-- `more` are fields and values to write with the end.
local function finish(id, job, state, reason, message, more)
  redis.call('HSET', K.j .. id, 'state', state, 'finished', now, 'reason', reason or '', 'message', message or '',
    unpack(more or {}))
  if not job.unflagged then redis.call('HDEL', K.j .. id, 'cancel', 'replayed') end
  redis.call('ZADD', K.done, now, id)
  if job.deadline then redis.call('ZREM', K.deadline, id) end
  redis.call('HINCRBY', K.stats, state, 1)
  let_go_of_request(id, state, reason)
  if not job.owner then emit_submitted(id, job.created) end
  emit(id, state, {state = state, fence = job.fence or '0', worker = job.owner or '',
    reason = reason or cjson.null, message = message or cjson.null})
  redis.call('EXPIRE', K.jev .. id, 3600)
  announce(state, id, job.owner or '', reason, job.fence or '0')
  if state == 'dead' then
    local letter = redis.call('XADD', K.dead, '*', 'job', id, 'reason', reason or '', 'message', message or '',
      'worker', job.owner or '')
    redis.call('HSET', K.j .. id, 'letter', letter)
  end
  return state
end

-- Back to the waiting line with the original score: a retry does not pay for its place twice.
local function requeue(id, job, delay_ms, reason, message)
  redis.call('HSET', K.j .. id, 'reason', reason, 'message', message)
  -- Tick has let go of a deadline that passed while the job ran, and there may be no worker to claim it.
  if job.deadline then redis.call('ZADD', K.deadline, job.deadline, id) end
  local state = 'queued'
  if delay_ms > 0 then
    state = 'delayed'
    redis.call('HSET', K.j .. id, 'state', state)
    redis.call('ZADD', K.delayed, int(now + delay_ms), id)
  else
    enter_ready(id)
  end
  emit(id, state, {state = state, fence = job.fence, worker = job.owner, reason = reason, message = message,
    delay_seconds = delay_ms / 1000})
  return state
end

local LONGEST_DELAY_MS = 75000

local function backoff_ms(failures)
  return math.floor(math.min(LONGEST_DELAY_MS / 1.25, 1000 * 2 ^ (failures - 1)) * (0.75 + 0.5 * (A.jitter or 0.5)))
end

-- A job that failed with an error, for want of memory, or by more than one crash is for the other workers first, for a
-- while: see claiming.lua.
local SHUN_MS = 120000

local function shun(id, worker, delay_ms)
  local names = string.match(redis.call('HGET', K.j .. id, 'shun') or '', '^%d+( .*)$') or ' '
  if not string.find(names, ' ' .. worker .. ' ', 1, true) then names = names .. worker .. ' ' end
  redis.call('HSET', K.j .. id, 'shun', int(now + delay_ms + SHUN_MS) .. names)
end

-- Counts workers, not crashes: one killed host must not spend the budget of an innocent job. Five crashes per
-- allowed worker end it all the same, or a poisonous job would circle for ever in a cluster of two.
-- A worker lost while it commits counts only there: COMMIT may exist, and the next claim has to look for it.
local function crash_budget_spent(id, worker)
  local job = get(id, 'crash_workers', 'phase')
  local known = cjson.decode(job[1] or '{}')
  if job[2] ~= 'commit' then
    known[worker] = (known[worker] or 0) + 1
    -- Once is bad luck. A sick worker that is free again first would spend the whole budget alone.
    if known[worker] > 1 then shun(id, worker, 0) end
  end
  local distinct = 0
  for _ in pairs(known) do distinct = distinct + 1 end
  local total = redis.call('HINCRBY', K.j .. id, 'crash', 1)
  if distinct > 0 then redis.call('HSET', K.j .. id, 'crash_workers', cjson.encode(known)) end
  return distinct >= C.crash_budget or total >= 5 * C.crash_budget
end

-- Free, but not at the head of the line for ever: a job that no webui takes must let the others pass.
local function refusal_delay_ms(id)
  local refusals = redis.call('HINCRBY', K.j .. id, 'refusals', 1)
  return refusals > 3 and backoff_ms(refusals - 3) or 0
end

-- Where a job goes whose attempt failed: true for its end, else the delay before the next attempt.
local function verdict(id, job, kind)
  if kind == 'permanent' then return true end
  if kind == 'crash' then return crash_budget_spent(id, job.owner), 0 end
  if kind == 'error' or kind == 'oom' then
    local field, budget = 'errs', C.error_budget
    if kind == 'oom' then field, budget = 'oom', C.oom_budget end
    local failures = redis.call('HINCRBY', K.j .. id, field, 1)
    local delay_ms = backoff_ms(failures)
    shun(id, job.owner, delay_ms)
    return failures >= budget, delay_ms
  end
  return false, kind == 'refused' and refusal_delay_ms(id) or 0
end

-- How many attempts failed with a worker, and when its last ones in a row did by its engine's fault; its next success
-- clears that.
local ENGINE_FAULTS = {CUDA_ERROR = true, GPU_LOST = true, MODEL_LOAD_FAIL = true, UNKNOWN = true}
local FAULTS_LIMIT = 3

local function note_failure(worker, kind, reason)
  if kind ~= 'error' and kind ~= 'crash' and kind ~= 'oom' then return end
  redis.call('HINCRBY', K.w .. worker, 'failed', 1)
  if kind == 'oom' or not ENGINE_FAULTS[reason] then return end
  local moments = {}
  for moment in string.gmatch(redis.call('HGET', K.w .. worker, 'fails') or '', '%d+') do
    moments[#moments + 1] = moment
  end
  moments[#moments + 1] = int(now)
  local last = table.concat(moments, ' ', math.max(1, #moments - FAULTS_LIMIT + 1))
  redis.call('HSET', K.w .. worker, 'fails', last, 'fail_reason', reason)
end

-- The end of an attempt without a result. kind: error | oom | crash | release | refused | permanent | cancelled
local function end_attempt(id, kind, reason, message, where)
  local job = get_attempt(id)
  leave_running(id, job.entry, job.owner)
  local state
  if job.cancel or kind == 'cancelled' then  -- the flag may be lost in a failover after the worker has heard of it
    reason = 'CANCELLED'
    remember(id, job, 'cancelled', reason, message)
    state = finish(id, job, 'cancelled', reason, 'cancelled while running')
  else
    remember(id, job, kind, reason, message, where)
    local over, delay_ms = verdict(id, job, kind)
    if over then
      state = finish(id, job, 'dead', reason, message)
    else
      if job.phase == 'commit' then redis.call('HSET', K.j .. id, 'unsure', 1) end  -- see may_be_made
      state = requeue(id, job, delay_ms, reason, message)
    end
  end
  if state ~= 'cancelled' then note_failure(job.owner, kind, reason) end
  local is_failure = kind ~= 'release' and kind ~= 'refused' and state ~= 'cancelled'
  if is_failure then announce('failure', id, job.owner, reason, job.fence) end
  count_attempt(job, reason, is_failure)
  local about = {id = id, state = state, kind = kind, reason = reason, worker = job.owner, fence = job.fence}
  outcomes[#outcomes + 1] = about
  return state
end

-- Takes a job from a worker that is gone.
local function reclaim(id, message)
  local job = get(id, 'owner', 'fence')
  end_attempt(id, 'crash', 'WORKER_LOST', message)
  announce('reclaimed', id, job[1], 'WORKER_LOST', job[2])
end

-- Another process has the worker's name now; what the old one held is lost. `record` is {boot_id, job, former}, where
-- `former` are the boot ids that were replaced before: a process that only stood still must not take the name back from
-- its heir. Returns false to such a one.
local FORMER_LIMIT = 8 * 33

local function change_boot(worker, record, boot_id)
  if boot_id == '' or record[1] == boot_id then return true end
  local former = record[3] or ''
  if string.find(former, boot_id .. ' ', 1, true) then return false end
  redis.call('HSET', K.w .. worker, 'boot_id', boot_id)
  redis.call('HDEL', K.w .. worker, 'turn')
  if not record[1] then return true end
  redis.call('HSET', K.w .. worker, 'former', string.sub(former .. record[1] .. ' ', -FORMER_LIMIT))
  if record[2] then
    local job = get(record[2], 'state', 'owner')
    if job[1] == 'running' and job[2] == worker then reclaim(record[2], 'its agent started again without it') end
  end
  return true
end
