-- Prepended to every script, after attempts.lua: how a job is finished. What A and ARGV have, commit.lua tells.
local AVERAGES_LIMIT = 400  -- fields; resolutions beyond are counted with all

-- Exponential moving averages: of the run time, and of its ratio to the estimated cost.
local function average(took, cost, resolution)
  local fields = {'average_run_ms', 'average_ratio'}
  if resolution and resolution ~= '' then
    fields[3], fields[4] = 'run:' .. resolution, 'ratio:' .. resolution
  end
  local before = redis.call('HMGET', K.stats, unpack(fields))
  if fields[3] and not before[3] and redis.call('HLEN', K.stats) >= AVERAGES_LIMIT then
    fields[3], fields[4] = nil, nil
  end
  local values = {}
  for index, field in ipairs(fields) do
    local value = index % 2 == 1 and took or took / math.max(1, cost)
    local averaged = before[index] and 0.8 * tonumber(before[index]) + 0.2 * value or value
    values[#values + 1] = field
    values[#values + 1] = index % 2 == 1 and int(averaged) or string.format('%.6f', averaged)
  end
  redis.call('HSET', K.stats, unpack(values))
end

local function commit_result()
  local job = get_attempt(A.id)
  if job.nonce ~= A.nonce or job.fence ~= A.fence then return 'fenced' end
  if job.state ~= 'running' then return job.state == 'done' and 'replay' or 'fenced' end
  leave_running(A.id, job.entry, job.owner)
  if not A.adopted then
    local took, cost = math.max(0, now - tonumber(job.started)), tonumber(job.cost or 0)
    local before = redis.call('HMGET', K.w .. job.owner, 'done', 'pace')
    local pace = tonumber(before[2] or 0) + took / math.max(1, cost)
    redis.call('HSET', K.w .. job.owner, 'done_at', now, 'fails', '', 'done', tonumber(before[1] or 0) + 1,
      'pace', string.format('%.4f', pace))
    average(took, cost, job.res)
  end
  local took_ms = A.adopted and '' or int(math.max(0, now - tonumber(job.started)))
  note_line('done', job.owner, job.res or '', gpu_ms(job), took_ms, A.video_ms and int(A.video_ms) or '', A.model or '')
  local more = {'result', ARGV[2], 'history', history_with(job, 'done')}
  job.fence = A.fence  -- the event names who did commit, not who should have
  finish(A.id, job, 'done', nil, nil, more)
  return 'done'
end
