-- Cancels a waiting job at once; flags a running one, whose next heartbeat is told.
-- A        {id}
-- Every answer about a job writes, so that the WAIT behind this call speaks about this connection's newest offset.
-- result   {"cancelled"|"requested"|"final", state} | {"missing", ""}
local job = get(A.id, 'state', 'class')
if not job[1] then return {'missing', ''} end
if job[1] == 'running' then
  redis.call('HSET', K.j .. A.id, 'cancel', int(now))
  emit(A.id, 'cancel_requested', {state = 'running'})
  return {'requested', 'running'}
end
if job[1] ~= 'queued' and job[1] ~= 'delayed' then
  redis.call('HSET', K.j .. A.id, 'asked_again', int(now))
  return {'final', job[1]}
end
redis.call('ZREM', ready_key(job[2]), A.id)
redis.call('ZREM', K.delayed, A.id)
return {'cancelled', finish(A.id, 'cancelled', 'CANCELLED', 'cancelled while waiting')}
