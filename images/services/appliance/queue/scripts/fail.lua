-- Ends an attempt without a result; each kind has its own budget.
-- A        {id, nonce, fence (text), kind, reason, message, jitter 0..1; where (in the code) when known}
--          kind: error | oom | crash (counts distinct workers) | release (free)
--          refused (free, but later and later) | permanent | cancelled
-- result   {"settled", new state} | {"replay", state} | {"fenced", state or ""}
local holds, state, mine = owns(A.id, A.nonce, A.fence)
if not holds then return {mine and 'replay' or 'fenced', state or ''} end
return {'settled', end_attempt(A.id, A.kind, A.reason, A.message, A.where)}
