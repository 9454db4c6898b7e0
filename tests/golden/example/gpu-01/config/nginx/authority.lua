-- Asks the api whether a request's key is good: GET /internal/auth, on connections that are kept.
local handshake = require "handshake"
local state = require "state"

local CREDENTIALS = { "Authorization", "X-Api-Key" }
local CONNECT_MS, SEND_MS, READ_MS = 500, 500, 1000 -- then another one is asked
local KEPT_MS, KEPT = 4000, 32 -- below the 5 s after which the api closes an idle connection
local LONGEST_HEAD = 8192
local MOST_ASKED = 3
-- A part that restarts would be back by then. The pauses grow, and no more than so many requests wait.
local PATIENCE_SECONDS, PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, MOST_WAITING = 3, 0.1, 0.5, 200

local M = {}
local turn = math.random(0, 1023)
local waiting = 0 -- requests of this worker

local function request()
    local lines = { "GET /internal/auth HTTP/1.1", "Host: api", "X-Request-Id: " .. ngx.var.appliance_request_id }
    for _, name in ipairs(CREDENTIALS) do
        local value = ngx.var["http_" .. name:lower():gsub("-", "_")]
        if value then lines[#lines + 1] = name .. ": " .. value:gsub("[%z\r\n]", "") end
    end
    return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

-- The peer's answer, or nil and why there is none.
local function exchange(socket, text)
    local sent, why = socket:send(text)
    if not sent then return nil, why end
    local read = socket:receiveuntil("\r\n\r\n")
    local head
    head, why = read(LONGEST_HEAD)
    if not head then return nil, why end
    return handshake.parse(head .. "\r\n\r\n"), "no HTTP answer"
end

-- One try with one peer: its status and its headers; nil and why it has none.
local function ask(peer, text)
    local socket = ngx.socket.tcp()
    socket:settimeouts(CONNECT_MS, SEND_MS, READ_MS)
    local connected, why = socket:connect(peer.host, peer.port, { pool_size = KEPT })
    if not connected then return nil, why end
    local answer
    answer, why = exchange(socket, text)
    if not answer then
        local reused = socket:getreusedtimes()
        socket:close()
        -- It was closed while it lay there.
        if reused and reused > 0 and why ~= "timeout" then return ask(peer, text) end
        return nil, why
    end
    -- A 204 has no body: the connection is clean.
    if answer.status == 204 then socket:setkeepalive(KEPT_MS, KEPT) else socket:close() end
    return answer.status, answer.headers
end

-- Appends `peers`, each time another one first.
local function append_in_turn(found, peers)
    for i = 1, #peers do found[#found + 1] = peers[(turn + i) % #peers + 1] end
end

-- Those that take requests, and then the others: one that lacks Redis knows the keys all the same.
local function willing(listed)
    local found = {}
    append_in_turn(found, state.ready(listed))
    append_in_turn(found, state.unready(listed))
    return found
end

-- Whether one of the peers finds the key good, and the headers of its answer; nil and what was wrong where none of them
-- could be asked.
local function ask_any(peers, text)
    local faults = {}
    for i = 1, math.min(#peers, MOST_ASKED) do
        local status, more = ask(peers[i], text)
        if status and status < 500 then return status >= 200 and status < 300, more end
        faults[i] = "api " .. peers[i].name .. " does not judge a key: " .. (status or more)
    end
    return nil, table.concat(faults, "; ")
end

-- The same of all apis, again and again for a while; no headers where none of them could be asked.
function M.ask()
    local text, give_up_at, pause = request(), ngx.now() + PATIENCE_SECONDS, PAUSE_SECONDS
    while true do
        turn = turn + 1
        local peers = state.choose("api", willing, "listed")
        local good, more = ask_any(peers, text)
        if good ~= nil then return good, more end
        if #peers == 0 then return nil end
        if ngx.now() + pause > give_up_at or waiting >= MOST_WAITING then
            ngx.log(ngx.WARN, more)
            return nil
        end
        waiting = waiting + 1
        ngx.sleep(pause)
        waiting = waiting - 1
        pause = math.min(2 * pause, LONGEST_PAUSE_SECONDS)
    end
end

return M
