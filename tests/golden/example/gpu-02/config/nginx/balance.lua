-- Picks the peers of a request, best first. Done in the access phase, where a 503 can still be said
-- (an exit inside the balancer reaches the client as 500); the balancer then walks the list.
local balancer = require "ngx.balancer"
local in_flight = require "in_flight"
local state = require "state"

local COOKIE = "appliance_client"
local COOKIE_SECONDS = 30 * 86400
local MAX_PEERS = 3 -- per request: the first and two retries
local MOST_SEARCHED = 16
local MOST_RANKINGS = 10000
-- Kinds of requests: that any node can answer; about what one node has made; that only one node may be sent.
local PAGE, OWN, ONCE = "page", "own", "once"
-- What nginx does not ask a second time once it was sent.
local UNSAFE = { POST = true, LOCK = true, PATCH = true }

local M = {}
local turn = math.random(0, 1023) -- workers start at different places
local turns, turns_stamp = {}, nil
local rankings, rankings_stamp, rankings_count = {}, nil, 0

-- Keep `peers` for this request, or answer 503 when there is none.
local function offer(pool, peers)
    if #peers == 0 then return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE) end
    local ctx = ngx.ctx
    ctx.pool, ctx.peers, ctx.tried = pool, peers, 0
end

-- Any api replica serves any request: take turns.
local function next_apis(listed, stamp)
    if stamp ~= turns_stamp then
        local all = state.ready(listed)
        turns, turns_stamp = {}, stamp
        for first = 1, #all do
            turns[first] = {}
            for i = 1, math.min(#all, MAX_PEERS) do turns[first][i] = all[(first + i) % #all + 1] end
        end
    end
    turn = turn + 1
    return turns[turn % #turns + 1] or turns
end

function M.choose_api()
    return offer("api", state.choose("api", next_apis))
end

-- The client's own random name, kept in a cookie so that it comes back to the same node, and with balance "least_busy"
-- the mark of that node. Neither is a secret: who makes up a cookie has chosen a node, no more.
local function read_cookie()
    local found = ngx.re.match(ngx.var["cookie_" .. COOKIE] or "", [[^([0-9a-f]{32})(?:\.([0-9a-f]{8}))?$]], "jo")
    if found then return found[1], found[2] or nil end
end

local function write_cookie(value, secure)
    ngx.header["Set-Cookie"] = ("%s=%s; Path=/webui/; Max-Age=%d; HttpOnly; SameSite=Lax%s"):format(
        COOKIE, value, COOKIE_SECONDS, secure and "; Secure" or "")
end

-- Weighted rendezvous hashing (Thaler & Ravishankar 1998; weights: -w/ln h): when a node leaves, only its own clients
-- move. md5, because crc32 spreads similar names unevenly.
local function rank(peer, client, weight)
    local a, b, c, d, e, f = ngx.md5_bin(client .. "\0" .. peer.name):byte(1, 6)
    local unit = (((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f + 0.5) / 2 ^ 48
    return -weight / math.log(unit)
end

-- What a node has to do, by its own account and by what is under way through this gateway, for each unit of weight.
local function load_of(peer)
    return ((peer.busy or 0) + in_flight.count(peer.name) + 1) / peer.weight
end

local function mark_of(peer)
    return ngx.md5(peer.name):sub(1, 8)
end

local function first_of(ranked, most)
    local peers = {}
    for i = 1, math.min(#ranked, most) do peers[i] = ranked[i].peer end
    return peers
end

-- The nodes that take nothing new, those first that this client would be with if they did.
local function rank_retired(all, client)
    local ranked = {}
    for _, peer in ipairs(all) do
        if peer.weight == 0 then ranked[#ranked + 1] = { peer = peer, score = rank(peer, client, 1) } end
    end
    table.sort(ranked, function(one, other) return one.score > other.score end)
    return ranked
end

-- The nodes that take new requests, best for this client first; those on trial last for what is asked ONCE. After the
-- first one, for what is OWN to a node, those that take nothing new any more. `home`: the mark of the node that it stays
-- with.
local function rank_all(all, client, kind, by_load, home)
    local ranked = {}
    for _, peer in ipairs(all) do
        if peer.weight > 0 then
            ranked[#ranked + 1] = {
                peer = peer, score = rank(peer, client, peer.weight), load = by_load and load_of(peer) or 0,
                is_home = home ~= nil and mark_of(peer) == home, is_doubtful = kind == ONCE and peer.trial == true,
            }
        end
    end
    table.sort(ranked, function(one, other)
        if one.is_doubtful ~= other.is_doubtful then return other.is_doubtful end
        if one.is_home ~= other.is_home then return one.is_home end
        if one.load ~= other.load then return one.load < other.load end
        return one.score > other.score
    end)
    if kind == OWN then
        for i, one in ipairs(rank_retired(all, client)) do table.insert(ranked, math.min(i + 1, #ranked + 1), one) end
    end
    return first_of(ranked, kind == OWN and MOST_SEARCHED or MAX_PEERS)
end

-- Without a load the answer is the same as long as the state is: the clients that were here last are remembered.
local function rank_by_name(all, stamp, client, kind)
    if stamp ~= rankings_stamp or rankings_count >= MOST_RANKINGS then
        rankings, rankings_stamp, rankings_count = {}, stamp, 0
    end
    local key = kind == PAGE and client or client .. kind
    local found = rankings[key]
    if not found then
        found = rank_all(all, client, kind)
        rankings[key], rankings_count = found, rankings_count + 1
    end
    return found
end

local function choose_least_busy(name, home, secure, kind)
    local peers = state.choose("webui", function(all) return rank_all(all, name, kind, true, home) end)
    ngx.ctx.is_counted = true
    local mark = peers[1] and mark_of(peers[1])
    if mark and mark ~= home and kind ~= OWN then write_cookie(name .. "." .. mark, secure) end
    return offer("webui", peers)
end

-- A node for this client. "cookie": by its cookie; "ip_hash": by its address; "least_busy": the one with the least to
-- do, then always the same as long as that takes requests. `kind`: see above.
function M.choose_webui(balance, secure, kind)
    if UNSAFE[ngx.req.get_method()] then kind = ONCE end
    if balance == "ip_hash" then
        local client = ngx.var.remote_addr
        return offer("webui", state.choose("webui", function(all, stamp)
            return rank_by_name(all, stamp, client, kind)
        end))
    end
    local name, home = read_cookie()
    local is_new = not name
    name = name or ngx.var.request_id -- 16 random bytes in hex
    if balance == "least_busy" then return choose_least_busy(name, home, secure, kind) end
    if is_new then write_cookie(name, secure) end
    return offer("webui", state.choose("webui", function(all, stamp)
        return rank_by_name(all, stamp, name, kind)
    end))
end

-- `peer` is tried now.
function M.begin(peer)
    if ngx.ctx.is_counted then in_flight.begin(peer.name) end
end

-- Called by nginx for each try of a request; whether there is another try is proxy_next_upstream's decision.
function M.connect()
    local ctx = ngx.ctx
    local peers = ctx.peers
    if ctx.tried == 0 and #peers > 1 then balancer.set_more_tries(#peers - 1) end
    local peer = peers[ctx.tried % #peers + 1]
    ctx.tried = ctx.tried + 1
    ctx.began = ngx.now()
    if ctx.is_counted then in_flight.begin(peer.name) end
    local ok, reason = balancer.set_current_peer(peer.host, peer.port)
    if not ok then ngx.log(ngx.ERR, "peer ", peer.name, " refused: ", reason) end
end

return M
