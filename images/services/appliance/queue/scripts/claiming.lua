-- Prepended to every script, after passing.lua: how a worker gets its next job. What A has, claim.lua tells.
local function hand_over(id, fence, attempts, deadline, ooms, user, more)
  deadline = deadline and int(tonumber(deadline) + deadline_shift()) or ''
  return {'job', id, fence, attempts, deadline, now, redis.call('GET', K.p .. id) or '', list(outcomes),
    ooms or '0', user, more and 1 or 0}
end

-- `next_due`: in how many ms there is something to do that no line and no time tells of.
local function nothing(next_due)
  -- Where nothing waits, what is left on the stream is of jobs that were taken without waiting for them.
  if redis.call('EXISTS', K.ready, K.classes) == 0 then redis.call('XTRIM', K.wake, 'MAXLEN', 0) end
  next_due = next_due or -1
  for _, key in ipairs({K.delayed, K.lease}) do
    local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if head[2] and (next_due < 0 or tonumber(head[2]) - now < next_due) then
      next_due = math.max(0, tonumber(head[2]) - now)
    end
  end
  return {'none', int(next_due), list(outcomes)}
end

-- The virtual clock is that of the job in service, as long as it is ahead of the real one.
local function advance_clock(start)
  if start <= now or start <= tonumber(redis.call('HGET', K.epoch, 'vtime') or 0) then return end
  redis.call('HSET', K.epoch, 'vtime', int(start))
end

-- `job` is {state, deadline, fence, attempts, created, oom, user, res, replayed, shun, unsure, start, phase} as before.
local function lease_job(id, job, more)
  local fence = int(math.max(tonumber(job[3] or 0) + 1, now_us))
  local attempts = tonumber(job[4] or 0) + 1
  local entry = add_to_ledger(id, fence, A.worker)
  advance_clock(tonumber(job[12] or job[5]))
  redis.call('ZADD', K.lease, now + C.lease_ms, id)
  redis.call('HSET', K.j .. id, 'state', 'running', 'owner', A.worker, 'nonce', A.nonce, 'fence', fence,
    'entry', entry, 'started', now, 'attempts', attempts, 'gpu', A.gpu or '')
  redis.call('HSET', K.w .. A.worker, 'job', id)
  if job[4] then
    redis.call('HDEL', K.j .. id, 'step', 'total', 'phase', 'memory', 'resumed')  -- of the attempt before
  else
    emit_submitted(id, job[5])
    note_line('wait', A.worker, job[8] or '', int(math.max(0, now - tonumber(job[9] or job[5]))))
  end
  emit(id, 'running', {state = 'running', worker = A.worker, fence = fence})
  return hand_over(id, fence, attempts, job[2], job[6], job[7], more)
end

-- The lines that this worker may take from: every class has one, and what its jobs need is known.
local function fitting_lines()
  local lines = {K.ready}
  local classes = redis.call('HGETALL', K.classes)
  for index = 1, #classes, 2 do
    if not A.can or #lacking(A.can, cjson.decode(classes[index + 1])) == 0 then
      lines[#lines + 1] = ready_key(classes[index])
    end
  end
  return lines
end

-- The first job of all these lines, its score and its line.
local function pop_best(lines)
  local best_key, best_score = lines[1], nil
  if #lines > 1 then
    for _, key in ipairs(lines) do
      local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
      if head[1] and (not best_score or tonumber(head[2]) < best_score) then
        best_key, best_score = key, tonumber(head[2])
      end
    end
  end
  local popped = redis.call('ZPOPMIN', best_key)
  return popped[1], popped[2], best_key
end

local function could_run(worker, needs)
  local other = redis.call('HMGET', K.w .. worker, 'up', 'state', 'capabilities')
  if other[1] ~= '1' or (other[2] ~= 'idle' and other[2] ~= 'running') then return false end
  return #lacking(read_can(other[3]), needs) == 0
end

-- For how many more ms this worker leaves a job to the others that it failed; nil where it may have it. A broken GPU
-- is always the first to be free: alone it would spend an innocent job's whole budget.
local function left_to_others(id, shun)
  local till, names = string.match(shun or '', '^(%d+)( .*)$')
  if not till or now >= tonumber(till) or not string.find(names, ' ' .. A.worker .. ' ', 1, true) then return nil end
  local needs = cjson.decode(redis.call('HGET', K.j .. id, 'needs') or '{}')
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', K.workers, int(now - C.lease_ms - C.beat_ms), '+inf')) do
    if not string.find(names, ' ' .. worker .. ' ', 1, true) and could_run(worker, needs) then
      return tonumber(till) - now
    end
  end
  return nil
end

local PASSED_LIMIT = 100  -- jobs that are too late; a whole line of them must not hold up everybody else's calls
local LEFT_LIMIT = 20  -- jobs that are left to others; where there are that many, they are worth trying here

-- The id and fields of the best job that may run here, off its line; else nil and in how many ms to look again.
local function take_best(lines)
  local left, soonest = {}, nil
  local id, job
  for passed = 1, PASSED_LIMIT do
    local score, line
    id, score, line = pop_best(lines)
    if not id then break end
    job = get(id, 'state', 'deadline', 'fence', 'attempts', 'created', 'oom', 'user', 'res', 'replayed', 'shun',
      'unsure', 'start', 'phase')
    if job[1] == 'queued' then
      if job[2] and tonumber(job[2]) + deadline_shift() <= now and not may_be_made(job[11], job[13]) then
        expire_waiting(id)
      else
        local wait = #left < LEFT_LIMIT and left_to_others(id, job[10])
        if not wait then break end
        left[#left + 1], soonest = {line, score, id}, math.min(soonest or wait, wait)
      end
    end
    id = nil
    if passed == PASSED_LIMIT then soonest = 0 end
  end
  for _, one in ipairs(left) do redis.call('ZADD', unpack(one)) end
  return id, job, soonest
end

local function claim_next()
  local record = redis.call('HMGET', K.w .. A.worker, 'boot_id', 'job', 'former', 'turn')
  if not change_boot(A.worker, record, A.boot) then return nothing() end
  local same = A.boot ~= '' and record[1] == A.boot
  if A.boot ~= '' then
    -- A cut network may deliver a claim long after its sender has asked anew, and has a job in hand.
    if same and record[4] and A.turn < tonumber(record[4]) then return nothing() end
    redis.call('HSET', K.w .. A.worker, 'turn', int(A.turn))
  end
  local late = #redis.call('ZRANGEBYSCORE', K.lease, '-inf', now, 'LIMIT', 0, 1) > 0
  observe_epoch(late)
  if record[2] then
    local job = get(record[2], 'state', 'owner', 'nonce', 'fence', 'attempts', 'deadline', 'oom', 'user')
    if job[1] == 'running' and job[2] == A.worker then
      if job[3] == A.nonce then return hand_over(record[2], job[4], job[5], job[6], job[7], job[8]) end
      -- An agent holds one job at a time; asking for another one says that it has forgotten this one. The same process
      -- has not crashed but ended its attempt, and a failover has lost the word: COMMIT may exist.
      if same then redis.call('HSET', K.j .. record[2], 'phase', 'commit') end
      reclaim(record[2], same and 'its agent does not know of it any more' or 'its agent started again without it')
    end
  end
  promote_due()
  if late then reap_expired() end
  local lines = fitting_lines()
  local id, job, soonest = take_best(lines)
  if id then return lease_job(id, job, redis.call('EXISTS', unpack(lines)) > 0) end
  observe_epoch(true)
  return nothing(soonest)
end
