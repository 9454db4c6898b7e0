-- Asks the api whether a request's key is good: GET /internal/auth, on connections that are kept.
local handshake = require "handshake"
local state = require "state"

local CREDENTIALS = { "Authorization", "X-Api-Key" }
local CONNECT_MS, SEND_MS, READ_MS = 500, 500, 1000 -- then another one is asked
local KEPT_MS, KEPT = 4000, 32 -- below the 5 s after which the api closes an idle connection
local LONGEST_HEAD = 8192
local MOST_ASKED = 3
local PATIENCE_SECONDS, PAUSE_SECONDS = 3, 0.1 -- a part that restarts would be back by then

local M = {}
local turn = math.random(0, 1023)

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
        if reused and reused > 0 then return ask(peer, text) end -- it was closed while it lay there
        return nil, why
    end
    -- A 204 has no body: the connection is clean.
    if answer.status == 204 then socket:setkeepalive(KEPT_MS, KEPT) else socket:close() end
    return answer.status, answer.headers
end

-- Those that take requests, in turns, and then the others: one that lacks Redis knows the keys all the same.
local function willing(listed)
    local ready, found = state.ready(listed), {}
    for i = 1, #ready do found[i] = ready[(turn + i) % #ready + 1] end
    for _, peer in ipairs(listed) do
        if peer.weight == 0 then found[#found + 1] = peer end
    end
    return found
end

-- Whether one of the peers finds the key good, and the headers of its answer; nil where none of them could be asked.
local function ask_any(peers, text)
    for i = 1, math.min(#peers, MOST_ASKED) do
        local status, more = ask(peers[i], text)
        if status and status < 500 then return status >= 200 and status < 300, more end
        ngx.log(ngx.WARN, "api ", peers[i].name, " does not judge a key: ", status or more)
    end
end

-- The same of all apis, again and again for a while.
function M.ask()
    local text, give_up_at = request(), ngx.now() + PATIENCE_SECONDS
    while true do
        turn = turn + 1
        local peers = state.choose("api", willing)
        local good, headers = ask_any(peers, text)
        if good ~= nil or #peers == 0 or ngx.now() >= give_up_at then return good, headers end
        ngx.sleep(PAUSE_SECONDS)
    end
end

return M
