-- Prepended to every script, after shared.lua: what the exporters tell of attempts. Noted in the very move that ends
-- the attempt, so that neither a restart nor a failover can tell the two apart; never at the price of that move (pcall).
-- A move writes one line of K.tally, with tabs between its parts, and `tick` adds them up (adding.lua):
--   wait <worker> <size> <ms>                       from the submission to the first attempt
--   done <worker> <size> <GPU ms> <ms, or "" where another attempt had made the result> <video ms> <model>
--   end  <worker> <size> <GPU ms> <reason, or "" where it is no failure>
--   late <worker, or host and "/"> <size>           its deadline passed in line
-- into one hash per host, K.counts .. host, which that host's exporter alone tells: a sum over all hosts has everything
-- once. Its fields, <size> being a resolution and <bound> a spread's upper bound in seconds or `more`:
--   wait <size> <bound>|sum    jobs, and ms in all
--   took <size> <bound>|sum    the attempts that made a result: jobs, and ms in all
--   done <size> <model> · failed <reason> <size>
--   video <size> · gpu <size> <GPU model> (both ms) · cost <size> (1e-9 USD)
local function note_line(...)
  local written, line = pcall(table.concat, {...}, '\t')
  if written then redis.pcall('RPUSH', K.tally, line) end
end

-- How long an attempt has had its worker's GPU. `job` has started.
local function gpu_ms(job) return int(math.max(0, now - (tonumber(job.started) or now))) end

-- The end of an attempt without a result. `is_failure`: not handed back, refused or cancelled.
local function count_attempt(job, reason, is_failure)
  note_line('end', job.owner or '', job.res or '', gpu_ms(job), is_failure and (reason or 'UNKNOWN') or '')
end

-- A job whose deadline passed in line counts for the host that found it: that of the caller.
local function count_expired(size) note_line('late', A.worker or (A.host or '') .. '/', size or '') end
