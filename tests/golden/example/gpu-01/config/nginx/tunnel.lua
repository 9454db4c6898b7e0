-- WebSockets, byte by byte. nginx's own proxy never lets go of a node that froze or was cut off; here whoever the
-- controller took from the list loses its WebSockets within WATCH_SECONDS, so that their pages look for another node.
local balance = require "balance"
local frames = require "frames"
local generation = require "generation"
local handshake = require "handshake"
local state = require "state"

local CONNECT_SECONDS = 1
local HANDSHAKE_SECONDS = 10 -- all peers together
local SEND_SECONDS = 60 -- whoever takes nothing for so long is not there any more
local IDLE_SECONDS = 3600
local WATCH_SECONDS = 0.25
local FOREVER_SECONDS = 86400 * 20 -- the watcher knows better when to stop reading
local CHUNK = 16384
local LONGEST_HEAD, LONGEST_BODY = 16384, 65536
local RESTART = frames.close(1012, "the node is gone")
local GOING = frames.close(1001, "idle or restarting")

local M = {}

local function is_listed(pool, peer)
    local now = state.find(pool, peer.name)
    return now ~= nil and now.ip == peer.ip and now.port == peer.port
end

local function set_timeouts(socket, read_seconds)
    socket:settimeouts(CONNECT_SECONDS * 1000, SEND_SECONDS * 1000, read_seconds * 1000)
end

-- The peer's answer to `request` and what it sent after the head; nil and the reason where it has none.
local function ask(socket, pool, peer, request, deadline)
    local sent, why = socket:send(request)
    if not sent then return nil, why end
    set_timeouts(socket, WATCH_SECONDS)
    local received = ""
    while true do
        local part, reason = socket:receiveany(CHUNK)
        received = received .. (part or "")
        local _, last = received:find("\r\n\r\n", 1, true)
        if last then return handshake.parse(received:sub(1, last)), received:sub(last + 1) end
        if #received > LONGEST_HEAD then return nil, "too long a head" end
        if not part and reason ~= "timeout" then return nil, reason end
        if not is_listed(pool, peer) then return nil, "it left" end
        if ngx.now() > deadline then return nil, "timeout" end
    end
end

-- Open a socket to the first of the request's peers that answers: {socket, peer, answer, rest}, or nil and a status.
local function reach(pool, request)
    local deadline, why = ngx.now() + HANDSHAKE_SECONDS, nil
    for _, peer in ipairs(ngx.ctx.peers) do
        local socket, ok, answer, rest = ngx.socket.tcp(), nil, nil, nil
        set_timeouts(socket, WATCH_SECONDS)
        ok, why = socket:connect(peer.host, peer.port)
        if ok then
            socket:setoption("tcp-nodelay", 1)
            balance.begin(peer)
            answer, rest = ask(socket, pool, peer, request, deadline)
            if answer then return { socket = socket, pool = pool, peer = peer, answer = answer, rest = rest } end
            why = rest or "no HTTP answer"
            socket:close()
        end
        ngx.log(ngx.WARN, "no WebSocket with ", peer.name, ": ", why)
        if ngx.now() > deadline then break end
    end
    return nil, why == "timeout" and 504 or 502
end

-- Pass the peer's refusal on, with its body where that is small and of a known length.
local function refuse(node)
    local status, headers = node.answer.status, node.answer.headers
    local length = tonumber(headers["content-length"])
    local missing = length and length <= LONGEST_BODY and length - #node.rest
    local rest = ""
    if missing and missing > 0 then
        set_timeouts(node.socket, CONNECT_SECONDS)
        rest = node.socket:receive(missing)
    end
    node.socket:close()
    if status < 400 then return ngx.exit(502) end
    if not missing or not rest or length == 0 then return ngx.exit(status) end
    ngx.status = status
    ngx.header["Content-Type"] = headers["content-type"]
    ngx.print((node.rest .. rest):sub(1, length))
end

local function pump(tunnel, from, to, sent)
    while true do
        local bytes, why = from:receiveany(CHUNK)
        if not bytes then return why end
        tunnel.active = ngx.now()
        local passed
        passed, why = sent(to, bytes)
        if not passed then return why end
    end
end

local function send_to_node(socket, bytes)
    return socket:send(bytes)
end

-- The close frame that `tunnel` must end with; returns when it must.
local function watch(tunnel)
    while true do
        ngx.sleep(WATCH_SECONDS)
        if not is_listed(tunnel.pool, tunnel.peer) then return RESTART end
        if generation.is_over() then return RESTART end
        if ngx.now() - tunnel.active > IDLE_SECONDS then return GOING end
    end
end

-- Both directions until one of them ends, or the watcher says so.
local function join(node, client)
    local tunnel = { pool = node.pool, peer = node.peer, active = ngx.now() }
    local stream = frames.follow()
    local is_sending = false
    local function send_to_client(socket, bytes)
        is_sending = true
        local sent, why = socket:send(bytes)
        is_sending = false
        frames.pass(stream, bytes)
        return sent, why
    end
    set_timeouts(node.socket, FOREVER_SECONDS)
    set_timeouts(client, FOREVER_SECONDS)
    if node.rest ~= "" and not send_to_client(client, node.rest) then return end
    local watcher = ngx.thread.spawn(watch, tunnel)
    local up = ngx.thread.spawn(pump, tunnel, client, node.socket, send_to_node)
    local down = ngx.thread.spawn(pump, tunnel, node.socket, client, send_to_client)
    local _, last_word = ngx.thread.wait(watcher, up, down)
    if (last_word == RESTART or last_word == GOING) and not is_sending and frames.is_between(stream) then
        client:settimeouts(1000, 1000, 1000)
        client:send(last_word)
    end
    -- Not before: a thread that is killed while it reads takes its socket along.
    for _, thread in ipairs({ watcher, up, down }) do ngx.thread.kill(thread) end
end

-- The content of a location for WebSockets to `pool`; balance has chosen the peers. `otherwise`: the location for
-- requests that ask for no WebSocket.
function M.serve(pool, otherwise)
    if ngx.var.websocket == "" then return ngx.exec(otherwise) end
    local request, fault = handshake.request(pool)
    if not request then
        ngx.log(ngx.INFO, "no WebSocket: ", fault)
        return ngx.exit(400)
    end
    local node, status = reach(pool, request)
    if not node then return ngx.exit(status) end
    ngx.var.socket_peer = node.peer.host .. ":" .. node.peer.port
    if not handshake.is_agreed(node.answer) then return refuse(node) end
    local client, why
    if handshake.agree(node.answer) then
        client, why = ngx.req.socket(true)
        if client then join(node, client) else ngx.log(ngx.ERR, "no raw socket: ", why) end
    end
    node.socket:close()
end

return M
