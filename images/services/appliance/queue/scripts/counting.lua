-- Prepended to every script, after shared.lua: what the exporters tell of attempts. Counted in the very move that ends
-- the attempt, so that neither a restart nor a failover can tell the two apart; never at the price of that move (pcall).
-- One hash per host, K.counts .. host, which that host's exporter alone tells: a sum over all hosts has everything once.
-- Its fields, with tabs between their parts; <size> is a resolution, <bound> a spread's upper bound in seconds or `more`:
--   wait <size> <bound>|sum    from the submission to the first attempt: jobs, and ms in all
--   took <size> <bound>|sum    the attempts that made a result: jobs, and ms in all
--   done <size> <model> · failed <reason> <size>
--   video <size> · gpu <size> <GPU model> (both ms) · cost <size> (1e-9 USD)
local LABELS_LIMIT = 24

-- A value as a label, while there is room: what users send must not make series without end.
local function known_label(kind, value)
  if not value or value == '' then return 'other' end
  local key = K.labels .. kind
  if redis.pcall('SISMEMBER', key, value) == 1 then return value end
  local known = redis.pcall('SCARD', key)
  if type(known) ~= 'number' or known >= LABELS_LIMIT then return 'other' end
  redis.pcall('SADD', key, value)
  return value
end

local function counts_of_host(host) return host and host ~= '' and K.counts .. host end

local function counts_of(worker) return counts_of_host(string.match(worker or '', '^(.+)/')) end

local function count_in(counts, field, by) redis.pcall('HINCRBY', counts, field, by) end

local function count_spread(counts, name, size, ms)
  local bound = 'more'
  for _, seconds in ipairs(C.bounds) do
    if ms <= 1000 * seconds then
      bound = seconds
      break
    end
  end
  count_in(counts, name .. '\t' .. size .. '\t' .. bound, 1)
  count_in(counts, name .. '\t' .. size .. '\tsum', int(ms))
end

-- How long an attempt has had its worker's GPU, and what that has cost. K.rates, from the exporters: worker ->
-- "<USD per hour, or 0> <GPU model>". `job` has owner and started.
local function count_gpu_time(counts, job, size)
  local ms = math.max(0, now - (tonumber(job.started) or now))
  local rate = redis.pcall('HGET', K.rates, job.owner)
  local usd, model = string.match(type(rate) == 'string' and rate or '', '^(%S+) (.+)$')
  count_in(counts, 'gpu\t' .. size .. '\t' .. known_label('gpu', model), int(ms))
  local cost = ms * (tonumber(usd) or 0) * 1e9 / 3600000
  if cost > 0 then count_in(counts, 'cost\t' .. size, int(cost)) end
end

-- The end of an attempt without a result. `is_failure`: not handed back, refused or cancelled.
local function count_attempt(job, reason, is_failure)
  local counts = counts_of(job.owner)
  if not counts then return end
  local size = known_label('size', job.res)
  count_gpu_time(counts, job, size)
  if is_failure then count_in(counts, 'failed\t' .. (reason or 'UNKNOWN') .. '\t' .. size, 1) end
end

-- A job whose deadline passed in line counts for the host that found it: that of the caller.
local function count_expired(size)
  local counts = counts_of(A.worker) or counts_of_host(A.host)
  if counts then count_in(counts, 'failed\tTIMEOUT\t' .. known_label('size', size), 1) end
end
