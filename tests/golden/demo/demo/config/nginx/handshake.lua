-- The opening of a WebSocket (RFC 6455, 4) as the gateway says it to a node: what is named here and nothing else, so
-- that neither hop-by-hop headers nor the visitor's credentials can slip through.
local TOKEN_FILE = "/run/secrets/cluster_token.nginx"
local FROM_CLIENT = {
    "Origin", "User-Agent", "Accept-Language", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
}
local CREDENTIALS = { "Authorization", "X-Api-Key", "Cookie" }
local TO_CLIENT = { "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions" }

local M = {}

-- What nodes want to see, from the file that nginx's own requests take it from. Read before nginx has any worker.
local function read_authorization()
    local file = assert(io.open(TOKEN_FILE))
    local value = file:read("*a"):match('^proxy_set_header Authorization "([^"%c]+)";%s*$')
    file:close()
    return assert(value, TOKEN_FILE .. " is not what `python -m generator secrets` writes; render and start again")
end

local authorization = read_authorization()

local function of_client(name)
    return ngx.var["http_" .. name:lower():gsub("-", "_")]
end

-- Why this is no opening, or nil.
local function fault()
    local length = ngx.var.http_content_length
    if length and length ~= "0" or ngx.var.http_transfer_encoding then return "it has a body" end
    if not ngx.re.find(ngx.var.http_connection or "", [[(^|[\s,])upgrade($|[\s,])]], "ijo") then
        return "Connection does not ask for an upgrade"
    end
    if not ngx.re.find(of_client("Sec-WebSocket-Key") or "", "^[A-Za-z0-9+/]{22}==$", "jo") then
        return "Sec-WebSocket-Key is missing or wrong"
    end
    if of_client("Sec-WebSocket-Version") ~= "13" then return "Sec-WebSocket-Version is not 13" end
end

-- The address as the node knows it: without the prefix for a node's page, untouched for the api.
local function target(pool)
    if pool == "api" then return ngx.var.request_uri end
    local path = ngx.escape_uri(ngx.var.uri:gsub("^/webui", ""), 0)
    return ngx.var.is_args == "" and path or path .. "?" .. (ngx.var.args or "")
end

-- The request for a peer of `pool`; nil and the reason where the client's is no opening.
function M.request(pool)
    local wrong = fault()
    if wrong then return nil, wrong end
    local lines = { ("GET %s HTTP/1.1"):format(target(pool)) }
    local function say(name, value)
        if value and value ~= "" then lines[#lines + 1] = name .. ": " .. value end
    end
    say("Host", ngx.var.host)
    say("Connection", "upgrade")
    say("Upgrade", "websocket")
    for _, name in ipairs(FROM_CLIENT) do say(name, of_client(name)) end
    say("X-Request-Id", ngx.var.appliance_request_id)
    say("X-Forwarded-For", ngx.var.remote_addr)
    say("X-Forwarded-Proto", ngx.var.scheme)
    say("X-Forwarded-Host", ngx.var.http_host)
    if pool == "webui" then
        say("X-Forwarded-Prefix", "/webui")
        say("Authorization", authorization)
    else
        for _, name in ipairs(CREDENTIALS) do say(name, of_client(name)) end
    end
    for _, line in ipairs(lines) do
        if line:find("[%z\1-\8\10-\31\127]") then return nil, "a control character" end
    end
    return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

-- {status, headers by small name} of an answer's head; nil where it is none.
function M.parse(head)
    local status = head:match("^HTTP/1%.[01] (%d%d%d)[ \r]")
    if not status then return nil end
    local answer = { status = tonumber(status), headers = {} }
    for name, value in head:gmatch("\r\n([%w-]+):[ \t]*([^\r\n]-)[ \t]*%f[\r]") do
        answer.headers[name:lower()] = value
    end
    return answer
end

-- Whether the peer has agreed to speak WebSocket.
function M.is_agreed(answer)
    return answer.status == 101 and (answer.headers.upgrade or ""):lower() == "websocket"
end

-- Tell the client that it may begin.
function M.agree(answer)
    ngx.status = 101
    ngx.header["Upgrade"] = "websocket"
    for _, name in ipairs(TO_CLIENT) do ngx.header[name] = answer.headers[name:lower()] end
    local sent, why = ngx.send_headers()
    if sent then sent, why = ngx.flush(true) end
    return sent, why
end

return M
