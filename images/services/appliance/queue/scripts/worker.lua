-- A worker's heartbeat and description; `job` in its record belongs to claim, commit and fail.
-- A        {worker, boot_id, state, engine, fingerprint, synthetic ("1" or "0"); capabilities and gpu (JSON texts)};
--          without capabilities (its webui is not up yet) they stay what they were
-- result   {the new seq, or 0 to a process that another one has replaced under this name; the order about it, or "";
--          outcomes JSON: of the attempt that the worker's former process has left}
-- An order that cannot be read is none: a heartbeat must not fail of it. One whose time is over goes.
local function order_about(worker)
  local text = redis.call('HGET', K.orders, worker)
  if not text then return '' end
  local read, order = pcall(cjson.decode, text)
  if not read or type(order) ~= 'table' or type(order.order) ~= 'string' then return '' end
  if type(order['until']) == 'number' and now >= order['until'] then
    redis.call('HDEL', K.orders, worker)
    return ''
  end
  return order.order
end

local record = redis.call('HMGET', K.w .. A.worker, 'boot_id', 'job', 'former', 'up')
if not change_boot(A.worker, record, A.boot_id) then return {0, '', list(outcomes)} end
local up = A.state == 'stopped' and '0' or '1'
redis.call('HSET', K.w .. A.worker, 'boot_id', A.boot_id, 'state', A.state, 'engine', A.engine,
  'fingerprint', A.fingerprint, 'synthetic', A.synthetic, 'gpu', A.gpu or '', 'seen', int(now), 'up', up)
if A.capabilities then redis.call('HSET', K.w .. A.worker, 'capabilities', A.capabilities) end
redis.call('ZADD', K.workers, int(now), A.worker)
if up == '0' then
  if record[4] == '1' then announce('worker_down', '', A.worker, 'stopped') end
elseif record[4] ~= '1' then
  announce('worker_up', '', A.worker)
elseif record[1] ~= A.boot_id then
  announce('worker_up', '', A.worker, 'restarted')
end
return {redis.call('HINCRBY', K.w .. A.worker, 'seq', 1), order_about(A.worker), list(outcomes)}
