-- Accepts a job, once. The client makes the id, so a repeated call is safe.
-- A        {id, user, prio, slack_ms, cost, weight, res (resolution); and where there is one: idem (key) and hash,
--          deadline_ms, class and needs (JSON text)}
-- ARGV[2]  the request body
-- result   {"ok"|"duplicate", id, state} · {"conflict", id} · {"full", waiting} (too many jobs, or no
--          memory for big ones) · {"unfit", names of missing needs}
local function duplicate(id)
  -- A write, so that the WAIT behind this call speaks about this connection's newest offset.
  redis.call('HSET', K.j .. id, 'asked_again', int(now))
  return {'duplicate', id, redis.call('HGET', K.j .. id, 'state')}
end

-- nil when some worker can run it, or when no worker has ever been seen; else what none has.
local function missing_needs(needs)
  local workers = redis.call('ZRANGEBYSCORE', K.workers, int(now - 86400000), '+inf')
  if #workers == 0 then return nil end
  local missed = {}
  for _, worker in ipairs(workers) do
    local names = lacking(read_can(redis.call('HGET', K.w .. worker, 'capabilities')), needs)
    if #names == 0 then return nil end
    for _, name in ipairs(names) do missed[name] = (missed[name] or 0) + 1 end
  end
  local by_all = {}
  for _, name in ipairs({'model', 'motion_module', 'vram_mib', 'frames'}) do
    if missed[name] == #workers then by_all[#by_all + 1] = name end
  end
  return table.concat(by_all, ' ')
end

local function count_waiting()
  local waiting = redis.call('ZCARD', K.ready) + redis.call('ZCARD', K.delayed)
  for _, class in ipairs(redis.call('HKEYS', K.classes)) do
    waiting = waiting + redis.call('ZCARD', ready_key(class))
  end
  return waiting
end

if redis.call('EXISTS', K.j .. A.id) == 1 then return duplicate(A.id) end
if A.idem then
  local known = redis.call('GET', A.idem)
  if known then
    local id, hash = string.match(known, '^(%S+) (%S+)$')
    if redis.call('EXISTS', K.j .. id) == 1 then
      if hash ~= A.hash then return {'conflict', id} end
      return duplicate(id)
    end
  end
end
if A.class then
  local missing = missing_needs(cjson.decode(A.needs))
  if missing then return {'unfit', missing} end
end
local waiting = count_waiting()
if waiting >= C.queue_limit or #ARGV[2] > BIG_BYTES and memory_share() > BIG_SHARE then
  return {'full', int(waiting)}
end

local class = A.class or 'default'
local score, start = fair_score(A.user, A.cost, A.weight, A.slack_ms)
-- Counters begin when something is counted; the hash stays small as long as all its values are short.
local record = {'id', A.id, 'user', A.user, 'prio', A.prio, 'class', class, 'cost', A.cost, 'res', A.res,
  'score', score, 'created', now, 'state', 'queued'}
local function note(field, value) record[#record + 1], record[#record + 2] = field, value end
if start then note('start', start) end
if A.weight ~= 1 then note('weight', tostring(A.weight)) end
if A.needs then note('needs', A.needs) end
redis.call('HSET', K.j .. A.id, unpack(record))
if A.deadline_ms then
  observe_epoch(false)
  set_deadline(A.id, A.deadline_ms)
end
redis.call('SET', K.p .. A.id, ARGV[2])
redis.call('ZADD', K.all, 0, A.id)
redis.call('ZADD', K.ujobs .. A.user, 0, A.id)
if A.idem then redis.call('SET', A.idem, A.id .. ' ' .. A.hash, 'EX', 86400) end
know_class(class, A.needs)
redis.call('ZADD', ready_key(class), score, A.id)
wake_workers(A.id, A.class)
redis.call('HINCRBY', K.stats, 'submitted', 1)
return {'ok', A.id, 'queued'}
