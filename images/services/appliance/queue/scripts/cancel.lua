-- Cancels a waiting job at once; flags a running one, whose next heartbeat is told, and hints at it on a channel.
-- A        {id}
-- Every answer about a job writes, so that the WAIT behind this call speaks about this connection's newest offset.
-- result   {"cancelled"|"requested"|"final", state} | {"missing", ""}
local job = get(A.id, 'state', 'class', 'owner', 'fence', 'created', 'deadline')
if not job[1] then return {'missing', ''} end
if job[1] == 'running' then
  redis.call('HSET', K.j .. A.id, 'cancel', int(now))
  emit(A.id, 'cancel_requested', {state = 'running', fence = job[4], worker = job[3]})
  redis.pcall('PUBLISH', K.ctl, A.id)  -- a user without the right to it still gets the cancel
  return {'requested', 'running'}
end
if job[1] ~= 'queued' and job[1] ~= 'delayed' then
  redis.call('HSET', K.j .. A.id, 'asked_again', int(now))
  return {'final', job[1]}
end
redis.call('ZREM', ready_key(job[2]), A.id)
redis.call('ZREM', K.delayed, A.id)
local about = {owner = job[3], fence = job[4], created = job[5], deadline = job[6]}
return {'cancelled', finish(A.id, about, 'cancelled', 'CANCELLED', 'cancelled while waiting')}
