-- Finishes a job with the result that won COMMIT on storage; only its present holder may.
-- A        {id, nonce, fence (text), adopted (the result is another attempt's)}
-- ARGV[2]  the result: the text of COMMIT
-- result   "done" | "replay" (this very call was answered before) | "fenced"
local holds, state, mine = owns(A.id, A.nonce, A.fence)
if not holds then
  if mine and state == 'done' then return 'replay' end
  return 'fenced'
end
leave_running(A.id)
redis.call('HSET', K.j .. A.id, 'result', ARGV[2])
if not A.adopted then
  local took = now - tonumber(redis.call('HGET', K.j .. A.id, 'started'))
  local average = tonumber(redis.call('HGET', K.stats, 'average_run_ms') or took)
  redis.call('HSET', K.stats, 'average_run_ms', int(0.8 * average + 0.2 * took))
end
finish(A.id, 'done')
return 'done'
