-- Follows the frames (RFC 6455, 5.2) of a stream that passes by: only between two of them may a close be put in.
local CLOSE = 8

local M = {}

function M.follow()
    return { head = "", left = 0, closed = false }
end

-- How long a frame's head is, as far as `head` already tells.
local function head_length(head)
    if #head < 2 then return 2 end
    local second = head:byte(2)
    local length = second % 128
    return 2 + (length == 126 and 2 or length == 127 and 8 or 0) + (second >= 128 and 4 or 0)
end

local function payload_length(head)
    local length = head:byte(2) % 128
    if length < 126 then return length end
    local first, last, total = 3, length == 126 and 4 or 10, 0
    for at = first, last do total = total * 256 + head:byte(at) end
    return total
end

-- `bytes` have passed.
function M.pass(stream, bytes)
    local at, size = 1, #bytes
    while at <= size do
        if stream.left > 0 then
            local skipped = math.min(stream.left, size - at + 1)
            stream.left, at = stream.left - skipped, at + skipped
        else
            local part = bytes:sub(at, at + head_length(stream.head) - #stream.head - 1)
            stream.head, at = stream.head .. part, at + #part
            if #stream.head == head_length(stream.head) then
                stream.closed = stream.closed or stream.head:byte(1) % 16 == CLOSE
                stream.left, stream.head = payload_length(stream.head), ""
            end
        end
    end
end

-- Whether a frame may follow now; after a close none does.
function M.is_between(stream)
    return stream.left == 0 and stream.head == "" and not stream.closed
end

-- An unmasked close frame, as servers send them.
function M.close(code, reason)
    return string.char(128 + CLOSE, 2 + #reason, math.floor(code / 256), code % 256) .. reason
end

return M
