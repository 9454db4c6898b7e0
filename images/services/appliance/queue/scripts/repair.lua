-- Cross-checks one slice of all records: every job's own hash is believed, the rest is put in line with it.
-- A        {cursor}: "" to begin with, then the answer's until that is "" again
-- result   JSON {cursor, checked, relet, requeued, promoted, removed, unledgered, ledgered}
-- The stages in their order: all jobs, the members of the lines and leases, the ledger, the workers' records.
local SLICE = 500
local counts = {checked = 0, relet = 0, requeued = 0, promoted = 0, removed = 0, unledgered = 0, ledgered = 0}

local function count(name, by) counts[name] = counts[name] + (by or 1) end

local function check_running(id)
  local job = get(id, 'entry', 'fence', 'owner')
  if not redis.call('ZSCORE', K.lease, id) then
    redis.call('ZADD', K.lease, int(now + math.max(C.grace_ms, C.lease_ms)), id)
    count('relet')
  end
  local pending = job[1] and redis.call('EXISTS', K.run) == 1 and redis.pcall('XPENDING', K.run, 'g', job[1], job[1], 1)
  local entry = job[1] and redis.call('XRANGE', K.run, job[1], job[1])
  if not pending or pending.err or #pending == 0 or #entry == 0 then
    if pending and not pending.err then remove_from_ledger(job[1]) end
    redis.call('HSET', K.j .. id, 'entry', add_to_ledger(id, job[2], job[3]))
    count('ledgered')
  end
end

local function check_job(id)
  local job = get(id, 'state', 'class', 'needs')
  if job[1] == 'running' then
    check_running(id)
  elseif job[1] == 'queued' then
    local known = know_class(job[2], job[3])
    if known == 1 or not redis.call('ZSCORE', ready_key(job[2]), id) then
      enter_ready(id)
      count('requeued')
    end
  elseif job[1] == 'delayed' then
    if not redis.call('ZSCORE', K.delayed, id) then
      redis.call('ZADD', K.delayed, int(now), id)
      count('promoted')
    end
  elseif not job[1] then
    redis.call('ZREM', K.all, id)
    count('removed')
  end
end

local function check_jobs(after)
  local start = after == '' and '-' or '(' .. after
  local ids = redis.call('ZRANGEBYLEX', K.all, start, '+', 'LIMIT', 0, SLICE)
  for _, id in ipairs(ids) do check_job(id) end
  count('checked', #ids)
  return #ids == SLICE and ids[#ids] or nil
end

-- {key, the state that its members have, their class or nil}, in an order that lasts from one call to the next.
local function lines()
  local all = {{K.delayed, 'delayed'}, {K.lease, 'running'}, {K.ready, 'queued', 'default'}}
  local classes = redis.call('HKEYS', K.classes)
  table.sort(classes)
  for _, class in ipairs(classes) do all[#all + 1] = {ready_key(class), 'queued', class} end
  return all
end

local function check_members(line, cursor)
  local answer = redis.call('ZSCAN', line[1], cursor, 'COUNT', SLICE)
  for index = 1, #answer[2], 2 do
    local id = answer[2][index]
    local job = get(id, 'state', 'class')
    if job[1] ~= line[2] or (line[3] and job[2] ~= line[3]) then
      redis.call('ZREM', line[1], id)
      count('removed')
    end
    count('checked')
  end
  return answer[1]
end

-- `after` is "<key> <cursor>": where in which line the last call stopped.
local function check_lines(after)
  local key, cursor = string.match(after, '^(%S+) (%d+)$')
  local all = lines()
  for index, line in ipairs(all) do
    if not key or line[1] == key then
      local rest = check_members(line, cursor or '0')
      if rest ~= '0' then return line[1] .. ' ' .. rest end
      return all[index + 1] and all[index + 1][1] .. ' 0' or nil
    end
  end
end

local function check_ledger(after)
  if redis.call('EXISTS', K.run) == 0 then return nil end
  local entries = redis.call('XRANGE', K.run, after == '' and '-' or '(' .. after, '+', 'COUNT', SLICE)
  for _, entry in ipairs(entries) do
    local job = get(entry[2][2], 'state', 'entry')
    if job[1] ~= 'running' or job[2] ~= entry[1] then
      remove_from_ledger(entry[1])
      count('unledgered')
    end
  end
  count('checked', #entries)
  return #entries == SLICE and entries[#entries][1] or nil
end

local function check_workers()
  for _, worker in ipairs(redis.call('ZRANGE', K.workers, 0, -1)) do
    local id = redis.call('HGET', K.w .. worker, 'job')
    local job = id and get(id, 'state', 'owner')
    if id and (job[1] ~= 'running' or job[2] ~= worker) then
      redis.call('HDEL', K.w .. worker, 'job')
      count('removed')
    end
  end
end

local STAGES = {{'jobs', check_jobs}, {'lines', check_lines}, {'ledger', check_ledger}, {'workers', check_workers}}
local stage, after = string.match(A.cursor, '^(%l+):(.*)$')
local cursor = ''
for index, step in ipairs(STAGES) do
  if not stage or step[1] == stage then
    local rest = step[2](after or '')
    if rest then cursor = step[1] .. ':' .. rest
    elseif STAGES[index + 1] then cursor = STAGES[index + 1][1] .. ':' end
    break
  end
end

local repaired, parts = 0, {}
for name, number in pairs(counts) do
  if name ~= 'checked' and number > 0 then
    repaired = repaired + number
    parts[#parts + 1] = name .. ' ' .. int(number)
  end
end
if repaired > 0 then
  table.sort(parts)
  announce('repaired', '', '', table.concat(parts, ', '))
end
counts.cursor = cursor
return cjson.encode(counts)
