-- Which peers may get traffic, as the controller last said it. The whole state is replaced by
--   PUT /state  {"epoch": "<controller's start, µs>", "version": n,
--                "pools": {"api": [{"name", "ip", "port", "weight"}],
--                          "webui": [{"name", "ip", "port", "weight", "busy", "trial"}]}, "orders": {…}}
-- weight 0: draining, what runs there goes on and nothing new begins; an api may still be asked whose key is good (its
-- weight may be missing). A peer that is not listed loses its WebSockets.
-- orders: nothing to the gateway, which gives them back to the controller that comes next.
-- busy (may be missing): how much the node itself says it has to do.
-- trial (may be missing): whether it gets only what another node can be asked after it.
-- 200 accepted, 400 malformed, 409 older than what is known; a refused state changes nothing. GET /state shows it.
-- The shared dict outlives a reload, not a restart: the controller pushes again every 2 s.
local cjson = require "cjson.safe"

local dict = ngx.shared.routing
local POOLS = { "api", "webui" }
local EMPTY = { pools = { api = {}, webui = {} } }
-- An older epoch is believed once the newer one has been silent for this long (its clock was ahead).
local SILENCE_SECONDS = 6
local MAX_WEIGHT, MAX_BUSY = 1000, 1e6
-- While nobody takes requests one waits, but not where nobody has for so long: a part that restarts, or fails over, would
-- be back by then.
local PATIENCE_SECONDS, LOOK_SECONDS, MOST_WAITING = 3, 0.05, 500

local M = {}
local known, known_by_name, known_by_address, known_stamp = EMPTY, {}, {}, nil
local looked_at
local waiting = 0 -- requests of this worker
local begun = ngx.now()

local function is_integer(value, low, high)
    return type(value) == "number" and value % 1 == 0 and value >= low and value <= high
end

local function is_address(ip)
    if type(ip) ~= "string" then return false end
    if ip:find(":", 1, true) then
        return ngx.re.find(ip, [[^[0-9a-fA-F:]{2,39}$]], "jo") ~= nil
    end
    local octets = ngx.re.match(ip, [[^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$]], "jo")
    for i = 1, 4 do
        if not octets or tonumber(octets[i]) > 255 then return false end
    end
    return true
end

local function check_peer(pool, peer, names)
    if type(peer) ~= "table" then return "is no object" end
    if type(peer.name) ~= "string" or not ngx.re.find(peer.name, [[^[\w./-]{1,128}$]], "jo") then return "has no name" end
    if names[peer.name] then return "repeats the name " .. peer.name end
    names[peer.name] = true
    if not is_address(peer.ip) then return "has no ip" end
    if not is_integer(peer.port, 1, 65535) then return "has no port" end
    local weight = peer.weight
    if pool == "api" and weight == nil then weight = 1 end
    if not (type(weight) == "number" and weight >= 0 and weight <= MAX_WEIGHT) then
        return "has no weight"
    end
    if peer.trial ~= nil and type(peer.trial) ~= "boolean" then return "has a trial that is neither true nor false" end
    if peer.busy ~= nil and not is_integer(peer.busy, 0, MAX_BUSY) then return "has a busy that is no number of jobs" end
end

local function check(state)
    if type(state) ~= "table" then return "the body is no JSON object" end
    if type(state.epoch) ~= "string" or not state.epoch:find("^%d+$") or #state.epoch > 16 then
        return "epoch is no string of at most 16 digits"
    end
    if not is_integer(state.version, 0, 2 ^ 53) then return "version is no whole number" end
    if type(state.pools) ~= "table" then return "pools is missing" end
    for _, pool in ipairs(POOLS) do
        local peers, count, names = state.pools[pool], 0, {}
        if type(peers) ~= "table" then return "pools." .. pool .. " is missing" end
        for _ in pairs(peers) do count = count + 1 end
        if count ~= #peers then return "pools." .. pool .. " is no list" end
        for i, peer in ipairs(peers) do
            local fault = check_peer(pool, peer, names)
            if fault then return ("pools.%s[%d] %s"):format(pool, i - 1, fault) end
        end
    end
end

-- Why `state` must not replace what is known, or nil.
local function is_older(state, body)
    local old = M.get()
    if not old.epoch then return nil end
    if state.epoch ~= old.epoch then
        local silent = ngx.now() - (dict:get("received_at") or 0)
        if tonumber(state.epoch) < tonumber(old.epoch) and silent < SILENCE_SECONDS then
            return "a controller that started later is at work: epoch " .. old.epoch
        end
    elseif state.version < old.version then
        return "version " .. old.version .. " of this epoch is known already"
    elseif state.version == old.version and body ~= dict:get("body") then
        return "version " .. old.version .. " of this epoch had another content"
    end
