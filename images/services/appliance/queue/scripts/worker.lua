-- A worker's heartbeat and description; `job` in its record belongs to claim, commit and fail.
-- A        {worker, boot_id, state, engine, fingerprint, synthetic ("1" or "0")}
-- result   the new seq
redis.call('HSET', K.w .. A.worker, 'boot_id', A.boot_id, 'state', A.state, 'engine', A.engine,
  'fingerprint', A.fingerprint, 'synthetic', A.synthetic, 'seen', int(now))
redis.call('ZADD', K.workers, int(now), A.worker)
return redis.call('HINCRBY', K.w .. A.worker, 'seq', 1)
