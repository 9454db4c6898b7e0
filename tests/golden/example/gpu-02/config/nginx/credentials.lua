-- What a request brings to show who sends it, and how much it wants kept before anyone has looked at that.
local IN_MEMORY = 16384 -- client_body_buffer_size: a larger body goes to /tmp
local BODILESS = { GET = true, HEAD = true, DELETE = true, OPTIONS = true }

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

-- Whether the body surely fits into memory, so that the api may be the one to ask for the key.
function M.body_is_small()
    local length = tonumber(ngx.var.http_content_length)
    if length then return length <= IN_MEMORY end
    if ngx.var.http_transfer_encoding then return false end
    -- HTTP/1 without either has no body; HTTP/2 may have one all the same (that of a GET is dropped, below).
    return ngx.req.http_version() < 2 or BODILESS[ngx.var.request_method] == true
end

-- Called in the access phase of the request itself: an unannounced body of a GET means nothing, so nobody keeps it.
function M.drop_meaningless_body()
    if BODILESS[ngx.var.request_method] and not ngx.var.http_content_length and ngx.req.http_version() >= 2 then
        ngx.req.discard_body()
    end
end

return M
