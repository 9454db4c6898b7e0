-- Prepended to every script of this folder: the clock and the moves that several scripts share.
-- K        the fixed keys and key prefixes: SCRIPT_KEYS in appliance/keys.py (all share one hash tag; KEYS[1] stands
--          for it)
-- C        the queue settings {lease_ms, beat_ms, grace_ms, stall_ms, queue_limit, crash_budget, error_budget,
--          oom_budget, retention_ms, bounds}; the fields of both are written into the text when it is loaded, where a script
--          also gets only those of these functions that it uses
-- Plain numbers reach Redis whole up to 2^52: int() is for what is not whole, and for what becomes a text here.
-- ARGV[1]  JSON object A: the script's own arguments
-- Numbers above 14 digits (fences) travel as text: Lua's and cjson's default formats would round them.
-- The clock is the server's own, so that no host's clock can expire another host's lease.
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

-- One job's event stream, for SSE and WebSocket; it outlives the job's end by an hour.
local function emit(id, kind, data)
  redis.call('XADD', K.jev .. id, 'MAXLEN', '~', 500, '*', 'type', kind, 'data', cjson.encode(data))
end

-- A stream takes 4 KB from its first entry on, too much for a job that only waits: its first event is written when
-- something happens to it, with the time it was submitted.
local function emit_submitted(id, created)
  -- Refused where it is not the first one: all others are newer.
  redis.pcall('XADD', K.jev .. id, created .. '-0', 'type', 'queued', 'data', '{"state":"queued"}')
end

local function announce(kind, id, worker, reason, fence)
  redis.call('XADD', K.ev, 'MAXLEN', '~', 5000, '*', 'type', kind, 'job', id, 'worker', worker or '',
    'reason', reason or '', 'fence', fence or '')
end

-- When the oldest of a line's first jobs was submitted; now, where there is none. Their order is not that of their age.
local function oldest_in(line, first)
  local oldest = now
  for _, id in ipairs(redis.call('ZRANGE', line, 0, first - 1)) do
    oldest = math.min(oldest, tonumber(redis.call('HGET', K.j .. id, 'created') or now))
  end
  return oldest
end

-- What a job of some class needs is known as long as one waits; `tick` takes it out when none does.
local function know_class(class, needs)
  if class and class ~= 'default' then return redis.call('HSETNX', K.classes, class, needs or '{}') end
  return 0
end

-- Wakes one of the workers that wait in line, or as many as there are where not each of them may have the job.
local WAKES_LIMIT = 64

local function wake_workers(id, class, shun)
  local workers = 1
  if (class and class ~= 'default') or tonumber(string.match(shun or '', '^%d+') or 0) > now then
    workers = redis.call('ZCOUNT', K.workers, int(now - C.lease_ms - C.beat_ms), '+inf')
  end
  for _ = 1, math.max(1, math.min(WAKES_LIMIT, workers)) do redis.call('XADD', K.wake, 'MAXLEN', '~', 4 * WAKES_LIMIT, '*', 'j', id) end
end

local function enter_ready(id)
  local job = get(id, 'class', 'score', 'needs', 'shun')
  redis.call('HSET', K.j .. id, 'state', 'queued')
  know_class(job[1], job[3])
  redis.call('ZADD', ready_key(job[1]), job[2], id)
  wake_workers(id, job[1], job[4])
end

-- Start-time fair queueing: a user's next job starts where the previous one would have finished on one worker, and
-- nobody's before the job in service (`vtime`, see claiming.lua): what idle workers did for a user is not owed to others.
-- The second answer is that start where it is ahead of the clock; else it is as good as `created`, and takes no memory.
-- While `vtime` is ahead of the clock by D and stands still, fresh jobs start at one and the same place, so that the
-- waiting ones gain on them later, by D at most.
local function fair_score(user, cost, weight, slack_ms)
  local virtual = tonumber(redis.call('HGET', K.epoch, 'vtime') or 0)
  local start = math.max(now, virtual, tonumber(redis.call('ZSCORE', K.vft, user) or 0))
  redis.call('ZADD', K.vft, int(start + cost / weight), user)
  return int(start + slack_ms), start > now and int(start) or nil
end

local function lacks_name(names, name)
  if not name or type(names) ~= 'table' then return false end
  for _, known in ipairs(names) do
    if known == name then return false end
  end
  return true
end

-- From a worker's record; nil where it does not say, or nothing that can be read: one odd record must not keep
-- everybody from submitting.
local function read_can(text)
  local is_json, can = pcall(cjson.decode, text or '')
  return is_json and type(can) == 'table' and can or nil
end

-- The names of the needs that these capabilities do not meet; both as job.py writes them. nil stands for anything,
-- and so does JSON's null.
local function lacking(can, needs)
  if not can then return {} end
  local names, vram, frames = {}, tonumber(can.vram_mib) or 0, tonumber(can.max_frames) or 0
  if lacks_name(can.models, needs.model) then names[#names + 1] = 'model' end
  if lacks_name(can.motion_modules, needs.motion_module) then names[#names + 1] = 'motion_module' end
  if vram > 0 and (needs.vram_mib or 0) > vram then names[#names + 1] = 'vram_mib' end
  if frames > 0 and (needs.frames or 0) > frames then names[#names + 1] = 'frames' end
  return names
end
