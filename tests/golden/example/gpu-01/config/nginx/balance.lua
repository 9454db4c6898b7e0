-- Picks the peers of a request, best first. Done in the access phase, where a 503 can still be said
-- (an exit inside the balancer reaches the client as 500); the balancer then walks the list.
local balancer = require "ngx.balancer"
local state = require "state"

local COOKIE = "appliance_client"
local COOKIE_SECONDS = 30 * 86400
local MAX_PEERS = 3 -- per request: the first and two retries

local M = {}
local turn = math.random(0, 1023) -- workers start at different places

-- Keep `peers` for this request, or answer 503 when there is none.
local function offer(peers)
    if #peers == 0 then return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE) end
    ngx.ctx.peers, ngx.ctx.tried = peers, 0
end

-- Any api replica serves any request: take turns.
function M.choose_api()
    local all, peers = state.get().pools.api, {}
    turn = turn + 1
    for i = 1, math.min(#all, MAX_PEERS) do
        peers[i] = all[(turn + i) % #all + 1]
    end
    return offer(peers)
end

-- The client's own random name, kept in a cookie so that it comes back to the same node.
local function client_name(secure)
    local name = ngx.var["cookie_" .. COOKIE]
    if name and ngx.re.find(name, "^[0-9a-f]{32}$", "jo") then return name end
    name = ngx.var.request_id -- 16 random bytes in hex
    ngx.header["Set-Cookie"] = ("%s=%s; Path=/webui/; Max-Age=%d; HttpOnly; SameSite=Lax%s"):format(
        COOKIE, name, COOKIE_SECONDS, secure and "; Secure" or "")
    return name
end

-- Weighted rendezvous hashing (Thaler & Ravishankar 1998; weights: -w/ln h): when a node leaves, only its own clients
-- move. md5, because crc32 spreads similar names unevenly.
local function rank(peer, client)
    local a, b, c, d, e, f = ngx.md5_bin(client .. "\0" .. peer.name):byte(1, 6)
    local unit = (((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f + 0.5) / 2 ^ 48
    return -peer.weight / math.log(unit)
end

-- A node for this client: by its cookie, or with balance "ip_hash" by its address.
function M.choose_webui(balance, secure)
    local ranked, peers = {}, {}
    local client = balance == "ip_hash" and ngx.var.remote_addr or client_name(secure)
    for _, peer in ipairs(state.get().pools.webui) do
        if peer.weight > 0 then ranked[#ranked + 1] = { peer = peer, score = rank(peer, client) } end
    end
    table.sort(ranked, function(one, other) return one.score > other.score end)
    for i = 1, math.min(#ranked, MAX_PEERS) do peers[i] = ranked[i].peer end
    return offer(peers)
end

-- Called by nginx for each try of a request; whether there is another try is proxy_next_upstream's decision.
function M.connect()
    local ctx = ngx.ctx
    local peers = ctx.peers
    if ctx.tried == 0 and #peers > 1 then balancer.set_more_tries(#peers - 1) end
    local peer = peers[ctx.tried % #peers + 1]
    ctx.tried = ctx.tried + 1
    local ip = peer.ip:find(":", 1, true) and "[" .. peer.ip .. "]" or peer.ip
    local ok, reason = balancer.set_current_peer(ip, peer.port)
    if not ok then ngx.log(ngx.ERR, "peer ", peer.name, " refused: ", reason) end
end

return M
