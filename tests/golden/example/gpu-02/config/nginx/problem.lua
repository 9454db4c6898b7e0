-- Error pages as application/problem+json (RFC 9457), for what nginx itself answers.
local cjson = require "cjson.safe"

local PROBLEMS = {
    [400] = { "bad-request", "Bad request", "The request is not valid HTTP." },
    [401] = { "unauthorized", "Unauthorized", "An API key is needed." },
    [403] = { "forbidden", "Forbidden", "This API key may not do that." },
    [404] = { "not-found", "Not found", "There is nothing at this address." },
    [405] = { "method-not-allowed", "Method not allowed", "This address does not know the method." },
    [408] = { "request-timeout", "Request timeout", "The request was not sent in time." },
    [413] = { "body-too-large", "Body too large", "The body is larger than this gateway takes." },
    [414] = { "uri-too-long", "URI too long", "The address is longer than this gateway takes." },
    [429] = { "too-many-requests", "Too many requests", "This key or address asks too often; slow down." },
    [494] = { "headers-too-large", "Headers too large", "The headers are larger than this gateway takes." },
    [497] = { "https-required", "HTTPS required", "This port speaks HTTPS only." },
    [502] = { "bad-gateway", "Bad gateway", "The node broke off; try again." },
    [503] = { "unavailable", "Unavailable", "No healthy node can take this request now; try again." },
    [504] = { "gateway-timeout", "Gateway timeout", "The node did not answer in time; try again." },
}
local OTHER = { "error", "Error", "The gateway could not handle this request." }
local PUBLIC_STATUS = { [494] = 431, [495] = 400, [496] = 400, [497] = 400 }
local RETRY_AFTER = { [429] = "1", [502] = "2", [503] = "2", [504] = "2" }

local M = {}

-- Whether this 404 is only what others said after one that could not tell.
local function is_unsure()
    return ngx.re.find(ngx.var.upstream_status or "", [[\b5\d\d\b]], "jo") ~= nil
end

function M.send()
    local status = ngx.status
    if status == 404 and is_unsure() then status = 503 end
    local problem = PROBLEMS[status] or OTHER
    ngx.header["Retry-After"] = RETRY_AFTER[status]
    status = PUBLIC_STATUS[status] or status
    ngx.status = status
    ngx.header["Content-Type"] = "application/problem+json"
    ngx.header["Cache-Control"] = "no-store"
    local body = {
        type = problem[1], title = problem[2], status = status, detail = problem[3],
        request_id = ngx.var.appliance_request_id,
    }
    -- A request too broken to be read has no address.
    if (ngx.var.request_uri or ""):find("^/sdapi/") then -- where clients look for it: A1111's shape besides
        body.error, body.body, body.errors = "HTTPException", "", ""
    end
    ngx.say(cjson.encode(body))
end

return M