end

-- The current state and its stamp; decoded once per worker and change, and looked for once in each of nginx's milliseconds.
function M.get()
    local now = ngx.now()
    if now == looked_at then return known, known_stamp end
    looked_at = now
    local stamp = dict:get("stamp")
    if stamp ~= known_stamp then
        known = cjson.decode(dict:get("body") or "") or EMPTY
        known_stamp, known_by_name, known_by_address = stamp, {}, {}
        for _, pool in ipairs(POOLS) do
            local by_name, by_address = {}, {}
            for _, peer in ipairs(known.pools[pool]) do
                peer.host = peer.ip:find(":", 1, true) and "[" .. peer.ip .. "]" or peer.ip -- as it stands before a port
                peer.label = pool .. " " .. peer.name
                by_name[peer.name], by_address[peer.host .. ":" .. peer.port] = peer, peer
            end
            known_by_name[pool], known_by_address[pool] = by_name, by_address
        end
    end
    return known, stamp
end

local function lacks(kind, pool) return ("nobody %s in %s"):format(kind, pool) end

-- The peers of `pool` that `choose` takes; waits a while for the first one. `lacking`: of which kind none is found, "ready"
-- (the default) or "listed".
function M.choose(pool, choose, lacking)
    while true do
        local now, stamp = M.get()
        local found = choose(now.pools[pool], stamp)
        if #found > 0 then return found end
        local since = dict:get(lacks(lacking or "ready", pool)) or begun
        if ngx.now() >= since + PATIENCE_SECONDS or waiting >= MOST_WAITING then return found end
        waiting = waiting + 1
        ngx.sleep(LOOK_SECONDS)
        waiting = waiting - 1
    end
end

-- The peer at "ip:port", or nil.
function M.at(pool, address)
    return (known_by_address[pool] or {})[address]
end

-- The peer of this name as it is known now, or nil.
function M.find(pool, name)
    M.get()
    return (known_by_name[pool] or {})[name]
end

local function answer(status, body)
    ngx.status = status
    ngx.header["Content-Type"] = "application/json"
    ngx.say(cjson.encode(body))
end

local function those(peers, are_ready)
    local found = {}
    for _, peer in ipairs(peers) do
        if ((peer.weight or 1) > 0) == are_ready then found[#found + 1] = peer end
    end
    return found
end

-- Those of `peers` that take new requests.
function M.ready(peers) return those(peers, true) end

-- Those that only go on with what they have.
function M.unready(peers) return those(peers, false) end

-- Since when nobody of a kind is there.
local function note_who_lacks(pools)
    for _, pool in ipairs(POOLS) do
        for kind, count in pairs { ready = #M.ready(pools[pool]), listed = #pools[pool] } do
            local key = lacks(kind, pool)
            if count > 0 then dict:set(key, nil) else dict:add(key, ngx.now()) end
        end
    end
end

local function put()
    ngx.req.read_body()
    local body = ngx.req.get_body_data()
    local state = body and cjson.decode(body)
    local fault = check(state)
    if fault then return answer(400, { type = "state-malformed", detail = fault }) end
    local conflict = is_older(state, body)
    if conflict then return answer(409, { type = "state-outdated", detail = conflict }) end
    local stored, reason = dict:safe_set("body", body)
    if not stored then return answer(507, { type = "state-too-large", detail = reason }) end
    dict:set("received_at", ngx.now())
    note_who_lacks(state.pools)
    dict:set("stamp", state.epoch .. "/" .. state.version)
    return answer(200, { epoch = state.epoch, version = state.version })
end

function M.serve()
    local method = ngx.req.get_method()
    if method == "PUT" then return put() end
    if method ~= "GET" then return ngx.exit(405) end
    local received_at = dict:get("received_at")
    if not received_at then return ngx.exit(404) end
    answer(200, { age_seconds = ngx.now() - received_at, state = M.get() })
end

local function is_leaving()
    local file = io.open("/run/gateway/leaving")
    return file ~= nil and file:close()
end

-- GET /readyz: at least one api and one node can take requests, and this nginx is not about to stop.
function M.serve_readiness()
    local pools = M.get().pools
    local apis, webuis = #M.ready(pools.api), #pools.webui
    local status = apis > 0 and webuis > 0 and "ok" or "unavailable"
    if is_leaving() then status = "leaving" end
    if status ~= "ok" then ngx.header["Retry-After"] = "2" end
    answer(status == "ok" and 200 or 503, { status = status, api = apis, webui = webuis })
end

return M
