-- What a slice of one line has behind it: how its jobs' attempts ended, and with which parameters. Reads only.
-- A        {line (done | delayed | lease | ready), first (0 is the newest, what is due last, or the head of a line), count}
-- result   {how many jobs the slice has, {{id, state, finished (ms), reason, message, params, history}, ...}}; "" for
--          what there is not; jobs that are gone are left out, and of `ready`, which is all waiting lines one after the
--          other, those that were never tried
local LINES = {done = K.done, delayed = K.delayed, lease = K.lease}

local function ready_slice()
  local ids, passed, classes = {}, 0, redis.call('HKEYS', K.classes)
  table.sort(classes)
  table.insert(classes, 1, 'default')
  for _, class in ipairs(classes) do
    local key = ready_key(class)
    local first = math.max(0, A.first - passed)
    for _, id in ipairs(redis.call('ZRANGE', key, int(first), int(first + A.count - #ids - 1))) do ids[#ids + 1] = id end
    if #ids >= A.count then break end
    passed = passed + redis.call('ZCARD', key)
  end
  return ids
end

local function newest_slice(key) return redis.call('ZRANGE', key, int(A.first), int(A.first + A.count - 1), 'REV') end

local ids = A.line == 'ready' and ready_slice() or newest_slice(LINES[A.line])
local slice = {}
for _, id in ipairs(ids) do
  local job = get(id, 'state', 'finished', 'reason', 'message', 'params', 'history')
  if job[1] and (A.line ~= 'ready' or job[6]) then
    slice[#slice + 1] = {id, job[1], job[2] or '', job[3] or '', job[4] or '', job[5] or '', job[6] or ''}
  end
end
return {#ids, slice}
