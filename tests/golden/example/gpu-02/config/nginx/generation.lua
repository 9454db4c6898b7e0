-- Which reload made this worker. An old worker lives on until its last WebSocket has ended; so that many reloads do not
-- pile up workers, the oldest give theirs up. Each reload reads this file anew, in the master, before any worker.
local dict = ngx.shared.routing
local MOST_ALIVE = 4
local STOP_SECONDS = 20 -- the entrypoint ends all that is left 10 s later

local M = {}
local own = (dict:get("generation") or 0) + 1
local exiting_since

-- In each worker: only a reload that succeeded counts.
function M.begin()
    if own > (dict:get("generation") or 0) then dict:set("generation", own) end
end

-- Whether what this worker still has open must end: too many reloads later, or when the gateway itself stops.
function M.is_over()
    if not ngx.worker.exiting() then return false end
    exiting_since = exiting_since or ngx.now()
    local newer = dict:get("generation") - own
    if newer > 0 then return newer >= MOST_ALIVE end
    return ngx.now() - exiting_since > STOP_SECONDS
end

return M
