-- What a request brings to show who sends it, and how much it wants kept before anyone has looked at that.
local IN_MEMORY = 16384 -- client_body_buffer_size: a larger body goes to /tmp
local BODILESS = { GET = true, HEAD = true, DELETE = true, OPTIONS = true }
-- Answers that only a request with a valid key gets from the api; a 400 may come from before it looks.
local OF_A_VALID_KEY = { [404] = true, [409] = true, [422] = true }
local KNOWN_SECONDS = 60
local GUESSES, GUESS_SECONDS = 30, 60 -- wrong keys per address

local dict = ngx.shared.credentials

local M = {}

-- The API key where the api looks for it (appliance/api/auth.py), whatever stands around it: another header, a user
-- name, blanks. nil where there is none.
local function presented_key()
    local key = ngx.var.http_x_api_key
    if key then return key:match("^[^,]*") end -- the first of several
    local scheme, value = (ngx.var.http_authorization or ""):match("^([^ ]*) ?(.*)$")
    if scheme == "" then return nil end
    value = value:gsub("[^\33-\126]", "")
    if scheme:lower() ~= "basic" then return value end
    local decoded = ngx.decode_base64(value)
    return decoded and decoded:match(":(.*)$") or value
end

-- Whom the limits count: the key, else the address. Hashed: long junk must not fill the zones.
function M.client()
    local key = presented_key()
    return key and ngx.md5(key) or ngx.var.binary_remote_addr
end

-- The api has taken this key within the last minute. It judges each request all the same.
local function is_known()
    local key = presented_key()
    return key ~= nil and dict:get("known " .. ngx.md5(key)) ~= nil
end

-- Whether the api may be the one to ask for the key: nobody waits for a body that a stranger sends byte by byte, and
-- a large one is not kept before its sender is known.
function M.may_be_read()
    local length = tonumber(ngx.var.http_content_length)
    if length then return length == 0 or length <= IN_MEMORY and is_known() end
    if ngx.var.http_transfer_encoding then return false end
    -- HTTP/1 without either has no body; HTTP/2 may have one all the same (that of a GET is dropped, below).
    return ngx.req.http_version() < 2 or BODILESS[ngx.var.request_method] == true
end

-- In an answer of the api: whether the key was good.
function M.learn()
    local key = presented_key()
    if not key or not ngx.var.upstream_status then return end
    if ngx.status < 300 or OF_A_VALID_KEY[ngx.status] then dict:set("known " .. ngx.md5(key), true, KNOWN_SECONDS) end
end

-- In an answer that the client gets: whether it had a wrong one.
function M.count_guess()
    if ngx.status ~= 401 then return end
    if presented_key() then dict:incr("guess " .. ngx.var.binary_remote_addr, 1, 0, GUESS_SECONDS) end
end

-- Before anything else: an address that keeps trying keys is asked to wait. Users behind the same address go on.
function M.turn_guesser_away()
    local guesses = dict:get("guess " .. ngx.var.binary_remote_addr)
    if guesses and guesses >= GUESSES and presented_key() and not is_known() then
        return ngx.exit(429)
    end
end

-- Called in the access phase of the request itself: an unannounced body of a GET means nothing, so nobody keeps it.
function M.drop_meaningless_body()
    if BODILESS[ngx.var.request_method] and not ngx.var.http_content_length and ngx.req.http_version() >= 2 then
        ngx.req.discard_body()
    end
end

return M
