-- What a request brings to show who sends it, and how much it wants kept before anyone has looked at that.
local authority = require "authority"

local IN_MEMORY = 16384 -- client_body_buffer_size: a larger body goes to /tmp
local BODILESS = { GET = true, HEAD = true, DELETE = true, OPTIONS = true }
-- Answers that only a request with a valid key gets from the api; a 400 may come from before it looks.
local OF_A_VALID_KEY = { [404] = true, [409] = true, [422] = true }
local KNOWN_SECONDS = 60
-- For so long a key that the api has found good is not asked for again. With the second in which the api notices a
-- changed file, a revoked key counts no longer after two.
local GOOD_SECONDS = 0.5
local GUESSES, GUESS_SECONDS = 30, 60 -- wrong keys per address
local LOOK_SECONDS = 0.1
local LEARN_SECONDS = 0.005
local MOST_REMEMBERED = 1000

local dict = ngx.shared.credentials

local M = {}

-- The same headers come again and again; what is made of the last ones is kept, per worker.
local keys, keys_count = {}, 0

-- Without the blanks and tabs around it, which the api's server drops, too: with each of them it would be another key
-- here. In two steps, of which neither looks at anything twice: strangers send as many tabs as fit.
local function trimmed(value)
    local first = value:find("[^ \t]")
    return first and value:sub(first):match("^.*[^ \t]") or ""
end

local function key_in(authorization)
    local scheme, value = authorization:match("^([^ ]*) ?(.*)$")
    if scheme == "" then return nil end
    value = value:gsub("[^\33-\126]", "")
    if scheme:lower() ~= "basic" then return value end
    local decoded = ngx.decode_base64(value)
    return decoded and decoded:match(":(.*)$") or value
end

-- The API key where the api looks for it (appliance/api/auth.py), whatever stands around it: another header, a user
-- name, blanks. nil where there is none.
local function presented_key()
    local key = ngx.var.http_x_api_key
    if key then return trimmed(key:match("^[^,]*")) end -- the first of several
    local authorization = ngx.var.http_authorization
    if not authorization then return nil end
    authorization = trimmed(authorization)
    key = keys[authorization]
    if key == nil then
        if keys_count >= MOST_REMEMBERED then keys, keys_count = {}, 0 end
        key = key_in(authorization) or false
        keys[authorization], keys_count = key, keys_count + 1
    end
    return key or nil
end

-- Whom the limits count: the key, else the address. Hashed: long junk must not fill the zones.
function M.client()
    local key = presented_key()
    return key and ngx.md5(key) or ngx.var.binary_remote_addr
end

-- The api has taken this key within the last minute.
local function is_known(key)
    return key ~= nil and dict:get("known " .. ngx.md5(key)) ~= nil
end

local function is_good(key)
    return key ~= nil and dict:get("good " .. ngx.md5(key)) ~= nil
end

-- What the api says of a key that it finds good; ends the request where it does not.
local function ask_for(key)
    local good, said = false, nil
    if key then good, said = authority.ask() end
    if good then
        local name = ngx.md5(key)
        dict:set("good " .. name, true, GOOD_SECONDS)
        dict:set("known " .. name, true, KNOWN_SECONDS)
        return said
    end
    if good == nil then return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE) end
    ngx.header["WWW-Authenticate"] = said and said["www-authenticate"] or 'Basic realm="animatediff-ha"'
    return ngx.exit(ngx.HTTP_UNAUTHORIZED)
end

-- Ends the request unless the api finds its key good.
local function demand(key)
    if not is_good(key) then ask_for(key) end
end

-- Whether anybody has tried keys lately: hardly ever, so it is looked at now and then only.
local is_guessing, looked_at = false, 0

local function is_anybody_guessing()
    local now = ngx.now()
    if now - looked_at > LOOK_SECONDS then
        is_guessing, looked_at = dict:get("guessing") ~= nil, now
    end
    return is_guessing
end

-- An address that keeps trying keys is asked to wait. Users behind the same address go on.
local function turn_guesser_away()
    if not is_anybody_guessing() then return end
    local guesses = dict:get("guess " .. ngx.var.binary_remote_addr)
    if not guesses or guesses < GUESSES then return end
    local key = presented_key()
    if key and not is_known(key) then return ngx.exit(429) end
end

-- In the access phase of what a node serves: it trusts the gateway, so the key is asked for here.
function M.admit_to_node()
    turn_guesser_away()
    return demand(presented_key())
end

-- In the access phase of what only operators see: the operator's name.
function M.admit_operator()
    turn_guesser_away()
    local key = presented_key()
    local known_as = key and "operator " .. ngx.md5(key)
    local name = known_as and dict:get(known_as)
    if name then return name end
    local said = ask_for(key)
    name = said["x-appliance-user"]
    if said["x-appliance-role"] ~= "operator" or not name then return ngx.exit(ngx.HTTP_FORBIDDEN) end
    dict:set(known_as, name, GOOD_SECONDS)
    return name
end

-- In the access phase of what the api serves, which itself asks for the key. Only where there is a body it is asked for
-- before: nobody waits for one that a stranger sends byte by byte, and a large one is not kept before its sender is known.
function M.admit_to_api()
    turn_guesser_away()
    local length = tonumber(ngx.var.content_length)
    if length == 0 then return end
    if not length and BODILESS[ngx.req.get_method()] and not ngx.var.http_transfer_encoding then
        -- In HTTP/2 it may have a body all the same. That of a GET means nothing, so nobody keeps it.
        return ngx.req.discard_body()
    end
    local key = presented_key()
    if not length or length > IN_MEMORY or not is_known(key) then return demand(key) end
end

local learned_at = 0
local told, told_count = {}, 0 -- per worker: which keys were told to the others, and until when that is enough

-- In the log phase: whether the key was good, or wrong.
function M.learn()
    local status, now = ngx.status, ngx.now()
    if status == 401 then
        if presented_key() and dict:incr("guess " .. ngx.var.binary_remote_addr, 1, 0, GUESS_SECONDS) then
            dict:set("guessing", true, GUESS_SECONDS)
            is_guessing, looked_at = true, now -- the next key on this connection comes sooner than the next look
        end
        return
    end
    -- Where many come at a time, one of them is enough: who was overlooked is asked for, or comes again.
    if now - learned_at < LEARN_SECONDS or status >= 300 and not OF_A_VALID_KEY[status] or not ngx.ctx.peers then return end
    learned_at = now
    local key = presented_key()
    if not key or (told[key] or 0) > now then return end
    if told_count >= MOST_REMEMBERED then told, told_count = {}, 0 end
    told[key], told_count = now + KNOWN_SECONDS / 4, told_count + 1
    dict:set("known " .. ngx.md5(key), true, KNOWN_SECONDS)
end

return M
