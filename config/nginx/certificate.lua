-- What a handshake shows. The two files are read again while nginx runs, so a renewed certificate counts within a
-- second or two, without a reload and without any connection noticing. Whatever is wrong with the files, the last
-- good pair stays in use, over a reload too; before there has been one, the placeholder of the entrypoint is shown.
local ffi = require "ffi"
local ssl = require "ngx.ssl"

local LOOK_SECONDS, TOLD_SECONDS = 1, 86400
local MOST_BYTES = 65536 -- of a file: a chain has a few kilobytes

ffi.cdef [[
void *OPENSSL_sk_value(const void *stack, int index);
int X509_check_private_key(const void *certificate, const void *key);
const void *X509_get0_notBefore(const void *certificate);
const void *X509_get0_notAfter(const void *certificate);
int X509_cmp_current_time(const void *time);
void ERR_clear_error(void);
]]

local dict = ngx.shared.certificates

local M = {}
local used -- the pair that handshakes show: its texts and what was made of them
local shared_text -- the same in the shared dict
local looked_at, doubt = -LOOK_SECONDS, nil

local function read(path)
    local file, reason = io.open(path, "rb")
    if not file then return nil, reason end
    local text
    text, reason = file:read(MOST_BYTES + 1)
    file:close()
    if not text then return nil, path .. ": " .. (reason or "empty") end
    if #text > MOST_BYTES then return nil, path .. ": larger than any certificate" end
    return text
end

-- Why this chain is not valid now, or nil.
local function untimely(leaf)
    local C = ffi.C
    if C.X509_cmp_current_time(C.X509_get0_notBefore(leaf)) > 0 then return "the certificate is not valid yet" end
    if C.X509_cmp_current_time(C.X509_get0_notAfter(leaf)) < 0 then return "the certificate has expired" end
end

-- The pair as OpenSSL's objects, which live as long as the table; or nil and what is wrong.
local function parse(chain_text, key_text)
    local chain, reason = ssl.parse_pem_cert(chain_text)
    if not chain then return nil, "no certificate in PEM: " .. reason end
    local key
    key, reason = ssl.parse_pem_priv_key(key_text)
    if not key then return nil, "no private key in PEM without a password: " .. reason end
    local leaf = ffi.C.OPENSSL_sk_value(chain, 0)
    if ffi.C.X509_check_private_key(leaf, key) ~= 1 then
        ffi.C.ERR_clear_error() -- or the handshake around this would find it
        return nil, "the key is not that of the certificate"
    end
    return { chain_text = chain_text, key_text = key_text, chain = chain, key = key, fault = untimely(leaf) }
end

local function take(chain_text, key_text)
    if used and chain_text == used.chain_text and key_text == used.key_text then return end
    local pair, reason = parse(chain_text, key_text)
    -- An expired one is better than none.
    if pair and (not pair.fault or not used) then
        used = pair
        shared_text = #chain_text .. ":" .. chain_text .. key_text
        dict:set("pair", shared_text)
    end
    return reason or pair and pair.fault
end

-- What another worker, or one of before a reload, has found good last: so all fall back on the same.
local function recall()
    local text = dict:get("pair")
    if text == shared_text then return end
    local length, texts = (text or ""):match("^(%d+):(.*)$")
    used = length and parse(texts:sub(1, length), texts:sub(length + 1)) or used
    shared_text = text
end

local function look(chain_path, key_path)
    recall()
    local chain_text, reason = read(chain_path)
    local key_text
    if chain_text then key_text, reason = read(key_path) end
    local fault = reason or take(chain_text, key_text)
    -- Two files cannot be replaced at once: told is what is wrong at the next look as well, once a day for all workers.
    local stamp = fault and ngx.md5(fault .. (chain_text or "") .. (key_text or ""))
    if stamp and stamp == doubt and dict:add("told " .. stamp, true, TOLD_SECONDS) then
        ngx.log(ngx.ERR, "certificate ", chain_path, " with key ", key_path, ": ", fault, "; ",
            used and "the last good one stays in use" or "a placeholder is shown")
    end
    if doubt and not stamp then dict:delete("told " .. doubt) end
    doubt = stamp
end

-- Called by nginx in each full handshake (a resumed one shows no certificate).
function M.present(chain_path, key_path)
    local now = ngx.now()
    if math.abs(now - looked_at) >= LOOK_SECONDS then
        looked_at = now
        look(chain_path, key_path)
    end
    if not used then return end
    local done, reason = ssl.clear_certs()
    if done then done, reason = ssl.set_cert(used.chain) end
    if done then done, reason = ssl.set_priv_key(used.key) end
    if not done then ngx.log(ngx.ERR, "certificate ", chain_path, ": ", reason) end
end

return M
