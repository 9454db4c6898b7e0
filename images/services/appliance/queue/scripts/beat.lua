-- Renews a lease and carries progress.
-- A        {id, nonce, fence (text), step, total, phase; memory (a label), resumed and checkpoint (steps) and
--          params (JSON text: the job's parameters, for good) when told}
-- ARGV[2]  a JPEG in base64, when there is a new one
-- result   "ok" | "cancel" (renewed, but its user wants it stopped) | "fenced"
observe_epoch(false)
local job = get(A.id, 'state', 'nonce', 'fence', 'cancel', 'step', 'phase', 'memory', 'resumed', 'checkpoint', 'unsure')
if job[1] ~= 'running' or job[2] ~= A.nonce or job[3] ~= A.fence then return 'fenced' end
redis.call('ZADD', K.lease, int(now + C.lease_ms), A.id)

if ARGV[2] then redis.call('SET', K.pv .. A.id, ARGV[2], 'EX', 600) end
if A.params then redis.call('HSETNX', K.j .. A.id, 'params', A.params) end

-- Its agent makes it: it has looked for COMMIT, and there was none.
if job[10] and (A.phase ~= '' or A.step > 0) then redis.call('HDEL', K.j .. A.id, 'unsure') end

local changes = {}
local function note(field, before, value)
  if value and value ~= before then changes[#changes + 1], changes[#changes + 2] = field, value end
end
note('step', job[5] or '0', int(A.step))
note('phase', job[6] or '', A.phase)
note('memory', job[7] or '', A.memory)
note('resumed', job[8] or '0', A.resumed and int(A.resumed))
note('checkpoint', job[9], A.checkpoint and int(A.checkpoint))
if #changes > 0 then
  redis.call('HSET', K.j .. A.id, 'total', int(A.total), unpack(changes))
  emit(A.id, 'progress', {step = A.step, total_steps = A.total, phase = A.phase, memory = A.memory,
    resumed_from = A.resumed, checkpoint_step = A.checkpoint})
end
return job[4] and 'cancel' or 'ok'
