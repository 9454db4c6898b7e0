-- What waits and runs, for the exporters: the plain jobs' line, and all lines of jobs that need special workers as one.
-- A        {}
-- result   JSON {"default": {waiting, running, oldest_seconds}, "special": the same}
local OLDEST_OF, RUNNING_OF = 500, 5000

local function line(waiting, oldest) return {waiting = waiting, running = 0, oldest_seconds = (now - oldest) / 1000} end

local special, oldest, classes = 0, now, redis.call('HKEYS', K.classes)
for _, class in ipairs(classes) do
  local key = ready_key(class)
  special = special + redis.call('ZCARD', key)
  oldest = math.min(oldest, oldest_in(key, math.max(1, math.floor(OLDEST_OF / #classes))))
end
local lines = {
  default = line(redis.call('ZCARD', K.ready), oldest_in(K.ready, OLDEST_OF)),
  special = line(special, oldest),
}
for _, id in ipairs(redis.call('ZRANGE', K.lease, 0, RUNNING_OF - 1)) do
  local class = redis.call('HGET', K.j .. id, 'class')
  local its = (not class or class == 'default') and lines.default or lines.special
  its.running = its.running + 1
end
return cjson.encode(lines)
