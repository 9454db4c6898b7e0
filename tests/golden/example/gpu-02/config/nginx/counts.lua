-- What became of the requests, in all and for each peer; GET /counts on the controller's socket shows it:
--   {"requests": n, "peers": {"<pool> <name>": {"status": {"2xx": n, …}, "passed": n, "failed": n, "seconds_sum": s,
--   "bounds": […], "within": […]}}}
-- since nginx was started, over reloads. Each try counts for its peer; `within` is cumulative, like a histogram's buckets.
-- A worker counts by itself and adds to the shared numbers ten times a second.
local cjson = require "cjson.safe"
local state = require "state"

local FLUSH_SECONDS = 0.1
local BOUNDS = { 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300 }
local CLASSES = { "1xx", "2xx", "3xx", "4xx", "5xx" }
local CLIENT_GONE = 499 -- what nginx notes where nobody waits for an answer any more
local dict = ngx.shared.counts

local M = {}
local requests, fresh = 0, {} -- since the last flush; for each peer, by its label, its numbers

local function bucket(seconds)
    local i = 1
    while i <= #BOUNDS and seconds > BOUNDS[i] do i = i + 1 end
    return i
end

local function add(numbers, what, number)
    numbers[what] = (numbers[what] or 0) + number
end

-- One try: with "0xx" where the peer did not answer. `says_nothing`: of how the peer is; as "not now", a 503, never does.
local function add_try(peer, status, seconds, says_nothing)
    local numbers = fresh[peer]
    if not numbers then
        numbers = {}
        fresh[peer] = numbers
    end
    add(numbers, CLASSES[math.floor(status / 100)] or "0xx", 1)
    if status ~= 503 and status ~= 0 and not says_nothing then add(numbers, status < 500 and "passed" or "failed", 1) end
    add(numbers, "seconds", seconds)
    add(numbers, bucket(seconds), 1)
end

-- The entries of nginx's lists of tries: `10.0.0.1:80, 10.0.0.2:80 : 10.0.0.3:80`, where ` : ` is an internal redirect.
local function entries(list)
    local found = {}
    for entry in (list or ""):gmatch("[^, ]+") do
        if entry ~= ":" then found[#found + 1] = entry end
    end
    return found
end

-- Where every one of several peers fails it is the request.
local function fails_everywhere(addresses, statuses)
    local is_alone = true
    for i, address in ipairs(addresses) do
        local status = tonumber(statuses[i]) or 0
        if status < 500 or status == 503 then return false end
        is_alone = is_alone and address == addresses[1]
    end
    return not is_alone
end

-- Nor does it say anything of a peer that it lacks what the next one was asked for then.
local function add_tries(pool)
    local addresses, statuses = entries(ngx.var.upstream_addr), entries(ngx.var.upstream_status)
    local times, everywhere = entries(ngx.var.upstream_response_time), fails_everywhere(addresses, statuses)
    for i, address in ipairs(addresses) do
        local peer, status = state.at(pool, address), tonumber(statuses[i]) or 0
        local was_missing = status < 500 and i < #addresses
        if peer then add_try(peer.label, status, tonumber(times[i]) or 0, everywhere or was_missing) end
    end
end

-- A moment as ISO 8601, down to the millisecond that nginx's clock has.
local day, day_text, moment, moment_text
local function iso(now)
    if now ~= moment then
        local whole = math.floor(now)
        if whole ~= day then day, day_text = whole, os.date("!%Y-%m-%dT%H:%M:%S", whole) end
        moment, moment_text = now, ("%s.%03d+00:00"):format(day_text, (now - whole) * 1000)
    end
    return moment_text
end

-- In the log phase of every request, before its line is written. Nearly all end at their first peer, with its status:
-- of these nothing is asked that nginx would first have to put into words.
function M.note()
    requests = requests + 1
    local now, ctx = ngx.now(), ngx.ctx
    ngx.var.milliseconds = iso(now)
    if ctx.tried == 1 and ngx.status ~= CLIENT_GONE then
        return add_try(ctx.peers[1].label, ngx.status, now - ctx.began)
    end
    -- More tries, or an error page, on the way to which the context is lost.
    if ctx.tried == 0 or not ngx.var.upstream_addr then return end
    add_tries(ctx.pool or ngx.var.request_uri:find("^/webui/") and "webui" or "api")
end

local function flush()
    if requests == 0 then return end
    dict:incr("requests", requests, 0)
    for peer, numbers in pairs(fresh) do
        for what, number in pairs(numbers) do
            local _, fault = dict:incr(peer .. "\0" .. what, number, 0)
            if fault then ngx.log(ngx.ERR, "a counter is lost: ", fault) end
        end
    end
    requests, fresh = 0, {}
end

-- In each worker; its last timer comes when it ends.
function M.start()
    ngx.timer.every(FLUSH_SECONDS, flush)
end

local function peer_document(numbers)
    local status, within, total = cjson.decode("{}"), {}, 0
    for name, number in pairs(numbers) do
        if name:find("^%dxx$") then status[name] = number end
    end
    for i = 1, #BOUNDS do
        total = total + (numbers[tostring(i)] or 0)
        within[i] = total
    end
    return {
        status = status, passed = numbers.passed or 0, failed = numbers.failed or 0,
        seconds_sum = numbers.seconds or 0, bounds = BOUNDS, within = within,
    }
end

function M.serve()
    local peers = {}
    for _, key in ipairs(dict:get_keys(0)) do
        local peer, name = key:match("^(.+)%z(.+)$")
        if peer then
            peers[peer] = peers[peer] or {}
            peers[peer][name] = dict:get(key)
        end
    end
    for peer, numbers in pairs(peers) do peers[peer] = peer_document(numbers) end
    ngx.header["Content-Type"] = "application/json"
    ngx.say(cjson.encode({ requests = dict:get("requests") or 0, peers = next(peers) and peers or cjson.empty_object }))
end

return M
