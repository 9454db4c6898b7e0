-- What a slice of one line has behind it: how its jobs' attempts ended, and with which parameters. Reads only.
-- A        {line (done | delayed | lease), first (0 is the newest, or what is due last), count}
-- result   {how many jobs the slice has, {{id, state, finished (ms), reason, message, params, history}, ...}}; "" for
--          what there is not; jobs that are gone are left out
local LINES = {done = K.done, delayed = K.delayed, lease = K.lease}
local ids = redis.call('ZRANGE', LINES[A.line], int(A.first), int(A.first + A.count - 1), 'REV')
local slice = {}
for _, id in ipairs(ids) do
  local job = get(id, 'state', 'finished', 'reason', 'message', 'params', 'history')
  if job[1] then
    slice[#slice + 1] = {id, job[1], job[2] or '', job[3] or '', job[4] or '', job[5] or '', job[6] or ''}
  end
end
return {#ids, slice}
