-- Renews a lease and carries progress.
-- A        {id, nonce, fence (text), step, total, phase}
-- result   "ok" | "cancel" (renewed, but its user wants it stopped) | "fenced"
observe_epoch()
if not owns(A.id, A.nonce, A.fence) then return 'fenced' end
redis.call('ZADD', K.lease, int(now + A.lease_ms), A.id)
local before = get(A.id, 'step', 'phase', 'cancel')
if before[1] ~= int(A.step) or before[2] ~= A.phase then
  redis.call('HSET', K.j .. A.id, 'step', int(A.step), 'total', int(A.total), 'phase', A.phase)
  emit(A.id, 'progress', {step = A.step, total_steps = A.total, phase = A.phase})
end
if before[3] then return 'cancel' end
return 'ok'
