-- Leases the best waiting job that fits to a worker that holds none.
-- A        {worker, nonce, boot (of the process, or ""), turn (grows from one nonce of the process to the next),
--          can (its capabilities; without it it can run anything), gpu (a label, where it has one)};
--          the same nonce again returns the same job (a lost answer costs nothing)
-- result   {"job", id, fence, attempts, deadline ms or "", now ms, request body, outcomes JSON, ooms, user,
--          1 where more jobs wait that it may have, else 0}
--          {"none", ms to the next due item or "-1", outcomes JSON}
return claim_next()
