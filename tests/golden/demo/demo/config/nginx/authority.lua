-- Asks the api whether a request's key is good: GET /internal/auth, on connections that are kept.
local handshake = require "handshake"
local state = require "state"

local CREDENTIALS = { "Authorization", "X-Api-Key" }
local CONNECT_MS, SEND_MS, READ_MS = 500, 500, 1000 -- then another one is asked
local KEPT_MS, KEPT = 4000, 32 -- below the 5 s after which the api closes an idle connection
local LONGEST_HEAD = 8192

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

local function all_of_them(peers) return peers end

-- Whether the key is good, and the headers of the api's answer; nil where no api could be asked.
function M.ask()
    local peers, text = state.choose("api", all_of_them), request()
    turn = turn + 1
    for i = 1, math.min(#peers, 3) do
        local peer = peers[(turn + i) % #peers + 1]
        local status, more = ask(peer, text)
        if status and status < 500 then return status >= 200 and status < 300, more end
        ngx.log(ngx.WARN, "api ", peer.name, " does not judge a key: ", status or more)
    end
end

return M
