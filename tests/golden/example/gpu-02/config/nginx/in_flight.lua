-- How many requests of this gateway each node has under way, for balance "least_busy". Shared by all workers; what a
-- worker that died had begun is taken off again.
local dict = ngx.shared.in_flight
local PRUNE_SECONDS = 5

local M = {}
-- By request id: ngx.ctx and variables are lost on the way to an error page, this is not.
local node_of = {}

local function add(node, number)
    dict:incr(node, number, 0)
    dict:incr(ngx.worker.pid() .. " " .. node, number, 0)
end

function M.count(node)
    return dict:get(node) or 0
end

-- This request is with `node` now, whatever node it was with before.
function M.begin(node)
    local id = ngx.var.request_id
    if node_of[id] then add(node_of[id], -1) end
    node_of[id] = node
    add(node, 1)
end

-- In the log phase of every request.
function M.finish()
    local id = ngx.var.request_id
    local node = node_of[id]
    if not node then return end
    node_of[id] = nil
    add(node, -1)
end

local function is_alive(pid)
    local file = io.open("/proc/" .. pid .. "/stat")
    if file then file:close() end
    return file ~= nil
end

local function prune()
    for _, key in ipairs(dict:get_keys(0)) do
        local pid, node = key:match("^(%d+) (.*)$")
        -- Whoever makes the mark takes it off, once.
        if pid and not is_alive(pid) and dict:add("pruned " .. key, true, 60) then
            dict:incr(node, -(dict:get(key) or 0), 0)
            dict:delete(key)
        end
    end
end

-- In each worker.
function M.start()
    prune()
    ngx.timer.every(PRUNE_SECONDS, prune)
end

return M
