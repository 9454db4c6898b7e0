-- Gives a dead job another life: all its budgets again, in line like a new one of its user.
-- A        {id, slacks {priority: ms}}
-- Every answer about a job writes, so that the WAIT behind this call speaks about this connection's newest offset.
-- result   {"settled", "queued"} | {"replay", state} (asked before, and not final since) |
--          {"final", state} (not dead) | {"gone", "dead"} (its request is not kept any more) | {"missing", ""}
local job = get(A.id, 'state', 'replayed', 'user', 'cost', 'weight', 'prio', 'deadline', 'created', 'letter', 'fence',
  'owner', 'allowed')
if not job[1] then return {'missing', ''} end
redis.call('HSET', K.j .. A.id, 'asked_again', int(now))
if job[1] ~= 'dead' then return {job[2] and 'replay' or 'final', job[1]} end
if redis.call('PERSIST', K.p .. A.id) == 0 and redis.call('EXISTS', K.p .. A.id) == 0 then return {'gone', 'dead'} end

redis.call('HDEL', K.j .. A.id, 'crash', 'errs', 'oom', 'refusals', 'crash_workers', 'finished', 'reason', 'message',
  'letter', 'deadline', 'cancel', 'shun', 'start', 'unsure')
local score, start = fair_score(job[3], tonumber(job[4]), tonumber(job[5] or 1), A.slacks[job[6]])
redis.call('HSET', K.j .. A.id, 'score', score, 'replayed', int(now))
if start then redis.call('HSET', K.j .. A.id, 'start', start) end
if job[7] then  -- as much time as it had at first
  observe_epoch(false)
  set_deadline(A.id, tonumber(job[12] or tonumber(job[7]) - tonumber(job[8])))
end
redis.call('ZREM', K.done, A.id)
if job[9] then redis.call('XDEL', K.dead, job[9]) end
enter_ready(A.id)
redis.call('HINCRBY', K.stats, 'replayed', 1)
redis.call('PERSIST', K.jev .. A.id)
emit(A.id, 'queued', {state = 'queued', fence = job[10] or '0', worker = job[11] or '', replayed = true})
announce('replayed', A.id, job[11] or '', '', job[10] or '0')
return {'settled', 'queued'}
