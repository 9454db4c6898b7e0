-- Finishes a job and leases the next one to its worker: what both scripts would do one after the other, in one trip.
-- A        what commit.lua's has, and next, which is what claim.lua's has
-- ARGV[2]  the result: the text of COMMIT
-- result   {commit.lua's, unpack(claim.lua's)} · {"fenced"}: the worker may still be at work on what it has lost
--          {commit.lua's} where the claim failed
local committed = commit_result()
if committed == 'fenced' then return {committed} end
A = A.next
local fine, answer = pcall(claim_next)
if not fine then return {committed} end  -- the same claim by itself will say why
return {committed, unpack(answer)}
